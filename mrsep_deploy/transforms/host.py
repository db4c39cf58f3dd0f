"""Runners of the stages that are not graphs, on the host's CPU: transforms, statistics, sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Branch, Stage
from mrsep_deploy.devices.interface import Runner, Tensors
from mrsep_deploy.transforms.spectrogram import analyse, denormalise, normalise, statistics, synthesise

Arrays = Sequence[NDArray[Any]]


def host_runner(stage: Stage, branches: Sequence[Branch], workers: int = 1) -> HostRunner:
    """The runner of a stage whose kind is not ``graph``; ``workers`` threads compute a transform."""
    if stage.kind == "sum":
        return HostRunner(stage, _add)
    branch = next(b for b in branches if b.name == stage.branch)
    if stage.kind in ("spectrogram", "normalize"):
        return HostRunner(stage, partial(_analyse, branch, workers))
    if stage.kind in ("inverse", "denormalize"):
        return HostRunner(stage, partial(_synthesise, branch, workers))
    raise ValueError(f"stage {stage.name} of kind {stage.kind} does not run on the host")


class HostRunner(Runner):
    """A stage that a function computes, from its inputs into its outputs, on whichever stream calls it."""

    def __init__(self, stage: Stage, compute: Callable[[Arrays, Arrays], None]) -> None:
        self.stage, self.compute = stage, compute

    def __call__(self, tensors: Tensors) -> None:
        inputs, outputs = (
            [cast("NDArray[Any]", tensors[name]) for name in names]
            for names in (self.stage.inputs, self.stage.outputs)
        )
        self.compute(inputs, outputs)

    def close(self) -> None:
        """It holds neither sessions nor memory."""


def _analyse(branch: Branch, workers: int, inputs: Arrays, outputs: Arrays) -> None:
    """mix ``[B, C, L]`` -> spectrogram or waveform and, where it is normalised, statistics ``[B, 2]``."""
    features, *stats = outputs
    if branch.transform is None:
        features[:] = inputs[0]
    else:
        analyse(inputs[0], branch.transform, out=features, workers=workers)
    if branch.normalise:
        found = statistics(features)
        stats[0][:] = found
        normalise(features, found)


def _synthesise(branch: Branch, workers: int, inputs: Arrays, outputs: Arrays) -> None:
    """estimate ``[B, S*2C, F, T]`` or ``[B, S*C, L]``, perhaps statistics ``[B, 2]`` -> signal ``[B, S, C, L]``.

    The transform is linear, so de-normalisation is done on the signal.
    """
    estimate, *given = inputs
    (signal,) = outputs
    transform, gains = branch.transform, branch.gains
    stats = given[0].astype(np.float64) if given else np.tile([0.0, 1.0], (len(signal), 1))
    if transform is None:
        signal[:] = estimate.reshape(signal.shape)
        denormalise(signal, stats, gains)
        return
    channels, length = signal.shape[-2:]
    pairs = estimate.reshape(-1, 2, transform.bins, transform.frames)
    affine = [(std * gain, mean * gain) for mean, std in stats for gain in gains for _ in range(channels)]
    synthesise(pairs, transform, length, out=signal.reshape(-1, length), workers=workers, affine=affine)


def _add(inputs: Arrays, outputs: Arrays) -> None:
    """Signals ``[B, S, C, L]`` -> stems ``[B, S, C, L]``."""
    (stems,) = outputs
    stems[:] = inputs[0]
    for signal in inputs[1:]:
        stems += signal
