"""Cases for hypothesis: honest files with something changed, and files made to a format's grammar."""

from __future__ import annotations

import functools
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from seeds import manifest_bytes, seeds, words

MAX_BYTES = 1 << 14
_NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    64,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
]
_POWERS = st.sampled_from(_NUMBERS)

Bytes = st.SearchStrategy[bytes]


def cases(reader: str) -> Bytes:
    """Files for one reader; what is made to the grammar is sometimes damaged, too."""
    honest = st.sampled_from(seeds(reader))
    base = honest
    if reader in _GRAMMARS:
        base = st.one_of(honest, _GRAMMARS[reader]())
    return damaged(base, words(reader)) | base


@st.composite
def damaged(draw: Callable[..., Any], base: Bytes, tokens: list[bytes]) -> bytes:
    """A file after up to six edits."""
    data = bytearray(draw(base))
    edit = st.tuples(
        st.integers(0, 7), st.floats(0, 1), st.integers(0, 255), _POWERS, st.sampled_from(tokens)
    )
    for kind, where, byte, number, token in draw(st.lists(edit, min_size=1, max_size=6)):
        at = int(where * len(data))
        if kind <= 1:
            data[at : at + 1] = bytes([byte])
        elif kind == 2:
            width = 1 << byte % 4
            value = (number % 2 ** (8 * width)).to_bytes(width, "big" if byte & 4 else "little")
            data[at : at + width] = value
        elif kind == 3:
            data[at:at] = token
        elif kind == 4:
            data[at : at + len(token)] = token
        elif kind == 5:
            del data[at : at + byte]
        elif kind == 6:
            data[at:at] = data[at : at + byte]
        elif byte % 4 == 0:
            del data[at:]
    return bytes(data[:MAX_BYTES])


@functools.cache
def _json_values() -> st.SearchStrategy[Any]:
    scalar = st.one_of(
        st.none(), st.booleans(), _POWERS, st.integers(), st.floats(), st.text(max_size=8),
        st.sampled_from(["mix", "stems", "16", "time", "../x", "branch.16.onnx", "a" * 300]),
    )  # fmt: skip
    return st.recursive(scalar, lambda inner: st.lists(inner, max_size=4) | _objects(inner), max_leaves=8)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.text(max_size=6), inner, max_size=4)


# --- checkpoints

_KEYS = st.sampled_from(
    ["sources", "segment", "channels", "depth", "growth", "nfft", "kernel_size", "t_heads", "t_layers", "samplerate",
     "audio_channels", "cac", "freq_emb", "stride", "dconv_depth", "bottom_channels", "t_emb", "norm_groups"]
)  # fmt: skip


@functools.cache
def _arguments() -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(_KEYS, _json_values(), max_size=4)


_KLASSES = st.sampled_from(
    ["HTDemucs", "HDemucs", "HTDemucs_n", "HTDemucs_nf", "HTDemucs_dnf", "HTDemucs_2nn", "Unknown"]
)


@st.composite
def _package(draw: Callable[..., Any]) -> bytes:
    """A pickle of a package whose tensors and arguments are drawn, in an archive that fits."""
    import pickles

    extents = st.lists(st.one_of(st.integers(0, 4), _POWERS), max_size=4).map(tuple)
    kinds = st.sampled_from(["FloatStorage", "HalfStorage", "BoolStorage", "LongStorage", "BFloat16Storage"])
    tensors = {}
    for name in draw(st.lists(st.sampled_from("abcd"), max_size=3, unique=True)):
        numel, key = draw(st.one_of(st.integers(0, 8), _POWERS)), draw(st.sampled_from("01"))
        tensors[name] = pickles.tensor(
            draw(extents), draw(extents), draw(st.integers(-1, 4)), numel, key, draw(kinds)
        )
    kwargs = draw(_arguments())
    klass = draw(_KLASSES)
    parts = {
        "klass": pickles.named(f"demucs.{klass.lower()}", klass),
        "state": pickles.items(**tensors),
        "kwargs": pickle.dumps(kwargs, 2)[2:-1],
    }
    program = pickles.program(**parts) if draw(st.booleans()) else _program(draw)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key in "01":
            archive.writestr(f"archive/data/{key}", bytes(draw(st.integers(0, 64))))
    return target.getvalue()


