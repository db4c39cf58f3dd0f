"""The bundles that are measured: found or exported here, grouped by model and batch, with their reference."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.load import LoadedModel, reload, untrained_model
from mrsep_deploy.measuring.probe import probe_signal

UNTRAINED = ("htdemucs_n", "mrhdemucs")
LAYOUTS: tuple[Layout, ...] = ("split", "whole")
CHECKPOINTS = "checkpoints"
SEED = 0


@dataclass(frozen=True)
class Group:
    """One model at one batch size, in one or both layouts."""

    name: str
    bundles: tuple[Bundle, ...]
    checkpoint: Path | None

    @property
    def mix(self) -> NDArray[np.float32]:
        """The signal all of it is measured on, ``[b, C, L]``."""
        manifest = self.bundles[0].manifest
        model = manifest.model
        probe = probe_signal(model.audio_channels, model.segment_samples, model.sample_rate)
        return np.stack(
            [np.roll(probe, item * model.segment_samples // 3, -1) for item in range(manifest.batch)]
        )

    def model(self) -> SeparationModel:
        """The model itself, on the GPU."""
        loaded = reload(self.bundles[0].manifest.provenance, self.checkpoint)
        return loaded.model.eval().to("cuda")


def reference(model: SeparationModel, mix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Stems ``[b, S, C, L]`` in float64, every step of it."""
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()
        stems = exact(torch.from_numpy(mix).to("cuda", torch.float64))
    result: NDArray[np.float64] = stems.cpu().numpy()
    del exact, stems
    torch.cuda.empty_cache()
    return result


def find_groups(folder: Path, kinds: Sequence[str], batches: Sequence[int]) -> list[Group]:
    """The bundles below a folder, of untrained or trained models or both, at every batch.

    Raises:
        BundleError: one of them is damaged.
    """
    found: dict[str, list[Bundle]] = {}
    for manifest in sorted(folder.glob("*/manifest.json")):
        bundle = Bundle.open(manifest.parent)
        if ("trained" if bundle.manifest.model.trained else "untrained") in kinds:
            found.setdefault(_origin(bundle), []).append(bundle)
    return [
        _group([bundle.at_batch(batch) for bundle in bundles], folder)
        for bundles in found.values()
        for batch in batches
    ]


def _origin(bundle: Bundle) -> str:
    origin = bundle.manifest.provenance
    return json.dumps([origin.get("untrained"), _sha256(origin)], sort_keys=True, default=str)


def _sha256(origin: Any) -> str:
    recorded = origin.get("checkpoint") or {}
    return str(recorded.get("sha256", ""))


def _group(bundles: Sequence[Bundle], folder: Path) -> Group:
    manifest = bundles[0].manifest
    kind = "trained" if manifest.model.trained else "untrained"
    checkpoint = None
    if manifest.model.trained:
        wanted = _sha256(manifest.provenance)
        places = sorted((folder / CHECKPOINTS).glob("*"))
        checkpoint = next((p for p in places if hashlib.sha256(p.read_bytes()).hexdigest() == wanted), None)
        if checkpoint is None:
            raise CheckpointError(
                f"the checkpoint of {manifest.name} (sha256 {wanted[:16]}…) is not in {CHECKPOINTS}",
                "Make the folder with: gpu_acceptance.py prepare --models untrained,trained.",
            )
    ordered = sorted(bundles, key=lambda bundle: LAYOUTS.index(bundle.manifest.layout))
    name = f"{manifest.model.family} {kind}, batch {manifest.batch}"
    return Group(name, tuple(ordered), checkpoint)


def export(loaded: LoadedModel, name: str, folder: Path) -> list[Path]:
    """Export a model in both layouts; what is there already stays."""
    places = []
    for layout in LAYOUTS:
        target = folder / f"{name}-{layout}"
        if not (target / "manifest.json").exists():
            export_model(loaded, target.name, target, ExportOptions(layout))
        places.append(target)
    return places


def export_untrained(family: str, folder: Path) -> list[Path]:
    """:func:`export` of a family at the paper's size with seeded random weights."""
    return export(untrained_model(family, SEED), family, folder)
