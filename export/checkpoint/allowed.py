"""What a pickled package may name, and what becomes of it.

A pickle says "import this name" and "call it with these arguments". Here a name is looked up in the tables
below and nowhere else, and a call is carried out by our own function of the same meaning, on plain data:

    a model class                     stays a ``Name``; it cannot be called, and its source code, which torch
                                      before 1.6 put beside it, is dropped unread
    torch.FloatStorage, ...           stays a ``Name``; says how the bytes of a storage are read
    torch._utils._rebuild_tensor_v2   a ``TensorSpec``: where in which storage a tensor lies
    torch._utils._rebuild_parameter   the ``TensorSpec`` it wraps
    collections.OrderedDict           a dict
    fractions.Fraction                a ``Fraction`` with bounded parts
    numpy scalar, dtype               the Python number
    torch.Size                        the tuple
    torch.float32, ...                the text "torch.float32"

Every other name is refused and reported. Nothing is imported, whatever the file says.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mrsep_deploy.errors import CheckpointError, UnsafeCheckpointError
from mrsep_deploy.export.checkpoint import recipes
from mrsep_deploy.export.checkpoint.values import NO_FRACTION, fraction, shown

#: Storage class -> name of its torch dtype.
STORAGES: Mapping[str, str] = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}

RESAVE = "save the model again as a dict of klass, args, kwargs, state and training_args"
UNTRUSTED = "do not load this file elsewhere unless you trust its author; "
DIFFQ_FIX = "export the model that was not quantised, or load this one with demucs and diffq and save that"

# What may be called, each with what is wrong where its arguments are none that a package has.
_UNWRITTEN = "is declared in a form that torch.save does not write"
_NO_NUMBER = "the file holds a numpy object that is not a number"
_CALLS: Mapping[str, str] = {
    "collections.OrderedDict": f"an OrderedDict {_UNWRITTEN}",
    "fractions.Fraction": NO_FRACTION,
    "torch._utils._rebuild_tensor_v2": f"a tensor {_UNWRITTEN}",
    "torch._utils._rebuild_parameter": f"a parameter {_UNWRITTEN}",
    "torch.Size": f"a torch.Size {_UNWRITTEN}",
    "numpy.dtype": _NO_NUMBER,
    "numpy.core.multiarray.scalar": _NO_NUMBER,
    "numpy._core.multiarray.scalar": _NO_NUMBER,
    "_codecs.encode": _NO_NUMBER,
}
MOST_ARGUMENTS = 7

_DTYPES = frozenset(f"torch.{name}" for name in STORAGES.values())
# numpy's short dtype names -> struct's, of one letter each
_NUMPY = ["f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
_NUMBERS = dict(zip(_NUMPY, "efd?bhiqBHIQ", strict=True))
# Names that are no attack, only something this package does not read: the start of the name and what it is.
_UNSUPPORTED = {
    "torch._utils._rebuild_sparse": "a sparse tensor, expected dense ones",
    "torch._utils._rebuild_qtensor": "a quantised tensor, expected floating point ones",
    "torch._utils._rebuild_meta_tensor": "a tensor without values",
    "torch.ComplexFloatStorage": "a complex tensor, expected real ones",
    "torch.ComplexDoubleStorage": "a complex tensor, expected real ones",
    "torch.QInt": "a quantised tensor, expected floating point ones",
    "torch.QUInt": "a quantised tensor, expected floating point ones",
    "torch._tensor._rebuild_from_type": "a tensor with Python attributes, expected a plain one",
}
# What training programs put into their checkpoints beside the model: the start of the name, and what to do. The
# file is refused like any other that names objects; whoever made it is told how to get the model out.
_OWN = f"only if it is your own training checkpoint, {recipes.of_ones_own()}"
_DEMUCS = "export best.th, the package that demucs keeps beside its checkpoint.th; or, "
_OF_TRAINING = {
    "omegaconf.": _DEMUCS + _OWN,
    "argparse.Namespace": _OWN,
    "collections.defaultdict": _OWN,
    "collections.Counter": _OWN,
    "pathlib.": _OWN,
    "numpy.core.multiarray._reconstruct": _OWN,
    "numpy._core.multiarray._reconstruct": _OWN,
}


@dataclass(frozen=True)
class Name:
    """A global that a pickle names: never the thing itself."""

    qualified: str

    def __str__(self) -> str:
        return shown(self.qualified)


@dataclass(frozen=True)
class StorageRef:
    """A storage as the pickle declares it: ``numel`` elements of ``dtype`` under ``key``."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the pickle declares it; nothing but the storage has been checked yet."""

    storage: StorageRef
    offset: object
    size: object
    stride: object


@dataclass
class _NumpyType:
    """``numpy.dtype("f8")``: the struct format of one element, without its byte order."""

    letter: str
    order: str = "<"


def refuse(what: str, fix: str = UNTRUSTED + RESAVE) -> UnsafeCheckpointError:
    """The error for a file that wants something run; ``what`` continues 'the file asks for'."""
    return UnsafeCheckpointError(
        f"refused: the file asks for {what}, expected tensors and plain values only; nothing of it was run",
        fix,
    )


