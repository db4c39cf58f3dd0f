"""Writes a bundle's model for peers, which read it in environments of their own (``standalone/peer_worker.py``).

    weights/      the published state dict, a file of NumPy's for each name
    model.json    family, klass (its class in the package demucs, or null), args and kwargs of the class'
                  constructor, sources, sample_rate, channels, segment_samples

A fraction stands as ``{"fraction": "39/5"}``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mrsep_deploy.bench.contenders import class_in_demucs
from mrsep_deploy.bundle import shipped
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.errors import CheckpointError

WEIGHTS, MODEL = "weights", "model.json"


def write(manifest: Manifest, checkpoint: Path | None, folder: str) -> None:
    """Write both; needs torch.

    Args:
        checkpoint: where the checkpoint lies now, if it has moved since the export.
        folder: exists.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the bundle does not say how its model was made.
    """
    from mrsep_deploy.export.load import reload

    loaded = reload(manifest.provenance, checkpoint)
    args, kwargs = _arguments(manifest.provenance, checkpoint)
    model = {
        "family": manifest.model.family,
        "klass": class_in_demucs(manifest.model.family),
        "args": args,
        "kwargs": kwargs,
        "sources": manifest.model.sources,
        "sample_rate": manifest.model.sample_rate,
        "channels": manifest.model.audio_channels,
        "segment_samples": manifest.model.segment_samples,
    }
    Path(folder, WEIGHTS).mkdir()
    for name, value in loaded.model.state_dict().items():
        np.save(Path(folder, WEIGHTS, f"{name}.npy"), value.numpy())
    Path(folder, MODEL).write_text(json.dumps(model, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, Fraction):
        return {"fraction": str(value)}
    raise CheckpointError(f"the model was made with a {type(value).__name__}, expected plain values")


def _arguments(
    origin: Mapping[str, Any], checkpoint: Path | None
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The constructor's arguments, as the checkpoint, its configuration or the untrained model has them."""
    from mrsep_deploy.export.checkpoint.read import read_checkpoint
    from mrsep_deploy.export.families import known_classes

    untrained, recorded = origin.get("untrained"), origin.get("checkpoint")
    with contextlib.suppress(KeyError, TypeError):  # a manifest may come from anyone
        if isinstance(untrained, Mapping):
            return (), dict(untrained["kwargs"])
        if isinstance(recorded, Mapping):
            changed = {"segment": recorded["segment"]} if "segment" in recorded else {}
            if isinstance(recorded.get("kwargs"), Mapping):
                return (), {**recorded["kwargs"], **changed}
            path = checkpoint or Path(recorded["path"])
            found = read_checkpoint(
                shipped.CHECKPOINT if path == Path(shipped.CHECKPOINT.name) else path, known_classes()
            )
            return found.args, {**found.kwargs, **changed}
    raise CheckpointError("the bundle does not say how its model was made")
