"""Is an ONNX graph self-contained? Asked of its bytes, without the ``onnx`` package.

A graph can name other files to be read with it: tensors stored outside (``external_data``), and engines
built elsewhere (``EPContext`` nodes). Export writes neither; in a bundle from somewhere else they
could name any file of this machine. This walks the protobuf wire format through every message that can
hold a tensor or a node, https://protobuf.dev/programming-guides/encoding, with the field numbers of
``onnx.proto3``. Weights are stepped over by their length, so 100 MB take as long as their few thousand
nodes. Nothing is unpacked and nothing recurses, so hostile bytes cost no more than honest ones.
"""

from __future__ import annotations

from mrsep_deploy.bundle.manifest_check import FIX
from mrsep_deploy.errors import BundleError

MAX_DEPTH = 64
MAX_FIELDS = 2_000_000

_FOREIGN = "Use only graphs that `mrsep-deploy export` wrote; they are self-contained."

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> {field number: the message it holds}, wherever a tensor or a node can be below
_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_MODEL_GRAPH = 7
_NODE_OPERATOR = 4
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_LOCATION = 14
_ENGINE_OPERATOR = b"EPContext"


def check_self_contained(graph: bytes, name: str) -> None:
    """Raise unless the graph is whole and needs no other file.

    Args:
        graph: a serialised ``ModelProto``.
        name: its file name, for messages.

    Raises:
        BundleError: not protobuf, no graph inside, or something that refers to another file.
    """
    try:
        found = _walk(graph, name)
    except _NotProtobufError as error:
        raise BundleError(f"{name} is not an ONNX graph: {error}", FIX) from error
    if not found:
        raise BundleError(f"{name} is not an ONNX model: it holds no graph", FIX)


class _NotProtobufError(Exception):
    """The bytes are not what the wire format allows; the text says where."""


def _walk(data: bytes, name: str) -> bool:
    """Visit every message of ``_BELOW``; whether there was a graph."""
    has_graph = False
    fields = 0
    waiting = [(0, len(data), "model", 0)]
    while waiting:
        at, end, message, depth = waiting.pop()
        below = _BELOW[message]
        while at < end:
            tag, at = _varint(data, at, end)
            number, wire = tag >> 3, tag & 7
            start, at, value = _field(data, at, end, wire)
            fields += 1
            if fields > MAX_FIELDS:
                raise _NotProtobufError(f"it has more than {MAX_FIELDS} fields")
            if message == "tensor":
                # DEFAULT, 0, is the only location inside the file
                if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_LOCATION and value != 0):
                    raise BundleError(f"{name} reads weights from another file (external data)", _FOREIGN)
            elif wire == _BYTES and number in below:
                if depth == MAX_DEPTH:
                    raise _NotProtobufError(f"it is nested deeper than {MAX_DEPTH} levels")
                waiting.append((start, at, below[number], depth + 1))
                has_graph = has_graph or (message == "model" and number == _MODEL_GRAPH)
            elif message == "node" and number == _NODE_OPERATOR and data[start:at] == _ENGINE_OPERATOR:
                raise BundleError(f"{name} holds an engine that was built elsewhere (EPContext)", _FOREIGN)
    return has_graph


def _field(data: bytes, at: int, end: int, wire: int) -> tuple[int, int, int]:
    """Where the field's content starts and ends, and its value if it is a varint (else 0)."""
    value = 0
    if wire == _VARINT:
        start = at
        value, stop = _varint(data, at, end)
    elif wire == _BYTES:
        length, start = _varint(data, at, end)
        stop = start + length
    elif wire == _FIXED64:
        start, stop = at, at + 8
    elif wire == _FIXED32:
        start, stop = at, at + 4
    else:
        raise _NotProtobufError(f"wire type {wire} at byte {at}")
    if stop > end:
        raise _NotProtobufError(f"a field at byte {at} ends at {stop}, beyond {end}")
    return start, stop, value


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A base-128 number, least significant group first, and where the next field starts."""
    value = 0
    for position in range(at, min(end, at + 10)):
        byte = data[position]
        value |= (byte & 0x7F) << (7 * (position - at))
        if byte < 0x80:
            return value, position + 1
    raise _NotProtobufError(f"a number at byte {at} does not end")
