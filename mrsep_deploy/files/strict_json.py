"""Strict JSON: bounded, without duplicate keys or NaN, and read field by field.

``parse`` turns text into plain values and refuses what JSON parsers usually let pass. ``typed`` turns plain
values into a dataclass or ``msgspec.Struct`` by its annotations; ``Record`` reads one object field by field.
What does not fit is a ``FormatError`` that names the field, shows what was found and says what was expected.
``raised_as`` turns it into the error of what is read.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from mrsep_deploy.errors import FormatError, MrsepError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 48
MAX_DIGITS = 40

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
NAME_RULE = "up to 128 of A-Z a-z 0-9 _ . - that do not begin with . or -"

Choice = TypeVar("Choice", bound=str)
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
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


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


def typed(value: object, kind: type[Kind], what: str, fix: str) -> Kind:
    """Returns plain values as an object of the type ``kind``; no value is converted to another type.

    Args:
        value: what ``parse`` returned, or a part of it.
        kind: a dataclass, a ``msgspec.Struct`` (with ``forbid_unknown_fields``, to refuse other keys), or any
            other type that msgspec can check.
        what: the subject of messages, in front of the field's path.
        fix: what to do when a field does not fit.

    Raises:
        FormatError: the first field that does not fit, what was found and what was expected.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        complaint, _, path = str(error).partition(" - at `$")
        place, found = _at(value, kind, path.removesuffix("`"), str(error))
        if complaint.startswith("Expected "):  # "Expected `int`, got `str`"
            expected = complaint[9:].partition(", got ")[0]
            expected = re.sub("`([^`]*)`|(?<= )[<>]=?(?= )", _in_words, expected)
            raise FormatError(f"{what}{place} is {shown(found)}, expected {expected}", fix) from error
        complaint = complaint.replace("`", "")
        if complaint.startswith("Object "):  # "Object missing required field `x`"
            complaint = complaint.replace("Object missing required", "has no").replace(
                "Object contains", "has"
            )
            raise FormatError(f"{what}{place} {complaint}", fix) from error
        complaint = complaint[0].lower() + complaint[1:]
        raise FormatError(f"{what}{place} is {shown(found)}, {complaint}", fix) from error


def _in_words(found: re.Match[str]) -> str:
    word = found[1] or found[0]
    return _IN_WORDS.get(word, word)


def _at(value: object, kind: type[object], path: str, message: str) -> tuple[str, object]:
    """Returns msgspec's path of an error with the keys of mappings, which it leaves out, and the value there."""
    place, found = "", value
    for name, index in _STEP.findall(path):
        if name and isinstance(found, dict):
            place, found = f"{place}.{name}", found[name]
        elif isinstance(found, dict):
            key = _failing_key(value, kind, found, message)
            place, found = f"{place}[{shown(key)}]", found[key]
        elif isinstance(found, list):
            place, found = f"{place}[{index}]", found[int(index)]
    return place, found


def _failing_key(value: object, kind: type[object], mapping: dict[str, object], message: str) -> str:
    """Returns the key without which the error would be another one: the first that fails."""
    entries = dict(mapping)
    try:
        for key in entries:
            del mapping[key]
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                if str(error) == message:
                    continue
            return key
    finally:
        mapping.clear()
        mapping.update(entries)
    raise AssertionError(message)


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


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} appears twice")
            seen.add(key)
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


