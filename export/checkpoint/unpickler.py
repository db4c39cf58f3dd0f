"""A reader of pickles that can only produce plain data.

A pickle is a program for a small stack machine. Python's own machine imports whatever the program names,
looks up registered extensions, trusts every length and index, and allocates for them beforehand. This one
runs the few dozen instructions a package is made of; names and calls go to ``allowed`` and end there.

Memory stays within a small multiple of the pickle's length: an instruction adds one object at most, none
copies a container or a text, and both the instructions and the bytes are counted.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.allowed import StorageRef, build, call, persistent, refuse, resolve
from mrsep_deploy.export.checkpoint.files import AGAIN
from mrsep_deploy.export.checkpoint.values import shown

MAX_BYTES = 8 * 2**20  # the published packages have 40 to 65 thousand
MAX_INSTRUCTIONS = 500_000  # and about twenty thousand
MAX_INT_BITS = 128  # the mark at the start of an old torch file has 77

_TORN = "the file is damaged or truncated"
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)


@dataclass(frozen=True)
class Unpickled:
    """A pickle's value, the storages it declares by key, and the number of bytes it took."""

    value: object
    storages: dict[str, StorageRef]
    length: int


def unpickle(data: bytes, classes: Collection[str]) -> Unpickled:
    """Read the pickle at the start of ``data``; bytes after its end are left alone.

    Args:
        data: the pickle.
        classes: qualified names of the model classes that it may name.

    Raises:
        UnsafeCheckpointError: it names or calls something a package has no use for.
        CheckpointError: it is damaged, truncated or larger than any package.
    """
    machine = _Machine(classes)
    source = io.BytesIO(data[: MAX_BYTES + 1])
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(source)):
            if count >= MAX_INSTRUCTIONS:
                raise CheckpointError(f"the pickle has more than {MAX_INSTRUCTIONS:,} instructions")
            machine.run(instruction.name, argument)
        length = source.tell()
        value = machine.stack.pop()
    # Warning: a wrong escape in a text, where the interpreter turns warnings into errors.
    except (ValueError, IndexError, KeyError, Warning) as error:
        if source.tell() > MAX_BYTES:
            raise _too_long() from error
        raise CheckpointError(f"{_TORN}: its pickle stops making sense", AGAIN) from error
    if length > MAX_BYTES:
        raise _too_long()
    return Unpickled(value, machine.storages, length)


def _too_long() -> CheckpointError:
    return CheckpointError(f"the pickle is longer than {MAX_BYTES:,} bytes, more than any package needs")


class _Machine:
    """The stack, the marks on it and the memo. An index that does not exist raises Index- or KeyError."""

    def __init__(self, classes: Collection[str]) -> None:
        self.classes = classes
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[object, object] = {}
        self.storages: dict[str, StorageRef] = {}
        push = self.stack.append
        self.steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
            **dict.fromkeys(_VALUES, self.value),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda index: push(self.memo[index])),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self.remember),
            "MEMOIZE": lambda _: self.remember(len(self.memo)),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "POP": lambda _: self.pop(),
            "POP_MARK": lambda _: self.since_mark().clear(),
            "DUP": lambda _: push(self.stack[-1]),
            "EMPTY_TUPLE": lambda _: push(()),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "TUPLE": lambda _: push(tuple(self.since_mark())),
            "TUPLE1": lambda _: push(tuple(self.last(1))),
            "TUPLE2": lambda _: push(tuple(self.last(2))),
            "TUPLE3": lambda _: push(tuple(self.last(3))),
            "LIST": lambda _: push(self.since_mark()),
            "DICT": lambda _: self.make_dict(self.since_mark()),
            "APPEND": lambda _: self.append(self.last(1)),
            "APPENDS": lambda _: self.append(self.since_mark()),
            "SETITEM": lambda _: self.set_items(self.last(2)),
            "SETITEMS": lambda _: self.set_items(self.since_mark()),
            "GLOBAL": lambda named: push(resolve(self.classes, *named.split(" ", 1))),
            "STACK_GLOBAL": lambda _: push(resolve(self.classes, *self.last(2))),
            "REDUCE": lambda _: push(call(*self.last(2))),
            "BUILD": lambda _: self.build(*self.last(1)),
            "BINPERSID": lambda _: self.persistent(*self.last(1)),
        }

    def run(self, name: str, argument: object) -> None:
        if name in self.steps:
            self.steps[name](argument)
        elif name == "INST":
            raise refuse(f"{shown(str(argument).replace(' ', '.', 1), 300)} to be called")
        elif name in ("EXT1", "EXT2", "EXT4"):
            raise refuse(f"number {shown(argument)} of the extensions registered with copyreg")
        elif name in ("NEWOBJ", "NEWOBJ_EX", "OBJ"):
            named = [item for item in self.stack[-3:] if hasattr(item, "qualified")]
            what = f"an object of {named[-1]}" if named else "an object"
            raise refuse(f"{what} to be made (a whole pickled object, not a package)")
        else:
            raise refuse(f"the pickle instruction {name}")

    def value(self, value: object) -> None:
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise CheckpointError(f"the file holds an integer of {value.bit_length():,} bits")
        self.stack.append(value)

    def pop(self) -> None:
        # A mark lies on the stack like a value, and POP takes it away like one.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def since_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list[object]:
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def remember(self, index: object) -> None:
        self.memo[index] = self.stack[-1]

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise refuse(f"values to be appended to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise refuse(f"items to be set in a {type(target).__name__}")
        if len(items) % 2:
            raise IndexError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple nested a million deep would overflow the C stack.
            if key is not None and not isinstance(key, (str, int, float)):
                raise CheckpointError(f"a dict of the file has a {type(key).__name__} as a key")
            target[key] = value

    def make_dict(self, items: list[object]) -> None:
        self.stack.append({})
        self.set_items(items)

    def build(self, state: object) -> None:
        build(self.stack[-1], state)

    def persistent(self, identity: object) -> None:
        declared = persistent(self.classes, identity)
        if isinstance(declared, StorageRef) and self.storages.setdefault(declared.key, declared) != declared:
            raise CheckpointError(f"the storage {shown(declared.key)} is declared in two different ways")
        self.stack.append(declared)
