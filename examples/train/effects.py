"""Changes to a stem ``[2, samples]``: speed, equaliser, room, saturation, place between the speakers.

The equaliser is the peaking and shelving filter of R. Bristow-Johnson's "Cookbook formulae for audio EQ
biquad filter coefficients".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from store import SAMPLE_RATE

Stem = NDArray[np.float32]


def change_speed(stem: Stem, speed: float, samples: int) -> Stem:
    """Play ``speed`` times as fast, pitch included; linear interpolation, ``samples`` come back."""
    if speed == 1:
        return stem[:, :samples]
    at = np.arange(samples) * speed
    left = np.minimum(at.astype(np.int64), stem.shape[1] - 2)
    share = (at - left).astype(np.float32)
    before = stem.take(left, axis=1)
    after = stem.take(left + 1, axis=1)
    return before + share * (after - before)


def equalise(stem: Stem, random: np.random.Generator) -> Stem:
    """Up to three bells and shelves of up to 8 dB."""
    sections = [
        biquad(
            str(random.choice(["bell", "low", "high"])),
            frequency=float(np.exp(random.uniform(np.log(60), np.log(12000)))),
            decibels=float(random.uniform(-8, 8)),
            quality=float(random.uniform(0.4, 1.5)),
        )
        for _ in range(random.integers(1, 4))
    ]
    out: Stem = signal.sosfilt(np.array(sections), stem, axis=1).astype(np.float32)
    return out


def biquad(kind: str, frequency: float, decibels: float, quality: float) -> NDArray[np.float64]:
    """One second-order section: a ``bell``, or a ``low`` or ``high`` shelf."""
    gain = 10 ** (decibels / 40)
    omega = 2 * np.pi * frequency / SAMPLE_RATE
    cos, alpha = np.cos(omega), np.sin(omega) / (2 * quality)
    if kind == "bell":
        b = (1 + alpha * gain, -2 * cos, 1 - alpha * gain)
        a = (1 + alpha / gain, -2 * cos, 1 - alpha / gain)
    else:
        side = 1 if kind == "low" else -1
        root = 2 * np.sqrt(gain) * alpha
        up, down = gain + 1, gain - 1
        b = (
            gain * (up - side * down * cos + root),
            side * 2 * gain * (down - side * up * cos),
            gain * (up - side * down * cos - root),
        )
        a = (
            up + side * down * cos + root,
            -side * 2 * (down + side * up * cos),
            up + side * down * cos - root,
        )
    return np.array([*b, *a]) / a[0]


def reverberate(stem: Stem, random: np.random.Generator) -> Stem:
    """Decaying noise as the room's response, its own for each ear, mixed under the stem."""
    seconds = random.uniform(0.1, 0.9)
    length = int(seconds * SAMPLE_RATE)
    decay = np.exp(-6.9 * np.arange(length) / length)
    room = (random.standard_normal((2, length)) * decay).astype(np.float32)
    room /= np.sqrt(np.square(room).sum(axis=1, keepdims=True))
    wet = signal.fftconvolve(stem, room, axes=1)[:, : stem.shape[1]]
    out: Stem = (stem + np.float32(random.uniform(0.05, 0.4)) * wet).astype(np.float32)
    return out


def drive(stem: Stem, random: np.random.Generator) -> Stem:
    """Soft clipping, at the loudness the stem had."""
    level = float(stem.std())
    if level < 1e-6:
        return stem
    amount = np.float32(random.uniform(0.3, 2.0) / (4 * level))
    driven = np.tanh(stem * amount) / amount
    out: Stem = driven * np.float32(level / max(float(driven.std()), 1e-9))
    return out


def widen(stem: Stem, random: np.random.Generator) -> Stem:
    """Scale the side of mid and side by up to two, and lean up to 3 dB to one ear."""
    mid, side = (stem[0] + stem[1]) / 2, (stem[0] - stem[1]) / 2 * np.float32(random.uniform(0, 1.6))
    lean = random.uniform(-3, 3) / 40
    return np.stack([(mid + side) * 10**lean, (mid - side) * 10**-lean]).astype(np.float32)
