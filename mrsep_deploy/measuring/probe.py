"""A signal to check graphs on: deterministic, music-like in level, spectrum and dynamics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOTES = 220 * 2 ** (np.array([0, 3, 7, 10, 12, 15]) / 12)
"""Frequencies of the chords' notes in Hz."""


def probe_signal(channels: int, samples: int, sample_rate: int) -> NDArray[np.float32]:
    """Plucked chords, a bass line, drum hits and a hiss, ``[C, L]``; every channel differs.

    Peaks near 0.8 of full scale. What a beat starts has decayed by 120 dB after three seconds and ends there, so the
    work grows with the length.
    """
    random = np.random.RandomState(20260)
    music = np.zeros((channels, samples))
    beat = max(int(0.25 * sample_rate), 1)
    time = np.arange(min(samples, 14 * beat)) / sample_rate
    for index, start in enumerate(range(0, samples, beat)):
        t = time[: samples - start]
        decay = np.exp(-4 * t)
        tone = sum(
            np.sin(2 * np.pi * NOTES[(index + k) % 6] * h * t) / h
            for k in range(2)
            for h in range(1, 6)
            if NOTES[(index + k) % 6] * h < sample_rate / 2
        )
        hit = random.standard_normal(len(t)) * np.exp(-30 * t)
        bass = np.sin(2 * np.pi * 55 * (1 + index % 3) * t)
        for channel in range(channels):
            pan = 0.5 + 0.4 * np.sin(index + 2.0 * channel)
            voice = decay * (0.2 * pan * tone + 0.4 * bass) + 0.5 * hit * (1 - pan / 2)
            music[channel, start : start + len(t)] += voice
    music += 0.003 * random.standard_normal(music.shape)
    music *= 0.8 / np.abs(music).max()
    return music.astype(np.float32)
