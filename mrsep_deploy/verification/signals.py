"""Built-in test signals, one segment each, on which faults of reduced precision show."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.export.probe import probe_signal

Float32 = NDArray[np.float32]

SEED = 20261
SILENT_LEVEL = 1e-5
"""Peak of the almost silent signal, -100 dBFS: half a bit of 16-bit audio."""
LOUD_GAIN = 8.0
"""The loud signal peaks 16 dB above full scale, as float files and sums of stems may."""


def builtin_signals(channels: int, samples: int, sample_rate: int) -> Iterator[tuple[str, Float32]]:
    """Name and samples ``[C, samples]`` of every built-in signal; the same at every call.

    Plucked music at a normal level, 16 dB above full scale, at -100 dBFS and clipped; digital silence, a
    full-scale sine, a click of one sample, and white noise.
    """
    music = probe_signal(1, channels, samples, sample_rate)[0]
    time = np.arange(samples) / sample_rate
    click = np.zeros((channels, samples), np.float32)
    click[:, samples // 2] = 1
    noise = np.random.RandomState(SEED).standard_normal((channels, samples)) * 0.25
    yield "music", music
    yield "loud music", music * np.float32(LOUD_GAIN)
    yield "music at -100 dBFS", music * np.float32(SILENT_LEVEL / np.abs(music).max())
    yield "clipped music", np.clip(music * np.float32(LOUD_GAIN), -1, 1)
    yield "silence", np.zeros((channels, samples), np.float32)
    yield "full-scale sine", np.tile(np.sin(2 * np.pi * 440 * time), (channels, 1)).astype(np.float32)
    yield "click", click
    yield "noise", np.clip(noise, -1, 1).astype(np.float32)
