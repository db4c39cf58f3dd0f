"""Packages made for tests: honest ones with ``torch.save``, hostile ones byte by byte."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

KLASS = "demucs.htdemucs.HTDemucs"


@contextlib.contextmanager
def importable(qualified: str = KLASS) -> Iterator[type]:
    """A class under this name, for as long as ``torch.save`` and ``torch.load`` need to find it."""
    module, name = qualified.rsplit(".", 1)
    fakes = {module: types.ModuleType(module)}
    parent = module.rpartition(".")[0]
    if parent:
        fakes[parent] = types.ModuleType(parent)
    klass = type(name, (), {"__module__": module})
    setattr(fakes[module], name, klass)
    with mock.patch.dict(sys.modules, fakes):
        yield klass


def save(path: Path, state: object, klass: str = KLASS, legacy: bool = False, **others: object) -> Path:
    """A package as demucs saves it."""
    with importable(klass) as found:
        package = {"klass": found, "args": (), "kwargs": {"segment": 7.8}, "state": state, **others}
        torch.save(package, path, _use_new_zipfile_serialization=not legacy)
    return path


def save_with_source(path: Path, state: object, klass: str = KLASS, **others: object) -> Path:
    """A package as torch before 1.6 saves it: with the source of a module's class beside the class.

    torch still does so where its zip format is switched off; it takes the source from the class's file.
    """
    module, name = klass.rsplit(".", 1)
    file = path.with_suffix(".py")
    file.write_text(f"import torch\n\n\nclass {name}(torch.nn.Module):\n    pass\n")
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with importable(klass), mock.patch.dict(sys.modules, {module: loaded}):
        spec.loader.exec_module(loaded)
        package = {"klass": getattr(loaded, name), "args": (), "kwargs": {"segment": 7.8}, "state": state}
        torch.save({**package, **others}, path, _use_new_zipfile_serialization=False)
    return path


def load(path: Path, klass: str = KLASS) -> dict[str, object]:
    """What torch itself reads from a package of ours."""
    with importable(klass):
        return dict(torch.load(path, weights_only=False))


def write_zip(
    path: Path, data: bytes, *, top: str = "archive", compress: bool = False, **members: bytes
) -> Path:
    """An archive with this pickle; ``data_0=...`` becomes the member ``archive/data/0``."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{top}/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"{top}/{name.replace('_', '/')}", content)
    return path


# A few instructions of the pickle machine, for programs that no pickler writes.


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def items(**values: bytes) -> bytes:
    """A dict of values that are programs themselves."""
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def tensor(
    size: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    numel: int = 2,
    key: str = "0",
    kind: str = "FloatStorage",
) -> bytes:
    """The program of one tensor as torch writes it."""
    sequence = [b"(" + b"".join(integer(value) for value in values) + b"t" for values in (size, stride)]
    stored = b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + integer(numel) + b"tQ"
    hooks = named("collections", "OrderedDict") + b")R"
    arguments = stored + integer(offset) + sequence[0] + sequence[1] + b"\x89" + hooks
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def program(**parts: bytes) -> bytes:
    """The pickle of a whole package; ``state``, ``kwargs``, ... replace its honest parts."""
    module, name = KLASS.rsplit(".", 1)
    honest = {"klass": named(module, name), "args": b")", "kwargs": b"}", "state": items(w=tensor())}
    return b"\x80\x02" + items(**{**honest, **parts}) + b"."


def module(*parts: bytes) -> bytes:
    """The persistent id of a module's class, as torch before 1.6 writes it; ``parts`` follow ``"module"``."""
    return b"(" + text("module") + b"".join(parts) + b"tQ"


def write_legacy(path: Path, **parts: bytes) -> Path:
    """``write`` in the container of torch before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    storage = pickle.dumps(["0"], 2) + struct.pack("<q2f", 2, 1.0, 2.0)
    path.write_bytes(b"".join(head) + program(**parts) + storage)
    return path


def write(path: Path, **parts: bytes) -> Path:
    """A package whose storage "0" has two float32; see ``program``."""
    return write_zip(path, program(**parts), data_0=struct.pack("<2f", 1.0, 2.0), byteorder=b"little")
