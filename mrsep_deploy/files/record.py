"""One JSON object, read field by field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeVar

from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.strict_json import shown
from mrsep_deploy.files.typed_json import NAME, NAME_RULE

Choice = TypeVar("Choice", bound=str)


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