_OPCODES = st.sampled_from(
    [b"(", b".", b"0", b"1", b"2", b"N", b"\x88", b"\x89", b"]", b"}", b")", b"a", b"e", b"s", b"u", b"t", b"l", b"d",
     b"\x85", b"\x86", b"\x87", b"\x90", b"\x91", b"\x94", b"R", b"b", b"o", b"\x81", b"\x92", b"Q", b"\x93", b"\x8f",
     b"K\x01", b"M\x00\x01", b"J\xff\xff\xff\x7f", b"q\x00", b"h\x00", b"r\xff\xff\xff\x7f", b"U\x01a", b"X\x01\0\0\0a",
     b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"cfractions\nFraction\n", b"cos\nsystem\n",
     b"ctorch._utils\n_rebuild_tensor_v2\n", b"\x8a\x08" + b"\xff" * 8, b"G" + b"\x7f" * 8, b"\x82\x01", b"I99\n"]
)  # fmt: skip


def _program(draw: Callable[..., Any]) -> bytes:
    """Instructions of the pickle machine in any order."""
    return b"\x80\x02" + b"".join(draw(st.lists(_OPCODES, max_size=30))) + b"."


_ENTRIES = st.dictionaries(
    st.sampled_from(["w", "v", "__quantized"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BOOL", "I64", "F8_E4M3", "C64", ""]),
            "shape": st.lists(_POWERS, max_size=3),
            "data_offsets": st.lists(st.one_of(st.integers(0, 32), _POWERS), min_size=2, max_size=2),
        }
    ),
    max_size=2,
)


@st.composite
def _safetensors_file(draw: Callable[..., Any]) -> bytes:
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BOOL", "I64", "F8_E4M3", "C64", ""]),
            "shape": st.lists(_POWERS, max_size=3),
            "data_offsets": st.lists(st.one_of(st.integers(0, 32), _POWERS), min_size=2, max_size=2),
        }
    )
    tree: dict[str, Any] = draw(
        st.dictionaries(st.sampled_from(["w", "v", "__quantized"]), entry, max_size=2)
    )
    tree["__metadata__"] = {
        "klass": "demucs.htdemucs." + draw(_KLASSES),
        "args": json.dumps(draw(st.lists(_json_values(), max_size=2))),
        "kwargs": json.dumps(draw(_arguments())),
    }
    header = json.dumps(tree).encode()
    return struct.pack("<Q", len(header)) + header + bytes(draw(st.integers(0, 32)))


def _bag_file() -> Bytes:
    import yaml

    keys = st.sampled_from(["models", "weights", "segment", "extra"])
    names = st.lists(st.sampled_from(["a", "b", "c", "d", "../a", "a*", "", "a.th"]), max_size=4)
    rows = st.lists(st.lists(st.floats(), max_size=3), max_size=4)
    values = st.one_of(names, rows, _json_values())
    return st.dictionaries(keys, values, max_size=4).map(lambda tree: yaml.safe_dump(tree).encode())


# --- bundles


@st.composite
def _manifest_file(draw: Callable[..., Any]) -> bytes:
    """The honest tree with up to four values replaced, removed, doubled or swapped."""
    tree = json.loads(manifest_bytes())
    for _ in range(draw(st.integers(1, 4))):
        node, key = tree, draw(st.sampled_from(sorted(tree)))
        while isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 4)):
            node = node[key]
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.append(node[key])
        elif kind == 2 and isinstance(node, dict):
            node[draw(st.text(max_size=5))] = node[key]
        else:
            node[key] = draw(_json_values())
        if not tree:
            break
    return json.dumps(tree).encode()


