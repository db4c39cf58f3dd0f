"""Bags of checkpoints: the models that a small YAML file beside them names by their signatures.

    models: ['f7e0c4bc', 'd12395a8']        (``bundle.bag_file`` has all of its keys)

A signature stands for ``SIG.th``, ``SIG-CHECKSUM.th`` or ``SIG.safetensors`` in the same folder; CHECKSUM is
how the sha256 of that file begins.
"""

from __future__ import annotations

import re
from pathlib import Path

from mrsep_deploy.bundle.bag_file import FIX, read_bag_file
from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.files import AGAIN, about, opened, sha256
from mrsep_deploy.export.checkpoint.values import shown
from mrsep_deploy.files.strict_json import raised_as

_SIGNATURE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CHECKSUM = re.compile(r"[0-9a-f]{8,64}")


def bag_models(path: Path) -> tuple[Path, ...]:
    """The files of a bag's models, in order; their checksums are verified, the models themselves are not read.

    Raises:
        CheckpointError: the file is no bag, a model is missing, ambiguous or damaged, or the weights do not
            match the models.
    """
    with about(path), raised_as(CheckpointError):
        signatures = read_bag_file(path).models
        for name in signatures:
            if not _SIGNATURE.fullmatch(name):
                raise CheckpointError(
                    f"models has the signature {shown(name)!r}, expected letters, digits, dots and dashes",
                    FIX,
                )
        return tuple(_model_file(path.parent, signature) for signature in signatures)


def bag_segment(path: Path) -> float | None:
    """The seconds of a segment that a bag asks for, if it does.

    Raises:
        CheckpointError: the file is no bag.
    """
    with about(path), raised_as(CheckpointError):
        return read_bag_file(path).segment


def _model_file(folder: Path, signature: str) -> Path:
    """Returns the one file in ``folder`` that has this signature."""
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
    (model,) = found
    checksum = model.stem[len(signature) + 1 :]
    with opened(model) as file:
        actual = sha256(file)[: len(checksum)] if checksum else ""
    if actual != checksum:
        raise CheckpointError(
            f"the sha256 of {model.name} starts with {actual}, expected {checksum}: the file is damaged",
            AGAIN,
        )
    return model


def _is_named(file: Path, signature: str) -> bool:
    if file.suffix not in (".th", ".safetensors"):
        return False
    before, _, after = file.stem.rpartition("-")
    return file.stem == signature or (before == signature and _CHECKSUM.fullmatch(after) is not None)
