"""Separation without learning, for comparison: what is low is bass, what is short is drums, the rest is other.

Harmonic and percussive parts by median filters over time and over frequency, with soft masks (D. Fitzgerald,
"Harmonic/percussive separation using median filtering", 2010).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from store import SAMPLE_RATE

BASS_HZ = 200.0
_WINDOW, _HOP = 2048, 512
_ACROSS_TIME, _ACROSS_FREQUENCY = 17, 31
_BLOCK = 30 * SAMPLE_RATE


def low_pass(mixture: NDArray[np.float32], hertz: float = BASS_HZ) -> NDArray[np.float32]:
    """What is below ``hertz``, in phase, ``[2, samples]``."""
    sections = signal.butter(4, hertz, fs=SAMPLE_RATE, output="sos")
    low: NDArray[np.float32] = signal.sosfiltfilt(sections, mixture, axis=1).astype(np.float32)
    return low


def percussive(mixture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The part whose spectrum is smooth over frequency and short in time, ``[2, samples]``."""
    parts = []
    for start in range(0, mixture.shape[1], _BLOCK):
        block = mixture[:, start : start + _BLOCK]
        _, _, frames = signal.stft(block, SAMPLE_RATE, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
        power = np.abs(frames).mean(axis=0).astype(np.float32)
        harmonic = signal.medfilt2d(power, (1, _ACROSS_TIME)) ** 2
        transient = signal.medfilt2d(power, (_ACROSS_FREQUENCY, 1)) ** 2
        mask = transient / (harmonic + transient + 1e-20)
        _, sound = signal.istft(frames * mask, SAMPLE_RATE, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
        parts.append(np.asarray(sound[:, : block.shape[1]], np.float32))
    return np.concatenate(parts, axis=1)


def separate(mixture: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Stems whose sum is the mixture; the vocals are silent."""
    bass = low_pass(mixture)
    drums = percussive(mixture - bass)
    return {"drums": drums, "bass": bass, "other": mixture - bass - drums, "vocals": np.zeros_like(mixture)}
