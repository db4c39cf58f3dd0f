"""Packages in a ``.safetensors`` file, the way demucs 4.1 publishes them.

The tensors lie in the file by name; its metadata has ``klass`` as text, ``args`` and ``kwargs`` as JSON, in
which a fraction is ``{"_type": "fraction", "numerator": 39, "denominator": 5}``. Offsets and lengths are
checked by the safetensors library: tensors neither overlap nor leave the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.allowed import DIFFQ_FIX, STORAGES
from mrsep_deploy.export.checkpoint.files import damage
from mrsep_deploy.export.checkpoint.recipes import WITH_CONFIGURATION
from mrsep_deploy.export.checkpoint.storages import MAX_TENSORS, Package, finished, refuse_quantised
from mrsep_deploy.export.checkpoint.values import MAX_WEIGHT, fraction, shown

MAX_HEADER = 8 * 2**20  # bytes of JSON; the published files have some tens of thousands
_NAMES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_DTYPES = dict(zip(_NAMES, STORAGES.values(), strict=True))
_TORN = "the file is truncated or not a safetensors file"
_ERRORS = (SafetensorError, OSError, ValueError, RuntimeError)
_FIX = "use the .th package, or add klass, args and kwargs to the file's metadata as demucs' own export does"


def looks_like_safetensors(head: bytes, file_bytes: int) -> bool:
    """Whether a file starts with the length of a header that fits into it, and the header with a brace."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= file_bytes - 8


def read_safetensors(path: Path, head: bytes, file_bytes: int, bare: bool = False) -> Package:
    """Read a package; ``head`` is how the file starts, at least its first 8 bytes.

    With ``bare``, a file without a class gives a package whose value is the state alone: its names.

    Raises:
        CheckpointError: damaged, without klass, args and kwargs, quantised, or with values no model has.
    """
    header = int.from_bytes(head[:8], "little")
    if header > MAX_HEADER and looks_like_safetensors(head, file_bytes):
        raise CheckpointError(f"the header has {header:,} bytes, expected at most {MAX_HEADER:,}")
    with damage(_TORN, _ERRORS, 200), safe_open(str(path), framework="pt") as file:
        metadata, names = file.metadata() or {}, list(file.keys())
    _check(metadata, names, bare)
    if bare and "klass" not in metadata:
        return Package(names, lambda _: _tensors(path, names))
    value = {key: _json(metadata[key], key) for key in ("args", "kwargs")}
    return Package({**value, "klass": metadata["klass"], "state": names}, lambda _: _tensors(path, names))


def _tensors(path: Path, names: Iterable[str]) -> tuple[dict[str, torch.Tensor], set[str]]:
    with damage(_TORN, _ERRORS, 200), safe_open(str(path), framework="pt") as file:
        stored = {name: file.get_slice(name).get_dtype() for name in names}
        for name, dtype in stored.items():
            if dtype not in _DTYPES:
                raise CheckpointError(
                    f"the tensor {shown(name)} has the type {shown(dtype)}, expected one of {', '.join(_DTYPES)}"
                )
        # A clone, because the tensor of the library is a window into the file.
        tensors = {name: finished(name, file.get_tensor(name).clone()) for name in names}
    return tensors, {_DTYPES[dtype] for dtype in stored.values()}


def _check(metadata: dict[str, str], names: list[str], bare: bool) -> None:
    if "structure" in metadata:
        raise CheckpointError("the weights are stored as DiffQ codes, expected plain tensors", DIFFQ_FIX)
    refuse_quantised(names)
    missing = [key for key in ("klass", "args", "kwargs") if key not in metadata]
    if missing and not (bare and "klass" in missing):
        raise CheckpointError(
            f"the metadata lacks {', '.join(missing)}: a bare state dict, expected a package",
            WITH_CONFIGURATION + _FIX,
        )
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"the file has {len(names):,} tensors, expected at most {MAX_TENSORS:,}")


def _json(text: str, what: str) -> object:
    if len(text) > MAX_WEIGHT:
        raise CheckpointError(f"{what} in the metadata has more than {MAX_WEIGHT:,} characters")
    try:
        return json.loads(text, object_hook=_fraction)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} in the metadata is not JSON ({shown(error)})", _FIX) from error


def _fraction(found: dict[str, object]) -> object:
    if found.get("_type") == "fraction":
        return fraction((found.get("numerator"), found.get("denominator")))
    return found
