"""The file of a bag: models that separate a song together, each with a weight for every source.

    models = ["f7e0c4bc", "d12395a8"]           # names; what they stand for, the reader's user knows
    weights = [[1, 0, 0, 0], [0, 1, 1, 1]]      # for each model, one for each source; all equal if left out
    segment = 6                                 # seconds; the models' own if left out

This is TOML; Demucs' own bags are YAML with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.reading import read_start, toml

SUFFIXES = (".toml", ".yaml", ".yml")
MAX_BYTES = 2**16
MAX_MODELS = 64

Weights = tuple[tuple[float, ...], ...]

_KEYS = ("models", "weights", "segment")
FIX = "correct the bag file"


@dataclass(frozen=True)
class BagFile:
    """What the file of a bag says.

    Attributes:
        models: their names, in order.
        weights: [model][source], how much each model counts for each source; None: all the same.
        segment: seconds per segment, if the bag sets it.
    """

    models: tuple[str, ...]
    weights: Weights | None
    segment: float | None


def read_bag_file(path: Path) -> BagFile:
    """Reads a bag; messages of errors do not name its file.

    Raises:
        FormatError: the file cannot be read, is no bag, or the weights do not match the models.
    """
    content = _content(path)
    if "models" not in content or not set(content) <= set(_KEYS):
        keys = ", ".join(map(_shown, list(content)[:8])) or "none"
        raise FormatError(f"its keys are {keys}; expected models and optionally weights, segment", FIX)
    models = _models(content["models"])
    return BagFile(models, _weights(content.get("weights"), len(models)), _segment(content.get("segment")))


def _content(path: Path) -> Mapping[object, object]:
    try:
        data = read_start(path, MAX_BYTES)
    except OSError as error:
        raise FormatError(error.strerror or str(error), "check the path") from error
    if len(data) > MAX_BYTES:
        raise FormatError(f"it has more than {MAX_BYTES:,} bytes, expected a short list of models", FIX)
    kind = "TOML" if path.suffix.lower() == ".toml" else "YAML"
    parse = toml if kind == "TOML" else _yaml()
    try:
        content = parse(data)
    # PyYAML lets through whatever making a date or a number of a text raises.
    except Exception as error:
        raise FormatError(f"it is not {kind} ({str(error)[:200]})", FIX) from error
    if not isinstance(content, dict):
        raise FormatError(f"it holds a {type(content).__name__}, expected models, weights and segment", FIX)
    return content


def _yaml() -> Callable[[bytes], object]:
    try:
        import yaml
    except ImportError as error:
        raise FormatError(
            "a bag in YAML needs the package pyyaml, not installed here",
            "Run pip install pyyaml, or use TOML.",
        ) from error
    return lambda data: yaml.safe_load(data)


def _models(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_MODELS:
        raise FormatError(f"models is no list of 1 to {MAX_MODELS} names", FIX)
    for name in found:
        if not isinstance(name, str):
            # YAML reads 92202414 as a number, and 01234567 as an octal one.
            raise FormatError(
                f"models has a {type(name).__name__}, expected names", "put the names in quotes"
            )
    return tuple(found)


def _weights(found: object, models: int) -> Weights | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != models:
        count = f"{len(found)} rows" if isinstance(found, list) else f"a {type(found).__name__}"
        raise FormatError(f"weights has {count}, expected one row for each of the {models} models", FIX)
    rows = tuple(_row(index, row) for index, row in enumerate(found))
    if len({len(row) for row in rows}) != 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise FormatError(f"weights has rows of {lengths} numbers, expected one per source in each", FIX)
    for source, column in enumerate(zip(*rows, strict=True)):
        if not sum(column) > 0:
            raise FormatError(f"weights of source {source} add up to {sum(column)}, expected above 0", FIX)
    return rows


def _row(index: int, row: object) -> tuple[float, ...]:
    numbers = [_number(value) for value in row] if isinstance(row, list) else []
    finite = tuple(number for number in numbers if number is not None)
    if not finite or len(finite) != len(numbers):
        raise FormatError(f"row {index} of weights is not a list of finite numbers", FIX)
    return finite


def _segment(found: object) -> float | None:
    if found is None:
        return None
    seconds = _number(found)
    if seconds is None or not seconds > 0:
        raise FormatError(f"segment is {_shown(found)}, expected a number of seconds above 0", FIX)
    return seconds


def _number(value: object) -> float | None:
    """Returns ``value`` as a finite float, or None; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return None
    return float(value)


def _shown(value: object) -> str:
    """Returns a short form of a value for a message; of a list none at all: YAML can make it endless."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__}"
    try:
        return str(value)[:40]
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
