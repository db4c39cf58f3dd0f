"""Bags: several models whose stems are averaged, described by a small YAML file beside them.

    models: ['f7e0c4bc', 'd12395a8']        signatures, in order
    weights: [[1., 0.], [0., 1.]]           per model, one number per source; all equal if absent
    segment: 44                             seconds; the models' own if absent

A signature stands for ``SIG.th``, ``SIG-CHECKSUM.th`` or ``SIG.safetensors`` in the same folder; CHECKSUM is
how the sha256 of that file begins.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.files import AGAIN, about, opened, sha256
from mrsep_deploy.export.checkpoint.values import shown

MAX_BYTES = 2**16
MAX_MODELS = 64
_KEYS = ("models", "weights", "segment")
_FIX = "correct the bag file"
_SIGNATURE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CHECKSUM = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Bag:
    """Models to be averaged.

    Attributes:
        models: their files, in order.
        weights: [model][source], how much each model counts for each source; None: all the same.
        segment: seconds per segment, if the bag sets it.
        path: the YAML file.
    """

    models: tuple[Path, ...]
    weights: tuple[tuple[float, ...], ...] | None
    segment: float | None
    path: Path


def read_bag(path: str | os.PathLike[str]) -> Bag:
    """Read a bag and find its models; their checksums are verified, the models themselves are not read.

    Raises:
        CheckpointError: the file is no bag, a model is missing, ambiguous or damaged, or the weights do not
            match the models.
    """
    path = Path(path)
    with about(path):
        content = _content(path)
        if "models" not in content or not set(content) <= set(_KEYS):
            keys = ", ".join(shown(key, 40) for key in list(content)[:8]) or "none"
            raise CheckpointError(
                f"its keys are {keys}; expected models and optionally weights, segment", _FIX
            )
        signatures = _signatures(content["models"])
        weights = _weights(content.get("weights"), len(signatures))
        segment = _segment(content.get("segment"))
        models = tuple(_model_file(path.parent, signature) for signature in signatures)
    return Bag(models, weights, segment, path)


def _content(path: Path) -> dict[object, object]:
    with opened(path) as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise CheckpointError(f"it has more than {MAX_BYTES:,} bytes, expected a short list of models", _FIX)
    try:
        content = yaml.safe_load(text)
    # Beside its own errors, the library lets those through that making a date or a number of a text raises.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"it is not YAML ({shown(error, 200)})", _FIX) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"it holds a {type(content).__name__}, expected models, weights and segment", _FIX
        )
    return content


def _signatures(found: object) -> list[str]:
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_MODELS:
        raise CheckpointError(f"models is no list of 1 to {MAX_MODELS} signatures", _FIX)
    for signature in found:
        if not isinstance(signature, str):
            # YAML reads 92202414 as a number, and 01234567 as an octal one.
            kind = type(signature).__name__
            raise CheckpointError(f"models has a {kind}, expected signatures", "put the signatures in quotes")
        if not _SIGNATURE.fullmatch(signature):
            raise CheckpointError(
                f"models has the signature {shown(signature)!r}, expected letters, digits, dots and dashes",
                _FIX,
            )
    return found


def _model_file(folder: Path, signature: str) -> Path:
    """The one file in ``folder`` that has this signature."""
    try:
        found = sorted(file for file in folder.iterdir() if _is_named(file, signature) and file.is_file())
    except OSError as error:
        raise CheckpointError(f"the folder {folder} cannot be listed", "change its permissions") from error
    if not found:
        raise CheckpointError(
            f"the model {signature} is missing: {folder} has no {signature}.th, {signature}-CHECKSUM.th or "
            f"{signature}.safetensors",
            "put the file beside the bag",
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"the model {signature} is ambiguous: {names}", "keep one of these files")
    _verify(found[0], checksum=found[0].stem[len(signature) + 1 :])
    return found[0]


def _is_named(file: Path, signature: str) -> bool:
    if file.suffix not in (".th", ".safetensors"):
        return False
    before, _, after = file.stem.rpartition("-")
    return file.stem == signature or (before == signature and _CHECKSUM.fullmatch(after) is not None)


def _verify(model: Path, checksum: str) -> None:
    if not checksum:
        return
    with opened(model) as file:
        actual = sha256(file)[: len(checksum)]
    if actual != checksum:
        raise CheckpointError(
            f"the sha256 of {model.name} starts with {actual}, expected {checksum}: the file is damaged",
            AGAIN,
        )


def _weights(found: object, models: int) -> tuple[tuple[float, ...], ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != models:
        count = f"{len(found)} rows" if isinstance(found, list) else f"a {type(found).__name__}"
        raise CheckpointError(f"weights has {count}, expected one row for each of the {models} models", _FIX)
    rows = [_row(index, row) for index, row in enumerate(found)]
    if len({len(row) for row in rows}) != 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise CheckpointError(f"weights has rows of {lengths} numbers, expected one per source in each", _FIX)
    for source, column in enumerate(zip(*rows, strict=True)):
        if not sum(column) > 0:
            raise CheckpointError(
                f"weights of source {source} add up to {sum(column)}, expected above 0", _FIX
            )
    return tuple(rows)


def _row(index: int, row: object) -> tuple[float, ...]:
    numbers = [_number(value) for value in row] if isinstance(row, list) else []
    finite = tuple(number for number in numbers if number is not None)
    if not finite or len(finite) != len(numbers):
        raise CheckpointError(f"row {index} of weights is not a list of finite numbers", _FIX)
    return finite


def _segment(found: object) -> float | None:
    if found is None:
        return None
    seconds = _number(found)
    if seconds is None or not seconds > 0:
        raise CheckpointError(f"segment is {shown(found)}, expected a number of seconds above 0", _FIX)
    return seconds


def _number(value: object) -> float | None:
    """``value`` as a finite float, or None; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return None
    return float(value)
