"""The file of a bag: models that separate a song together, each with a weight for every source.

    models = ["f7e0c4bc", "d12395a8"]           # names; what they stand for, the reader's user knows
    weights = [[1, 0, 0, 0], [0, 1, 1, 1]]      # for each model, one for each source; all equal if left out
    segment = 6                                 # seconds; the models' own if left out

This is TOML; Demucs' own bags are YAML with the same keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.reading import read_start, toml
from mrsep_deploy.files.typed_json import typed

SUFFIXES = (".toml", ".yaml", ".yml")
BAG_FILE = "bag.toml"
"""Its name in a folder that holds a bag and the bundles of all its models."""
MAX_BYTES = 2**16
FIX = "correct the bag file"

Weights = tuple[tuple[float, ...], ...]

# YAML reads 92202414 as a number, and 01234567 as an octal one
_Name = Annotated[str, Meta(description="a name, in quotes if it looks like a number")]
_Weight = Annotated[float, Meta(ge=-1e300, le=1e300, description="a finite number")]
_Row = Annotated[tuple[_Weight, ...], Meta(min_length=1, max_length=MAX_BYTES)]


class BagFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What the file of a bag says.

    Attributes:
        models: their names, in order.
        weights: [model][source], how much each model counts for each source; None: all the same.
        segment: seconds per segment, if the bag sets it.
    """

    models: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=64)]
    weights: tuple[_Row, ...] | None = None
    segment: Annotated[float, Meta(gt=0, lt=1e300, description="a number of seconds above 0")] | None = None


def bag_in(folder: Path) -> Path | None:
    """Returns the file of the bag that a folder holds together with its models, if it is such a folder."""
    place = folder / BAG_FILE
    # os.path says no where a name is too long for the file system, pathlib raises
    return place if os.path.isfile(place) else None


def read_bag_file(path: Path) -> BagFile:
    """Reads a bag; messages of errors do not name its file.

    Raises:
        FormatError: the file cannot be read, is no bag, or the weights do not match the models.
    """
    bag = typed(_content(path), BagFile, "bag", FIX)
    if bag.weights is not None:
        _check_weights(bag.weights, len(bag.models))
    return bag


def _content(path: Path) -> object:
    try:
        data = read_start(path, MAX_BYTES)
    except OSError as error:
        raise FormatError(error.strerror or str(error), "check the path") from error
    if len(data) > MAX_BYTES:
        raise FormatError(f"it has more than {MAX_BYTES:,} bytes, expected a short list of models", FIX)
    kind = "TOML" if path.suffix.lower() == ".toml" else "YAML"
    parse = toml if kind == "TOML" else _yaml()
    try:
        return parse(data)
    # PyYAML lets through whatever making a date or a number of a text raises.
    except Exception as error:
        raise FormatError(f"it is not {kind} ({str(error)[:200]})", FIX) from error


def _yaml() -> Callable[[bytes], object]:
    try:
        import yaml
    except ImportError as error:
        raise FormatError(
            "a bag in YAML needs the package pyyaml, not installed here",
            "Run pip install pyyaml, or use TOML.",
        ) from error
    return lambda data: yaml.safe_load(data)


def _check_weights(weights: Weights, models: int) -> None:
    if len(weights) != models:
        raise FormatError(
            f"weights has {len(weights)} rows, expected one row for each of the {models} models", FIX
        )
    if len({len(row) for row in weights}) != 1:
        lengths = ", ".join(str(len(row)) for row in weights)
        raise FormatError(f"weights has rows of {lengths} numbers, expected one per source in each", FIX)
    for source, column in enumerate(zip(*weights, strict=True)):
        if not sum(column) > 0:
            raise FormatError(f"weights of source {source} add up to {sum(column)}, expected above 0", FIX)
