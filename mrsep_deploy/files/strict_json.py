"""Strict JSON: bounded, without duplicate keys or NaN.

``parse`` turns text into plain values and refuses what JSON parsers usually let pass; ``typed_json`` turns these into
objects. What does not fit is a ``FormatError``, which ``raised_as`` turns into the error of what is read. ``plain``
and ``dumped`` go the other way.
"""

from __future__ import annotations

import json
import math
import numbers
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from mrsep_deploy.errors import FormatError, MrsepError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 48
MAX_DIGITS = 40
MAX_LINE = 100


def parse(text: str | bytes, what: str, fix: str) -> object:
    """Plain values of a JSON text.

    Args:
        text: the JSON, at most 16 MiB; bytes are UTF-8.
        what: what the text is, the subject of every message ("manifest").
        fix: what to do when it is damaged.

    Raises:
        FormatError: syntax, duplicate keys, NaN or infinity, nesting deeper than 48, lone surrogates, other bytes.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{what} is not UTF-8 text: {error}", fix) from error
    if len(text) > MAX_BYTES:
        raise FormatError(f"{what} has {len(text)} characters, expected at most {MAX_BYTES}", fix)
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short_integer,
        )
    except RecursionError as error:
        raise FormatError(f"{what} is nested deeper than {MAX_DEPTH} levels", fix) from error
    except ValueError as error:
        raise FormatError(f"{what} is not valid JSON: {error}", fix) from error
    _check_tree(value, what, fix)
    return value


@contextmanager
def raised_as(error: type[MrsepError]) -> Iterator[None]:
    """Raises a ``FormatError`` as another error, with the same message; a ``with`` block or a decorator."""
    try:
        yield
    except FormatError as found:
        raise error(found.message, found.fix) from found


def plain(value: object) -> Any:
    """Returns dataclasses and structs, and what holds them, as plain values that JSON can hold.

    Infinities and NaN, for which JSON has no word, become None; paths and fractions become text.
    """
    return _without_infinities(msgspec.to_builtins(value, enc_hook=_encoded))


def _encoded(value: object) -> object:
    if isinstance(value, (str, Path, Fraction)):  # texts of other types, too: versions of libraries
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, numbers.Real):  # one of NumPy's
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    raise TypeError(f"JSON cannot hold {type(value).__name__}")


def _without_infinities(value: object) -> object:
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {key: _without_infinities(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(each) for each in value]
    return value


def dumped(value: object) -> str:
    """Returns a value as indented JSON (:func:`plain`); what UTF-8 cannot hold, as in odd file names, is escaped."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def pretty(value: object, indent: int = 0) -> str:
    """Returns JSON of plain values: one line for what fits on one and holds no object within an object."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, (dict, list)) or not value:
        return line
    inner = list(value.values()) if isinstance(value, dict) else value
    if len(line) + indent <= MAX_LINE and not any(isinstance(item, dict) for item in inner):
        return line
    names = (
        [f"{json.dumps(key, ensure_ascii=False)}: " for key in value]
        if isinstance(value, dict)
        else [""] * len(value)
    )
    pad = " " * (indent + 2)
    rows = [f"{pad}{name}{pretty(item, indent + 2)}" for name, item in zip(names, inner, strict=True)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(rows) + f"\n{' ' * indent}{closing}"


def written(header: Mapping[str, object], content: object) -> bytes:
    """Returns the file that ``document`` reads."""
    return f"{dumped({**header, **plain(content)})}\n".encode()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} appears twice")
        found[key] = value
    return found


def finite(number: float | None) -> float | None:
    """A number as JSON can hold it: None in place of infinities and NaN, for which it has no word."""
    return number if number is not None and math.isfinite(number) else None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{shown(digits)} is out of range")
    return number


def _short_integer(digits: str) -> int:
    # int() is quadratic in the number of digits, and no count here has more than twenty
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, expected at most {MAX_DIGITS}")
    return int(digits)


def _check_tree(value: object, what: str, fix: str) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str) and not is_unicode(item):
                raise FormatError(f"{what} holds text that is not Unicode: {shown(item)}", fix)
        if not below:
            return
        level = below
    raise FormatError(f"{what} is nested deeper than {MAX_DEPTH} levels", fix)


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8."""
    # a lone surrogate, "\\ud800", is valid JSON, but no text that can be printed or written
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20


def shown(value: object) -> str:
    """A short, printable form of a value for a message; YAML can make lists endless, and integers huge."""
    try:
        text = _REPR.repr(value).encode("ascii", "backslashreplace").decode()
    except ValueError:  # an integer of thousands of digits
        text = "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
