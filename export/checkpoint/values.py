"""Plain values: what a checkpoint may hold besides tensors.

None, bool, int, float, str, ``Fraction``, and lists, tuples and dicts of them. A hostile file can make a
few bytes stand for billions of values (a list that holds the same list twice, thirty levels deep, or
itself), so a value is copied under a budget and a depth limit before anybody walks over it.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TypeGuard

from mrsep_deploy.errors import CheckpointError

MAX_DEPTH = 32
MAX_WEIGHT = 250_000  # values plus characters, all together
MAX_INT = 2**63
NO_FRACTION = "a fraction is written as something else than two 64-bit integers"
_FRACTION = re.compile(r"-?[0-9]{1,18}(/[0-9]{1,18})?")


def shown(value: object, limit: int = 100) -> str:
    """``value`` as printable ASCII of at most about ``limit`` characters, for a message."""
    if isinstance(value, (list, dict)):  # a small one may be endless when written out
        return f"a {type(value).__name__}"
    try:
        full = str(value)
    except ValueError:  # an integer of thousands of digits
        full = "a huge number"
    return ascii(full[:limit])[1:-1] + ("..." if len(full) > limit else "")


def fraction(parts: tuple[object, ...]) -> Fraction:
    """A ``Fraction`` from ``("39/5",)`` or ``(39, 5)``; anything longer than 64-bit parts is refused.

    ``Fraction("1e999999999")`` alone would fill the memory: only the form that ``str`` gives is read.
    """
    if len(parts) == 1 and isinstance(parts[0], str) and _FRACTION.fullmatch(parts[0]):
        top, _, bottom = parts[0].partition("/")
        parts = (int(top), int(bottom or 1))
    if len(parts) == 1:
        parts = (*parts, 1)
    if len(parts) == 2:
        numerator, denominator = parts
        if _is_small(numerator) and _is_small(denominator) and denominator != 0:
            return Fraction(numerator, denominator)
    raise CheckpointError(NO_FRACTION)


def _is_small(value: object) -> TypeGuard[int]:
    return type(value) is int and -MAX_INT <= value < MAX_INT


def plain(value: object, what: str) -> object:
    """A copy of ``value`` in plain values only.

    Args:
        what: the name to use in an error, such as ``kwargs``.

    Raises:
        CheckpointError: something else is in it, it is nested too deep or it is absurdly large.
    """
    left = MAX_WEIGHT

    def copy(value: object, depth: int) -> object:
        nonlocal left
        left -= 1 + (len(value) if isinstance(value, str) else 0)
        if left < 0:
            raise CheckpointError(f"{what} holds more than {MAX_WEIGHT:,} values and characters")
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{what} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, list):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple([copy(item, depth + 1) for item in value])
        if isinstance(value, dict):
            return {_scalar(key, what): copy(item, depth + 1) for key, item in value.items()}
        return _scalar(value, what)

    return copy(value, 0)


def _scalar(value: object, what: str) -> object:
    if value is None or isinstance(value, (bool, float, str, Fraction)) or _is_small(value):
        return value
    if isinstance(value, int):
        raise CheckpointError(f"{what} holds an integer of more than 64 bits")
    raise CheckpointError(
        f"{what} holds {shown(value) if hasattr(value, 'qualified') else type(value).__name__}, "
        "expected numbers, texts, lists and dicts only",
        "save the package again with plain values (OmegaConf.to_container for a configuration)",
    )


def plain_dict(value: object, what: str) -> dict[str, object]:
    """``plain`` for a dict whose keys are texts."""
    copied = plain(value, what)
    if not isinstance(copied, dict) or not all(isinstance(key, str) for key in copied):
        raise CheckpointError(f"{what} is {type(copied).__name__}, expected a dict with names as keys")
    return copied
