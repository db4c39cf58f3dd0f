"""Plain values of JSON as objects: dataclasses and other types say what is expected of every field.

What does not fit is a ``FormatError`` that names the field, shows what was found and says what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import repeat
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.strict_json import parse, shown

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
NAME_RULE = "up to 128 of A-Z a-z 0-9 _ . - that do not begin with . or -"
Name = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}\Z", description=NAME_RULE)]
Sha256 = Annotated[
    str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z", description="64 hexadecimal digits in lower case")
]

Kind = TypeVar("Kind")

_IN_WORDS = {
    "object": "an object",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    ">=": "of at least",
    "<=": "of at most",
    ">": "above",
    "<": "below",
}
"""Types and comparisons as msgspec names them, and as messages do."""
_FRACTION = re.compile(r"[0-9]{1,12}(/0*[1-9][0-9]{0,11})?")


def typed(value: object, kind: type[Kind], what: str, fix: str) -> Kind:
    """Returns plain values as an object of the type ``kind``; only text becomes another type, a fraction.

    Args:
        value: what ``parse`` returned, or a part of it.
        kind: a dataclass, a ``msgspec.Struct`` (with ``forbid_unknown_fields``, to refuse other keys), or any
            other type that msgspec can check. The description of a ``Meta`` is what messages expect.
        what: the subject of messages, in front of the field's path.
        fix: what to do when a field does not fit.

    Raises:
        FormatError: the first field that does not fit, what was found and what was expected.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_decoded)
    except msgspec.ValidationError as error:
        raise FormatError(_explained(value, kind, what, str(error)), fix) from error


def exactly(
    value: object, kind: type[Kind], what: str, fix: str, optional: Collection[str] = frozenset()
) -> Kind:
    """:func:`typed`, where objects hold every field of their dataclass, but for ``optional`` ones, and no other."""

    def compare(given: object, read: Any, where: str) -> None:
        if isinstance(given, dict):
            for field in read:
                if field not in given and field not in optional:
                    raise FormatError(f"{where} has no field {field!r}", fix)
            for field, each in given.items():
                if field in read:
                    compare(each, read[field], f"{where}.{field}")
                elif field not in optional:
                    raise FormatError(_unknown(where, field, read), fix)
        elif isinstance(given, list):
            for index, each in enumerate(given):
                compare(each, read[index], f"{where}[{index}]")

    found = typed(value, kind, what, fix)
    compare(value, msgspec.to_builtins(found, enc_hook=str), what)
    return found


def document(
    data: bytes,
    header: Mapping[str, object],
    kind: type[Kind],
    what: str,
    fix: str,
    optional: Collection[str] = frozenset(),
) -> Kind:
    """Returns what a file holds beside its header, which must be this one (``format``, ``format_version``)."""
    tree = parse(data, what, fix)
    if not isinstance(tree, dict):
        raise FormatError(f"{what} is {shown(tree)}, expected an object", fix)
    for field, expected in header.items():
        if field not in tree:
            raise FormatError(f"{what} has no field {field!r}", fix)
        found = tree.pop(field)
        if type(found) is not type(expected) or found != expected:
            raise FormatError(f"{what}.{field} is {shown(found)}, expected {expected!r}", fix)
    return exactly(tree, kind, what, fix, optional)


def _decoded(kind: type[object], value: object) -> object:
    """Returns a value as one of the types that msgspec leaves to us: anything at all, or a fraction."""
    if kind is object:
        return value
    if kind is Fraction and isinstance(value, str) and _FRACTION.fullmatch(value):
        return Fraction(value)
    raise ValueError(f"Expected {kind.__name__}")


def _complaint(value: object, kind: Any) -> str:
    """Returns msgspec's words about a value, empty if it fits."""
    try:
        msgspec.convert(value, kind, dec_hook=_decoded)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _explained(value: object, kind: Any, where: str, complaint: str) -> str:
    """Returns what is wrong with a value, in msgspec's words, or with the first of its parts that does not fit."""
    kind, meta = _bare(kind)
    for place, part, its_kind in _parts(value, kind):
        if its_complaint := _complaint(part, its_kind):
            return _explained(part, its_kind, where + place, its_complaint)
    if complaint.startswith("Object "):  # "Object missing required field `x`"
        field = complaint[complaint.index("`") + 1 : -1]
        return (
            f"{where} has no field {field!r}"
            if "missing" in complaint
            else _unknown(where, field, get_type_hints(kind))
        )
    if isinstance(value, (list, dict)) and "length" in complaint and meta.max_length is not None:
        return f"{where} has {len(value)} entries, expected {meta.min_length or 0} to {meta.max_length}"
    if meta.description:
        expected = meta.description
    elif get_origin(kind) is Literal:
        expected = "one of " + ", ".join(map(str, get_args(kind)))
    elif kind in (int, float) and meta.ge is not None and meta.le is not None:
        expected = f"{_IN_WORDS[kind.__name__]} from {meta.ge} to {meta.le}"
    else:  # "Expected `int`, got `str`"
        expected = complaint.removeprefix("Expected ").partition(", got ")[0]
        expected = re.sub("`([^`]*)`|(?<= )[<>]=?(?= )", _in_words, expected)
    return f"{where} is {shown(value)}, expected {expected}"


def _unknown(where: str, field: str, known: Iterable[str]) -> str:
    return f"{where} has an unknown field {shown(field)}, expected {', '.join(known)}"


def _in_words(found: re.Match[str]) -> str:
    word = (found[1] or found[0]).removesuffix(" | null")  # whether a field is optional
    return _IN_WORDS.get(word, word)


def _bare(kind: Any) -> tuple[Any, msgspec.Meta]:
    """Returns a type that may be annotated or optional without either, and what the annotation says."""
    meta = msgspec.Meta()
    while get_origin(kind) in (Annotated, Union, UnionType):
        meta = next(
            (each for each in getattr(kind, "__metadata__", ()) if isinstance(each, msgspec.Meta)), meta
        )
        kind = get_args(kind)[0]
    return kind, meta


def _parts(value: object, kind: Any) -> Iterator[tuple[str, object, Any]]:
    """Yields the parts of a value that have a type of their own, each with its place and that type."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, dict) and origin in (dict, Mapping):
        for key, each in value.items():
            yield ": a key", key, inner[0]
            yield f"[{shown(key)}]", each, inner[1]
    elif isinstance(value, dict) and isinstance(kind, type):
        hints = get_type_hints(kind, include_extras=True)
        yield from ((f".{name}", value[name], each) for name, each in hints.items() if name in value)
    elif isinstance(value, list) and origin in (list, tuple):
        kinds = repeat(inner[0]) if origin is list or inner[1] is ... else inner
        for index, (each, its_kind) in enumerate(zip(value, kinds, strict=False)):
            yield f"[{index}]", each, its_kind
