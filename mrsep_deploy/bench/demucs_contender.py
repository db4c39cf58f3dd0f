"""The PyPI package demucs in a measuring process: its own class with a bundle's weights.

The weights come through this project's reader, not through demucs', which runs what is in a checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bench.contenders import Contender, Float32, Opened, class_in_demucs
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import CheckpointError, EngineUnavailableError, UsageError
from mrsep_deploy.separation.segments import SONG_EPS

INSTALL = "pip install demucs"


class DemucsContender(Opened):
    """A model class of the package demucs, eager on the CPU; songs through ``demucs.apply.apply_model``."""

    @classmethod
    def imports(cls, contender: Contender) -> None:
        try:
            import demucs.apply  # noqa: F401
        except (ImportError, OSError) as error:
            raise EngineUnavailableError(f"demucs cannot be imported ({error})", INSTALL) from error
        from mrsep_deploy.export import load  # noqa: F401  what loading needs

    def __init__(self, contender: Contender) -> None:
        import torch

        from mrsep_deploy.export.load import reload

        manifest = Bundle.open(contender.bundle).manifest
        qualified = class_in_demucs(manifest.model.family)
        if qualified is None:
            raise UsageError(f"the package demucs has no {manifest.model.family}", "Leave demucs out.")
        module, _, name = qualified.rpartition(".")
        torch.set_num_threads(contender.threads)
        self.contender = contender
        arguments, named = _arguments(manifest.provenance, contender.checkpoint)
        self.model: Any = getattr(importlib.import_module(module), name)(*arguments, **named)
        self.model.load_state_dict(reload(manifest.provenance, contender.checkpoint_path).model.state_dict())
        self.model.eval()

    def segments(self, mix: Float32) -> NDArray[Any]:
        import torch

        with torch.inference_mode():
            stems: NDArray[Any] = self.model(torch.from_numpy(mix)).numpy()
        return stems

    def song(self, mix: Float32) -> NDArray[Any]:
        """Without random shifts, normalised as ``demucs.api.Separator`` does."""
        import torch
        from demucs.apply import apply_model

        with torch.inference_mode():
            wav = torch.from_numpy(mix)
            mono = wav.mean(0)
            mean, deviation = mono.mean(), mono.std() + SONG_EPS
            stems = apply_model(
                self.model,
                ((wav - mean) / deviation)[None],
                shifts=0,
                split=True,
                overlap=self.contender.overlap,
            )
            separated: NDArray[Any] = (stems[0] * deviation + mean).numpy().astype(np.float32, copy=False)
        return separated

    def close(self) -> None:
        self.model = None


def _arguments(
    origin: Mapping[str, object], checkpoint: str | os.PathLike[str] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The constructor's arguments, as the checkpoint or the untrained model has them."""
    untrained, recorded = origin.get("untrained"), origin.get("checkpoint")
    with contextlib.suppress(KeyError, TypeError):  # a manifest may come from anyone
        if isinstance(untrained, Mapping):
            return (), dict(untrained["kwargs"])
        if isinstance(recorded, Mapping):
            from mrsep_deploy.export.checkpoint.read import read_checkpoint
            from mrsep_deploy.export.families import known_classes

            found = read_checkpoint(checkpoint or recorded["path"], known_classes())
            return found.args, found.kwargs
    raise CheckpointError("the bundle does not say how its model was made")
