"""The type of every node: given for those that compute, and following from their data for those that move it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import NodeProto, TensorProto

from mrsep_deploy.precision.graph import MOVEMENT, GraphView

_FIXED = frozenset(("Cast", "Constant", "ConstantOfShape", "EyeLike", "Range", "RandomNormal"))
"""Operators whose result has a type of its own, whatever they read."""


def node_types(
    view: GraphView, kept: Collection[str], low: int, inputs: Mapping[str, int], outputs: Mapping[str, int]
) -> dict[str, int]:
    """ONNX's element type by node name, for every node.

    Args:
        kept: names of the nodes that compute in float32.
        low: the type of all others.
        inputs, outputs: types at the graph's border.

    Movement takes the type of what it moves, or of all that reads it: whichever lets a cast stand where
    there is less to cast, and at a tie the lower one.
    """
    types = {
        node.name: _computing_type(view, node, kept, low) for node in view.nodes if not _moves(view, node)
    }
    wanted = _wanted(view, types, outputs)
    found: dict[str, int] = dict(inputs)
    for node in view.nodes:
        if _moves(view, node):
            types[node.name] = _moving_type(view, node, found, wanted[node.name], low)
        for name in node.output:
            found[name] = types[node.name]
    return types


def _moves(view: GraphView, node: NodeProto) -> bool:
    return node.op_type in MOVEMENT and view.is_float(node.output[0])


def _computing_type(view: GraphView, node: NodeProto, kept: Collection[str], low: int) -> int:
    if node.name in kept or node.op_type in _FIXED or not view.is_float(node.output[0]):
        return TensorProto.FLOAT
    return low


def _wanted(view: GraphView, types: Mapping[str, int], outputs: Mapping[str, int]) -> dict[str, set[int]]:
    """For every movement, the types that are wanted of what it moves, through all movement after it."""
    wanted: dict[str, set[int]] = {}
    for node in reversed(view.nodes):
        if not _moves(view, node):
            continue
        found = {outputs[name] for name in node.output if name in view.outputs}
        for name in node.output:
            for reader in view.readers(name):
                found |= wanted[reader.name] if _moves(view, reader) else {types[reader.name]}
        wanted[node.name] = found
    return wanted


def _moving_type(
    view: GraphView, node: NodeProto, found: Mapping[str, int], wanted: set[int], low: int
) -> int:
    data = view.data(node)
    given = {found[name] for name in data}
    if len(wanted) != 1:
        return given.pop() if len(given) == 1 else TensorProto.FLOAT
    target = next(iter(wanted))
    if given == {target} or not given:
        return target
    if len(given) > 1:
        return target
    before = sum(view.elements(name) for name in data)
    after = sum(view.elements(name) for name in node.output if name)
    if before == after:
        return low
    return given.pop() if after < before else target