def resolve(classes: Collection[str], module: object, name: object) -> Name | str:
    """The harmless stand-in for a global; ``classes`` are the model classes that are known.

    Raises:
        CheckpointError: the name says the file holds something else than a known package.
        UnsafeCheckpointError: any other name; the message has it in full.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise refuse(f"a global whose name is made of {type(module).__name__} and {type(name).__name__}")
    full = f"{module}.{name}"
    if full in _DTYPES:
        return full
    # "a.b" + "c" and "a" + "b.c" read the same; only the first is a module and a name in it.
    if "." not in name and (full in classes or full in STORAGES or full in _CALLS):
        return Name(full)
    raise _unknown(module, name, classes)


def _unknown(module: str, name: str, classes: Collection[str]) -> CheckpointError:
    full = f"{module}.{name}"
    for start, what in _UNSUPPORTED.items():
        if full.startswith(start):
            return CheckpointError(f"the file holds {what} ({shown(full)})", RESAVE)
    package = module.partition(".")[0]
    if package == "diffq":
        return CheckpointError(f"the weights are stored as DiffQ codes ({shown(full)})", DIFFQ_FIX)
    if (
        any(known.startswith(f"{package}.") for known in classes)
        and name.isidentifier()
        and name[0].isupper()
    ):
        return unknown_class(full, classes)
    if module.startswith("torch.nn."):
        return refuse(f"{shown(full, 300)} (it holds a whole pickled module, not a package)")
    for start, fix in _OF_TRAINING.items():
        if full.startswith(start):
            return refuse(shown(full, 300), UNTRUSTED + fix)
    return refuse(shown(full, 300))


def unknown_class(name: object, classes: Collection[str]) -> CheckpointError:
    """The error for a class that is none of the known ``classes``."""
    return CheckpointError(
        f"the model class is {shown(name)}, expected one of {', '.join(classes)}",
        "export a model of one of these classes",
    )


def persistent(classes: Collection[str], identity: object) -> StorageRef | Name:
    """What a persistent id declares, which is one of two things.

        ("storage", class, key, location, numel[, view])    a storage; its location is ignored: all is read to the CPU
        ("module", class, file, source)                      a model class, from torch before 1.6; the name of the
                                                             file and the source in it are texts, and dropped

    Raises:
        UnsafeCheckpointError: it has another form.
    """
    if isinstance(identity, tuple) and len(identity) <= 6:
        match identity:
            case ("module", Name(klass), None | str(), None | str()) if klass in classes:
                return Name(klass)
            case ("storage", Name(kind), str(key), _, int(numel), *view) if kind in STORAGES:
                if type(numel) is int and 0 <= numel < 2**40 and view in ([], [None]):
                    return StorageRef(key, STORAGES[kind], numel)
    raise refuse("a persistent object that is neither a storage of tensors nor a known model class")


def call(function: object, arguments: object) -> object:
    """What ``function(*arguments)`` stands for.

    Raises:
        UnsafeCheckpointError: ``function`` is not one of the names that may be called.
        CheckpointError: it is, with arguments it never has in a package.
    """
    if not isinstance(function, Name) or function.qualified not in _CALLS:
        raise refuse(f"{_called(function)} to be called")
    if not isinstance(arguments, tuple):
        raise CheckpointError(f"the file is damaged: it calls {function} without a tuple of arguments")
    if len(arguments) <= MOST_ARGUMENTS:
        match (function.qualified, *arguments):
            case ("collections.OrderedDict",):
                # Python 3 fills it afterwards, item by item; a list of items here could be copied without end.
                return {}
            case ("fractions.Fraction", *parts):
                return fraction(tuple(parts))
            case (
                "torch._utils._rebuild_tensor_v2",
                StorageRef() as storage,
                offset,
                size,
                stride,
                _,
                _,
                *metadata,
            ):
                if not any(metadata):
                    return TensorSpec(storage, offset, size, stride)
            case ("torch._utils._rebuild_parameter", TensorSpec() as tensor, _, _):
                return tensor
            case ("torch.Size", tuple(size)):
                return size
            case ("numpy.dtype", str(kind), *_) if kind in _NUMBERS:
                return _NumpyType(_NUMBERS[kind])
            case (
                "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar",
                _NumpyType(letter, order),
                bytes(data),
            ) if struct.calcsize(order + letter) == len(data):
                return struct.unpack(order + letter, data)[0]
            case ("_codecs.encode", str(text), "latin1" | "latin-1"):
                # How protocol 2 writes bytes. A number has at most 8 of them.
                if len(text) <= 8 and all(ord(character) < 256 for character in text):
                    return text.encode("latin-1")
    if function.qualified == "_codecs.encode":
        raise refuse("_codecs.encode of something that is not the bytes of a number")
    raise CheckpointError(_CALLS[function.qualified], RESAVE)


def build(target: object, state: object) -> None:
    """What "set the state of this object" (the pickle's BUILD) stands for.

    Two objects of a package have one: an ``OrderedDict`` from ``state_dict()`` (version numbers of the
    modules, of no use here) and a numpy dtype (its byte order).
    """
    if isinstance(target, dict) and isinstance(state, dict) and set(state) <= {"_metadata"}:
        return
    if isinstance(target, _NumpyType) and isinstance(state, tuple) and len(state) > 1:
        order = {"<": "<", ">": ">", "|": "<"}.get(str(state[1]))
        if order:
            target.order = order
            return
    raise refuse(f"the state of {_called(target)} to be set")


def _called(thing: object) -> str:
    if isinstance(thing, Name):
        return shown(thing.qualified, 300)
    return f"a {type(thing).__name__}"