@st.composite
def _message(draw: Callable[..., Any], depth: int = 5) -> bytes:
    """Protobuf: fields of any number, nested in those that hold messages in an ONNX model."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.sampled_from([1, 2, 4, 5, 6, 7, 10, 11, 13, 14, 15, 20, 22, 25]))
        if depth and draw(st.booleans()):
            inner = draw(_message(depth - 1))
        else:
            inner = draw(st.sampled_from([b"", b"EPContext", b"x", b"\x70\x01", b"\x6a\x00"]))
        wire = draw(st.sampled_from([2, 2, 2, 2, 0, 1, 5, 3]))
        body = {2: _varint(len(inner)) + inner, 0: _varint(draw(_POWERS)), 1: bytes(8), 5: bytes(4), 3: b""}
        parts.append(_varint(number << 3 | wire) + body[wire])
    return b"".join(parts)


def _varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


@st.composite
def _zip_file(draw: Callable[..., Any]) -> bytes:
    """Members with drawn names, kinds and claims about their sizes."""
    manifest = manifest_bytes()
    names = st.sampled_from(
        ["manifest.json", "tiny/manifest.json", "branch.16.onnx", "branch.time.onnx", "../x", "/x", "a\\b", "tiny/",
         "tiny/branch.16.onnx", "MANIFEST.JSON", "x" * 200, "a//b", "a/./b", "C:x", "ä", "\u202e"]
    )  # fmt: skip
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in draw(st.lists(names, max_size=6, unique=True)):
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.external_attr = draw(st.sampled_from([0, 0o100644, 0o120777, 0o040755, 0o020666])) << 16
            method = draw(st.sampled_from([0, 8, 8, 12, 14]))
            data = manifest if name.endswith("json") else bytes(draw(st.sampled_from([0, 1, 200, 100_000])))
            archive.writestr(info, data, method)
    data = bytearray(target.getvalue())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.sampled_from(_found(data, b"PK\x01\x02") or [0]))
        offset, value = draw(st.sampled_from([8, 10, 16, 20, 24, 28, 30, 32, 38, 42])), draw(_POWERS)
        data[at + offset : at + offset + 4] = struct.pack("<I", value % 2**32)
    return bytes(data)


def _found(data: bytes | bytearray, token: bytes) -> list[int]:
    places, at = [], data.find(token)
    while at >= 0:
        places.append(at)
        at = data.find(token, at + 1)
    return places


# --- songs


@st.composite
def _wav_file(draw: Callable[..., Any]) -> bytes:
    """Chunks of a WAV file with drawn claims."""
    form = struct.pack(
        "<HHIIHH",
        draw(st.sampled_from([1, 3, 6, 7, 2, 17, 49, 85, 0xFFFE])),
        draw(st.sampled_from([0, 1, 2, 3, 64, 65, 1024, 65535])),
        draw(st.sampled_from([0, 1, 999, 8000, 44100, 1_000_000, 2**31, 2**32 - 1])),
        draw(_POWERS) % 2**32,
        draw(_POWERS) % 2**16,
        draw(st.sampled_from([0, 1, 4, 8, 12, 16, 24, 32, 64, 65535])),
    )
    data = draw(st.binary(max_size=64)) * draw(st.integers(0, 20))
    chunks = [(b"fmt ", form), (b"data", data)]
    names = st.sampled_from(
        [b"fact", b"LIST", b"ds64", b"PEAK", b"cue ", b"smpl", b"bext", b"fmt ", b"data", b"JUNK"]
    )
    for name, content in draw(st.lists(st.tuples(names, st.binary(max_size=40)), max_size=3)):
        chunks.insert(draw(st.integers(0, len(chunks))), (name, content))
    claim = st.one_of(st.none(), _POWERS)
    body = b"".join(
        name + struct.pack("<I", (len(content) if said is None else said) % 2**32) + content
        for (name, content), said in ((chunk, draw(claim)) for chunk in chunks)
    )
    return (
        draw(st.sampled_from([b"RIFF", b"RF64", b"RIFX"])) + struct.pack("<I", len(body) + 4) + b"WAVE" + body
    )


@st.composite
def _mp4_file(draw: Callable[..., Any]) -> bytes:
    """A box of an honest mp4 file given another size or content."""
    honest = [data for data in seeds("ffmpeg") if data[4:8] == b"ftyp"]
    data = bytearray(draw(st.sampled_from(honest)))
    boxes = (
        b"moov",
        b"trak",
        b"mdia",
        b"stsd",
        b"stts",
        b"stsc",
        b"stsz",
        b"stco",
        b"elst",
        b"mvhd",
        b"mdhd",
        b"esds",
    )
    for _ in range(draw(st.integers(1, 3))):
        found = _found(data, draw(st.sampled_from(boxes)))
        if found:
            at = draw(st.sampled_from(found)) + draw(st.sampled_from([-4, 4, 8, 12, 16, 20, 24]))
            data[max(at, 0) : max(at, 0) + 4] = struct.pack(">I", draw(_POWERS) % 2**32)
    return bytes(data)


_GRAMMARS: dict[str, Callable[[], Bytes]] = {
    "checkpoint": _package,
    "safetensors": _safetensors_file,
    "bag": _bag_file,
    "manifest": _manifest_file,
    "graph": _message,
    "zip": _zip_file,
    "audio": _wav_file,
    "ffmpeg": _mp4_file,
}
