"""Runners of the stages that are not graphs, on the host's CPU: transforms, statistics, sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Branch, Stage
from mrsep_deploy.devices.interface import TensorView
from mrsep_deploy.devices.runner import Runner, Tensors
from mrsep_deploy.transforms.spectrogram import analyse, denormalise, normalise, statistics, synthesise


def host_runner(stage: Stage, branches: Sequence[Branch], workers: int = 1) -> HostStage:
    """The runner of a stage whose kind is not ``graph``.

    Args:
        stage: which one.
        branches: the manifest's branches.
        workers: threads a transform may use.
    """
    if stage.kind == "sum":
        return _Sum(stage)
    branch = next(b for b in branches if b.name == stage.branch)
    if stage.kind in ("spectrogram", "normalize"):
        return _Analysis(stage, branch, workers)
    if stage.kind in ("inverse", "denormalize"):
        return _Synthesis(stage, branch, workers)
    raise ValueError(f"stage {stage.name} of kind {stage.kind} does not run on the host")


def _array(tensor: TensorView) -> NDArray[Any]:
    return cast("NDArray[Any]", tensor)


class HostStage(Runner):
    """A runner of a stage that is not a graph; the stream that calls it is the one it runs on."""

    def close(self) -> None:
        """Host stages hold neither sessions nor memory."""


class _Analysis(HostStage):
    """mix ``[B, C, L]`` -> spectrogram or waveform and, where it is normalised, statistics ``[B, 2]``."""

    def __init__(self, stage: Stage, branch: Branch, workers: int) -> None:
        self.stage, self.branch, self.workers = stage, branch, workers

    def __call__(self, tensors: Tensors) -> None:
        features, *stats = (_array(tensors[name]) for name in self.stage.outputs)
        mix = _array(tensors[self.stage.inputs[0]])
        if self.branch.transform is None:
            features[:] = mix
        else:
            analyse(mix, self.branch.transform, out=features, workers=self.workers)
        if self.branch.normalise:
            found = statistics(features)
            stats[0][:] = found
            normalise(features, found)


class _Synthesis(HostStage):
    """estimate ``[B, S*2C, F, T]`` or ``[B, S*C, L]``, perhaps statistics ``[B, 2]`` -> signal ``[B, S, C, L]``.

    The transform is linear, so de-normalisation is done on the signal.
    """

    def __init__(self, stage: Stage, branch: Branch, workers: int) -> None:
        self.stage, self.branch, self.workers = stage, branch, workers

    def __call__(self, tensors: Tensors) -> None:
        estimate, *given = (_array(tensors[name]) for name in self.stage.inputs)
        signal = _array(tensors[self.stage.outputs[0]])
        transform, gains = self.branch.transform, self.branch.gains
        stats = given[0].astype(np.float64) if given else np.tile([0.0, 1.0], (len(signal), 1))
        if transform is None:
            signal[:] = estimate.reshape(signal.shape)
            denormalise(signal, stats, gains)
            return
        channels, length = signal.shape[-2:]
        pairs = estimate.reshape(-1, 2, transform.bins, transform.frames)
        affine = [(std * gain, mean * gain) for mean, std in stats for gain in gains for _ in range(channels)]
        synthesise(
            pairs, transform, length, out=signal.reshape(-1, length), workers=self.workers, affine=affine
        )


class _Sum(HostStage):
    """Signals ``[B, S, C, L]`` -> stems ``[B, S, C, L]``."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __call__(self, tensors: Tensors) -> None:
        stems = _array(tensors[self.stage.outputs[0]])
        first, *rest = (_array(tensors[name]) for name in self.stage.inputs)
        stems[:] = first
        for signal in rest:
            stems += signal
