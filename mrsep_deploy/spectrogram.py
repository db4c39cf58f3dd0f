"""Short-time Fourier analysis and synthesis on the host, as the models define them.

Spectrograms are complex-as-channels: ``[B, 2C, F, T]`` with (real, imaginary) adjacent for every
audio channel, ``F = n_fft / 2`` bins (the Nyquist bin is dropped) and ``T = ceil(L / hop)`` frames.
The window is a periodic Hann of ``n_fft`` samples and the transform is scaled by ``1 / sqrt(n_fft)``.

Frame ``t`` starts ``offset`` samples before ``t * hop``: 3/8 of the window for a hop of ``n_fft / 4``,
half of it for ``n_fft / 2``; the signal is reflected beyond its ends. Synthesis is the windowed
overlap-add, divided by the overlapped squared windows.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

NORMALISE_EPS = 1e-5
"""Added to the standard deviation before dividing by it (the published value)."""


def frame_offset(n_fft: int, hop: int) -> int:
    """Samples by which frame 0 starts before the signal."""
    return 3 * (hop // 2) if hop * 4 == n_fft else hop


@lru_cache(maxsize=32)
def hann(n_fft: int) -> Float64:
    """Periodic Hann window, ``sin^2(pi n / n_fft)``."""
    return np.asarray(np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2)


@lru_cache(maxsize=32)
def _envelope(n_fft: int, hop: int, frames: int) -> Float64:
    """Overlapped squared windows where the signal lies, ``[hop * frames]``.

    The model's synthesis runs over zero frames on both sides of the given ones, so that windows
    overlap fully at the ends too; only those overlapping the signal matter here.
    """
    squared = hann(n_fft) ** 2
    overlap = n_fft // hop
    offset = frame_offset(n_fft, hop)
    before, after = (2, 2) if overlap == 4 else (1, 2)
    total = np.zeros(hop * (frames + before + after - 1) + n_fft)
    for frame in range(frames + before + after):
        total[frame * hop : frame * hop + n_fft] += squared
    start = before * hop + offset
    return total[start : start + hop * frames]


def reflect(x: Float32, left: int, right: int) -> Float32:
    """Reflect-pad the last axis; a signal shorter than the padding first gets zeros, right side first."""
    length = x.shape[-1]
    longest = max(left, right)
    lead = [(0, 0)] * (x.ndim - 1)
    if length <= longest:
        extra = longest - length + 1
        extra_right = min(right, extra)
        extra_left = extra - extra_right
        left, right = left - extra_left, right - extra_right
        x = np.pad(x, [*lead, (extra_left, extra_right)])
    return np.pad(x, [*lead, (left, right)], mode="reflect")


def analyse(x: Float32, n_fft: int, hop: int, out: Float32 | None = None, workers: int = 1) -> Float32:
    """Spectrogram of ``[B, C, L]`` -> ``[B, 2C, n_fft/2, ceil(L/hop)]``, into ``out`` if given."""
    batch, channels, length = x.shape
    frames = math.ceil(length / hop)
    offset = frame_offset(n_fft, hop)
    padded = reflect(x, offset, offset + frames * hop - length)
    windowed = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[:, :, ::hop][:, :, :frames]
    window = (hann(n_fft) / math.sqrt(n_fft)).astype(np.float32)
    if out is None:
        out = np.empty((batch, 2 * channels, n_fft // 2, frames), np.float32)
    for item in range(batch):
        for channel in range(channels):
            z = fft.rfft(windowed[item, channel] * window, axis=-1, workers=workers)[:, :-1]
            out[item, 2 * channel] = z.real.T
            out[item, 2 * channel + 1] = z.imag.T
    return out


def synthesise(
    x: Float32, n_fft: int, hop: int, length: int, out: Float32 | None = None, workers: int = 1
) -> Float32:
    """Inverse of :func:`analyse`: ``[N, 2, n_fft/2, T]`` -> ``[N, length]``, into ``out`` if given.

    ``N`` runs over all leading axes (items, sources, audio channels).
    """
    count, _, bins, frames = x.shape
    offset = frame_offset(n_fft, hop)
    window = (hann(n_fft) * math.sqrt(n_fft)).astype(np.float32)
    gain = (1 / _envelope(n_fft, hop, frames)[:length]).astype(np.float32)
    overlap = n_fft // hop
    if out is None:
        out = np.empty((count, length), np.float32)
    z = np.zeros((frames, bins + 1), np.complex64)
    for index in range(count):
        z.real[:, :-1] = x[index, 0].T
        z.imag[:, :-1] = x[index, 1].T
        pieces = fft.irfft(z, n_fft, axis=-1, workers=workers) * window
        # Frame t covers hops t .. t + overlap - 1: add the frames' pieces hop by hop.
        total = np.zeros((frames + overlap - 1, hop), np.float32)
        for piece in range(overlap):
            total[piece : piece + frames] += pieces[:, piece * hop : (piece + 1) * hop]
        np.multiply(total.reshape(-1)[offset : offset + length], gain, out=out[index])
    return out


def statistics(x: Float32) -> Float64:
    """Mean and unbiased standard deviation of every item of ``[B, ...]``: ``[B, 2]``, in float64.

    One float32 accumulator over millions of elements would lose 40 dB of the model's precision.
    """
    result = np.empty((len(x), 2))
    for index, item in enumerate(x):
        mean = item.mean(dtype=np.float64)
        centred = item - np.float32(mean)
        correction = centred.mean(dtype=np.float64)
        power = np.square(centred).sum(dtype=np.float64) - correction**2 * item.size
        result[index] = mean, math.sqrt(max(power, 0.0) / max(item.size - 1, 1))
    return result


def normalise(x: Float32, stats: Float64) -> None:
    """``(x - mean) / (1e-5 + std)`` per item, in place."""
    for item, (mean, std) in zip(x, stats, strict=True):
        item -= np.float32(mean)
        item *= np.float32(1 / (NORMALISE_EPS + std))


def denormalise(x: Float32, stats: Float64, gains: tuple[float, ...]) -> None:
    """``(x * std + mean) * gain`` per item and source of ``[B, S, ...]``, in place."""
    for item, (mean, std) in zip(x, stats, strict=True):
        for source, gain in zip(item, gains, strict=True):
            source *= np.float32(std * gain)
            source += np.float32(mean * gain)
