"""Inspects a bundle or a checkpoint: its parts, its costs, and its learnt weights of the resolutions.

A bundle is read with nothing but this package's own dependencies; a checkpoint needs the extra ``export``.

    >>> inspect("htdemucs").branches[0].window_ms                         # doctest: +SKIP
    92.87981859410431
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mrsep_deploy.bundle import ARCHIVE_SUFFIX, Bundle
from mrsep_deploy.bundle.manifest import (
    Branch,
    FusionShares,
    Gate,
    Layout,
    Manifest,
    ModelInfo,
    Stage,
    TensorSpec,
)
from mrsep_deploy.bundle.provenance import Check, Provenance
from mrsep_deploy.bundle.registry import resolve
from mrsep_deploy.separation.gate import gate_of

CHECKPOINT_SUFFIXES = (".th", ".pt", ".pth", ".ckpt", ".safetensors", ".yaml", ".yml")


@dataclass(frozen=True)
class StageReport:
    """One stage: what goes in and out, what it costs, and how far its graph is from PyTorch.

    ``macs`` are multiply-accumulates of the published model for one segment; ``check`` is None where nothing was
    measured.
    """

    name: str
    kind: str
    branch: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    macs: int
    check: Check | None


@dataclass(frozen=True)
class BranchReport:
    """One branch: how finely it sees time and frequency, and what its own stages cost.

    Attributes:
        window, hop: samples; 0 for the waveform branch.
        window_ms, hop_ms, bin_hz: the same as durations, and the distance of two bins; 0 for the waveform.
        bins, frames: of the spectrogram; 0 and the segment's samples for the waveform branch.
    """

    name: str
    window: int
    hop: int
    window_ms: float
    hop_ms: float
    bin_hz: float
    bins: int
    frames: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class FusionReport:
    """Learnt weights of the resolutions at one place, for one source or (None) for all.

    Attributes:
        where: ``bottleneck`` or ``output``.
        resolutions: names of the branches weighed.
        weights: share of each; they sum to one.
    """

    where: str
    source: str | None
    resolutions: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def entropy(self) -> float:
        """``-sum w log2 w`` in bits: 0 if one resolution does all, ``max_entropy`` if all count the same."""
        return math.fsum(-w * math.log2(w) for w in self.weights if w > 0)

    @property
    def max_entropy(self) -> float:
        """``log2 K`` for ``K`` resolutions."""
        return math.log2(len(self.weights))

    @property
    def evenness(self) -> float:
        """Entropy relative to its maximum; 1 for a single resolution."""
        return self.entropy / self.max_entropy if len(self.weights) > 1 else 1.0


@dataclass(frozen=True)
class Inspection:
    """Everything there is to say of a model.

    Attributes:
        layout, batch: of the bundle; what an export would take by default for a checkpoint.
        precision: the element type of the graphs.
        whole, whole_device: the check of the whole path, mix to stems, with the transforms of the host and
            with the graphs that take their place on a device.
        gates: which segments run in float32, by element type of lower precision (see ``separation.gate``).
        digest, opset, files: of a bundle only; sizes of files are bytes.
    """

    kind: Literal["bundle", "checkpoint"]
    path: Path
    name: str
    model: ModelInfo
    branches: tuple[BranchReport, ...]
    stages: tuple[StageReport, ...]
    fusion: tuple[FusionReport, ...]
    provenance: Provenance
    layout: Layout = "split"
    batch: int = 1
    precision: str = "float32"
    whole: Check | None = None
    whole_device: Check | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    digest: str | None = None
    opset: int | None = None
    files: Mapping[str, int] = field(default_factory=dict)

    @property
    def graphs(self) -> tuple[StageReport, ...]:
        """The stages with something learnt in them, in the order in which they run."""
        return tuple(stage for stage in self.stages if stage.kind == "graph")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the published model for one segment, over all stages."""
        return sum(stage.macs for stage in self.stages)


