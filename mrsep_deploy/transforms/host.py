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
    if stage.kind == "spectrogram":
        return _Spectrogram(stage, branch, workers)
    if stage.kind == "normalize":
        return _Normalize(stage)
    if stage.kind == "inverse":
        return _Inverse(stage, branch, workers)
    if stage.kind == "denormalize":
        return _Denormalize(stage, branch)
    raise ValueError(f"stage {stage.name} of kind {stage.kind} does not run on the host")


def _array(tensor: TensorView) -> NDArray[Any]:
    return cast("NDArray[Any]", tensor)


class HostStage(Runner):
    """A runner of a stage that is not a graph; the stream that calls it is the one it runs on."""

    def close(self) -> None:
        """Host stages hold neither sessions nor memory."""


class _Spectrogram(HostStage):
    """mix ``[B, C, L]`` -> normalised spectrogram ``[B, 2C, F, T]``, statistics ``[B, 2]``."""

    def __init__(self, stage: Stage, branch: Branch, workers: int) -> None:
        self.stage, self.branch, self.workers = stage, branch, workers

    def __call__(self, tensors: Tensors) -> None:
        spectrogram, stats = (_array(tensors[name]) for name in self.stage.outputs)
        mix = _array(tensors[self.stage.inputs[0]])
        analyse(mix, self.branch.n_fft, self.branch.hop, out=spectrogram, workers=self.workers)
        found = statistics(spectrogram)
        stats[:] = found
        normalise(spectrogram, found)


class _Normalize(HostStage):
    """mix ``[B, C, L]`` -> normalised waveform ``[B, C, L]``, statistics ``[B, 2]``."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __call__(self, tensors: Tensors) -> None:
        waveform, stats = (_array(tensors[name]) for name in self.stage.outputs)
        waveform[:] = _array(tensors[self.stage.inputs[0]])
        found = statistics(waveform)
        stats[:] = found
        normalise(waveform, found)


class _Inverse(HostStage):
    """estimate ``[B, S*2C, F, T]``, statistics ``[B, 2]`` -> signal ``[B, S, C, L]``.

    The transform is linear, so de-normalisation is done on the signal.
    """

    def __init__(self, stage: Stage, branch: Branch, workers: int) -> None:
        self.stage, self.branch, self.workers = stage, branch, workers

    def __call__(self, tensors: Tensors) -> None:
        estimate, stats = (_array(tensors[name]) for name in self.stage.inputs)
        signal = _array(tensors[self.stage.outputs[0]])
        branch = self.branch
        channels, length = signal.shape[-2:]
        pairs = estimate.reshape(-1, 2, branch.bins, branch.frames)
        affine = [
            (std * gain, mean * gain)
            for mean, std in stats.astype(np.float64)
            for gain in branch.gains
            for _ in range(channels)
        ]
        flat = signal.reshape(-1, length)
        synthesise(pairs, branch.n_fft, branch.hop, length, out=flat, workers=self.workers, affine=affine)


class _Denormalize(HostStage):
    """estimate ``[B, S*C, L]``, statistics ``[B, 2]`` -> signal ``[B, S, C, L]``."""

    def __init__(self, stage: Stage, branch: Branch) -> None:
        self.stage, self.branch = stage, branch

    def __call__(self, tensors: Tensors) -> None:
        estimate, stats = (_array(tensors[name]) for name in self.stage.inputs)
        signal = _array(tensors[self.stage.outputs[0]])
        signal[:] = estimate.reshape(signal.shape)
        denormalise(signal, stats.astype(np.float64), self.branch.gains)


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