def shown(value: object) -> str:
    """A short, printable form of a value for a message."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Record:
    """One JSON object, read key by key.

    Args:
        value: what ``parse`` returned, or a part of it.
        where: the field's path, as ``stages[3]``.
        fix: what to do when a field does not fit.
        required, optional: the keys it has; any other key is refused.
    """

    def __init__(
        self, value: object, where: str, fix: str, required: Iterable[str], optional: Iterable[str] = ()
    ) -> None:
        self.where = where
        self.fix = fix
        if not isinstance(value, dict):
            raise FormatError(f"{where} is {shown(value)}, expected an object", fix)
        required, optional = tuple(required), tuple(optional)
        for key in required:
            if key not in value:
                raise FormatError(f"{where} has no field {key!r}", fix)
        for key in value:
            if key not in required and key not in optional:
                expected = ", ".join(required + optional)
                raise FormatError(f"{where} has an unknown field {shown(key)}, expected {expected}", fix)
        self._fields: dict[str, object] = value

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def wrong(self, key: str, expected: str) -> NoReturn:
        """Raise the error that says ``key`` is not what was expected."""
        raise FormatError(f"{self.where}.{key} is {shown(self._fields[key])}, expected {expected}", self.fix)

    def text(self, key: str, rule: re.Pattern[str], expected: str) -> str:
        """A string that the rule matches whole."""
        value = self._fields[key]
        if not isinstance(value, str) or rule.fullmatch(value) is None:
            self.wrong(key, expected)
        return value

    def name(self, key: str) -> str:
        """A name: letters, digits, ``_ . -``."""
        return self.text(key, NAME, NAME_RULE)

    def choice(self, key: str, choices: tuple[Choice, ...]) -> Choice:
        """One of a few words."""
        value = self._fields[key]
        found = [word for word in choices if word == value]
        if not found:
            self.wrong(key, "one of " + ", ".join(choices))
        return found[0]

    def flag(self, key: str) -> bool:
        """``true`` or ``false``."""
        value = self._fields[key]
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number, ``low <= n <= high``."""
        value = self._fields[key]
        if not _is_integer(value, low, high):
            self.wrong(key, f"a whole number from {low} to {high}")
        assert isinstance(value, int)
        return value

    def integers(self, key: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """A list of one to ``most`` whole numbers."""
        values = self._list(key, 1, most)
        if not all(_is_integer(value, low, high) for value in values):
            self.wrong(key, f"a list of whole numbers from {low} to {high}")
        return tuple(value for value in values if isinstance(value, int))

    def number(self, key: str, low: float, high: float) -> float:
        """A number, ``low <= x <= high``."""
        (value,) = as_numbers([self._fields[key]], f"{self.where}.{key}", self.fix)
        if not low <= value <= high:
            self.wrong(key, f"a number from {low:g} to {high:g}")
        return value

    def numbers(self, key: str, most: int) -> tuple[float, ...]:
        """A list of up to ``most`` finite numbers."""
        return as_numbers(self._list(key, 0, most), f"{self.where}.{key}", self.fix)

    def names(self, key: str, least: int, most: int) -> tuple[str, ...]:
        """A list of ``least`` to ``most`` different names."""
        values = self._list(key, least, most)
        names = tuple(value for value in values if isinstance(value, str) and NAME.fullmatch(value))
        if len(names) != len(values):
            self.wrong(key, f"a list of names ({NAME_RULE})")
        if len(set(names)) != len(names):
            self.wrong(key, "names that differ")
        return names

    def items(self, key: str, least: int, most: int) -> Iterator[tuple[str, object]]:
        """The members of a list, each with the path that names it."""
        for index, value in enumerate(self._list(key, least, most)):
            yield f"{self.where}.{key}[{index}]", value

    def mapping(self, key: str) -> dict[str, object]:
        """An object whose keys are free."""
        value = self._fields[key]
        if not isinstance(value, dict):
            self.wrong(key, "an object")
        return value

    def _list(self, key: str, least: int, most: int) -> list[object]:
        value = self._fields[key]
        if not isinstance(value, list):
            self.wrong(key, "a list")
        if not least <= len(value) <= most:
            message = f"{self.where}.{key} has {len(value)} entries, expected {least} to {most}"
            raise FormatError(message, self.fix)
        return value


def as_numbers(value: object, where: str, fix: str) -> tuple[float, ...]:
    """A list of numbers as floats; ``parse`` has already refused what is not finite."""
    if not isinstance(value, list) or any(
        isinstance(item, bool) or not isinstance(item, (int, float)) for item in value
    ):
        raise FormatError(f"{where} is {shown(value)}, expected a list of numbers", fix)
    return tuple(float(item) for item in value)


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