def inspect(path_or_name: str | os.PathLike[str] | None = None) -> Inspection:
    """Inspects a bundle (its path, its registered name, or None for the default) or a checkpoint.

    Raises:
        UsageError: nothing of that name is registered.
        BundleError, CheckpointError: it is damaged, or of a kind that is not supported.
        ExportError: a checkpoint, and the extra is not installed.
    """
    if path_or_name is not None and is_checkpoint(path_or_name):
        return _inspect_checkpoint(Path(path_or_name))
    return inspect_bundle(Bundle.open(resolve(path_or_name)))


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Inspects an opened bundle."""
    manifest = bundle.manifest
    tensors = {tensor.name: tensor for tensor in manifest.tensors}
    return Inspection(
        kind="bundle",
        path=bundle.path,
        name=manifest.name,
        model=manifest.model,
        branches=tuple(_branches(manifest.branches, manifest.stages, manifest.model)),
        stages=tuple(_stages(manifest.stages, tensors, manifest.checks)),
        fusion=tuple(_fusion(manifest.fusion, manifest.branches)),
        provenance=Provenance.read(manifest.provenance),
        layout=manifest.layout,
        batch=manifest.batch,
        precision=manifest.precision,
        whole=Check.read(manifest.checks, "whole"),
        whole_device=Check.read(manifest.checks, "whole_device"),
        gates=_gates(manifest),
        digest=bundle.digest,
        opset=manifest.opset,
        files={name: info.bytes for name, info in manifest.files.items()},
    )


def _gates(manifest: Manifest) -> Mapping[str, Gate]:
    """What calibrations have found; of a bundle of lower precision, its own, which may be the default."""
    if manifest.precision == "float32":
        return manifest.gates
    return {manifest.precision: gate_of(manifest)}


def is_checkpoint(value: str | os.PathLike[str]) -> bool:
    suffix = Path(value).suffix.lower()
    if suffix in CHECKPOINT_SUFFIXES:
        return not os.path.isdir(value)
    is_path = not isinstance(value, str) or os.path.dirname(value) != ""
    return is_path and suffix != ARCHIVE_SUFFIX and os.path.isfile(value)


def _inspect_checkpoint(path: Path) -> Inspection:
    from mrsep_deploy.export.api import default_name, require_extra

    require_extra("looking into a checkpoint")
    from mrsep_deploy.export.complexity import count_stages
    from mrsep_deploy.export.load import load_model

    loaded = load_model(path)
    staged, audio = loaded.staged(), loaded.audio
    branches, counted = staged.branches, count_stages(staged, audio)
    return Inspection(
        kind="checkpoint",
        path=path.absolute(),
        name=default_name(loaded),
        model=loaded.info(),
        branches=tuple(_branches(branches, counted.stages, loaded.info())),
        stages=tuple(_stages(counted.stages, counted.tensors, {})),
        fusion=tuple(_fusion(loaded.shares(), branches)),
        provenance=Provenance.read({**loaded.origin, "ignored_arguments": loaded.ignored}),
    )


def _stages(
    stages: Iterable[Stage], tensors: Mapping[str, TensorSpec], checks: Mapping[str, object]
) -> Iterator[StageReport]:
    for stage in stages:
        inputs, outputs = (tuple(tensors[name] for name in names) for names in (stage.inputs, stage.outputs))
        check = Check.read(checks, stage.name)
        yield StageReport(
            stage.name, stage.kind, stage.branch, inputs, outputs, stage.parameters, stage.macs, check
        )


def _branches(
    branches: Iterable[Branch], stages: Sequence[Stage], model: ModelInfo
) -> Iterator[BranchReport]:
    rate = model.sample_rate
    for branch in branches:
        transform = branch.transform
        window, hop = (0, 0) if transform is None else (transform.n_fft, transform.hop)
        own = [stage for stage in stages if stage.branch == branch.name]
        yield BranchReport(
            name=branch.name,
            window=window,
            hop=hop,
            window_ms=1000 * window / rate,
            hop_ms=1000 * hop / rate,
            bin_hz=rate / window if window else 0.0,
            bins=0 if transform is None else transform.bins,
            frames=model.segment_samples if transform is None else transform.frames,
            parameters=sum(stage.parameters for stage in own),
            macs=sum(stage.macs for stage in own),
        )


def resolution_names(branches: Iterable[tuple[str, bool]]) -> list[str]:
    """Returns the names of branches in the order of fusion weights: the waveform, which may have none, comes last.

    A branch is given by its name and whether it is the waveform.
    """
    return [name for name, _ in sorted(branches, key=lambda branch: branch[1])]


def _fusion(fusion: Iterable[FusionShares], branches: Sequence[Branch]) -> Iterator[FusionReport]:
    names = resolution_names((branch.name, branch.is_waveform) for branch in branches)
    for shares in fusion:
        resolutions = tuple(names[: len(shares.weights[0])])
        for index, weights in enumerate(shares.weights):
            source = shares.sources[index] if shares.sources else None
            yield FusionReport(shares.where, source, resolutions, weights)
