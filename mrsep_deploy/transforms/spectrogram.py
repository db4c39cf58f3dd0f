"""Short-time Fourier analysis and synthesis on the host, as a manifest's :class:`Transform` has it.

Spectrograms are complex-as-channels: ``[B, 2C, F, T]`` with (real, imaginary) adjacent for every
audio channel. Synthesis is the windowed overlap-add, divided by the overlapped squared windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mrsep_deploy.bundle.manifest import Transform

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

NORMALISE_EPS = 1e-5
"""Added to the standard deviation before dividing by it (the published value)."""

FRAMES_AT_ONCE = 64
"""Frames that are transposed and transformed together: few enough to stay in a core's cache."""

CHUNK = 16384
"""Elements whose squares are added in float32; they stay in a core's cache."""


def divisor(transform: Transform) -> float:
    """What spectra are divided by."""
    return math.sqrt(transform.n_fft) if transform.scale == "orthonormal" else 1.0


@lru_cache(maxsize=32)
def hann(n_fft: int) -> Float64:
    """Periodic Hann window, ``sin^2(pi n / n_fft)``."""
    return np.asarray(np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2)


@lru_cache(maxsize=32)
def envelope(transform: Transform) -> Float64:
    """Overlapped squared windows from where the segment begins to the end of the last frame."""
    squared = hann(transform.n_fft) ** 2
    # Frames that are not there, of which an endless row has some before and some behind, overlapping those.
    around = {"endless": transform.overlap, "extended": 2, "frames": 0}[transform.envelope]
    hop, frames = transform.hop, transform.frames + 2 * around
    total = np.zeros(hop * (frames - 1) + transform.n_fft)
    for frame in range(frames):
        total[frame * hop : frame * hop + transform.n_fft] += squared
    start = around * hop + transform.lead
    return total[start : start + transform.span - transform.lead]


def extend(x: Float32, transform: Transform) -> Float32:
    """``x`` ``[..., L]`` with what lies before and behind it: ``offset`` and ``after`` samples."""
    if transform.padding == "reflect":
        return reflect(x, transform.offset, transform.after)
    return np.pad(x, [*[(0, 0)] * (x.ndim - 1), (transform.offset, transform.after)])


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


def analyse(x: Float32, transform: Transform, out: Float32 | None = None, workers: int = 1) -> Float32:
    """Spectrogram of ``[B, C, L]`` -> ``[B, 2C, F, T]``, into ``out`` if given.

    ``workers`` threads share the signals.
    """
    batch, channels, _ = x.shape
    n_fft, bins, frames = transform.n_fft, transform.bins, transform.frames
    every = np.lib.stride_tricks.sliding_window_view(extend(x, transform), n_fft, axis=-1)
    windowed = every[:, :, :: transform.hop][:, :, :frames]
    window = (hann(n_fft) / divisor(transform)).astype(np.float32)
    result = np.empty((batch, 2 * channels, bins, frames), np.float32) if out is None else out
    pairs = result.reshape(batch, channels, 2, bins, frames)

    def analyse_one(item: int, channel: int) -> None:
        for t in range(0, frames, FRAMES_AT_ONCE):
            some = slice(t, min(t + FRAMES_AT_ONCE, frames))
            z = fft.rfft(windowed[item, channel, some] * window, axis=-1)[:, :bins]
            pairs[item, channel, 0, :, some] = z.real.T
            pairs[item, channel, 1, :, some] = z.imag.T

    share_out(analyse_one, itertools.product(range(batch), range(channels)), workers)
    return result


def synthesise(
    x: Float32,
    transform: Transform,
    length: int,
    out: Float32 | None = None,
    workers: int = 1,
    affine: Sequence[tuple[float, float]] | None = None,
) -> Float32:
    """Inverse of :func:`analyse`: ``[N, 2, F, T]`` -> ``[N, length]``, into ``out`` if given.

    ``N`` runs over all leading axes (items, sources, audio channels); ``workers`` threads share it.
    ``affine`` gives the synthesis of ``a * x + b`` for an ``(a, b)`` per signal: the transform is linear, so
    both are applied to the signal, which is a quarter of the spectrogram.
    """
    count = len(x)
    n_fft, hop, frames, overlap = transform.n_fft, transform.hop, transform.frames, transform.overlap
    bins, lead = transform.bins, transform.lead
    window, gain = _synthesis_windows(transform)
    signals = np.empty((count, length), np.float32) if out is None else out
    ones = _response_to_ones(transform) if affine is not None else None

    def synthesise_one(index: int) -> None:
        # Frame t covers hops t .. t + overlap - 1, the last perhaps in part: add the frames' pieces hop by hop.
        total = np.zeros((frames + overlap - 1, hop), np.float32)
        z = np.zeros((min(FRAMES_AT_ONCE, frames), n_fft // 2 + 1), np.complex64)
        for t in range(0, frames, FRAMES_AT_ONCE):
            some = x[index, :, :, t : t + FRAMES_AT_ONCE]
            n = some.shape[-1]
            z.real[:n, :bins], z.imag[:n, :bins] = some[0].T, some[1].T
            pieces = fft.irfft(z[:n], n_fft, axis=-1)
            pieces *= window
            for piece in range(overlap):
                part = pieces[:, piece * hop : (piece + 1) * hop]
                total[t + piece : t + piece + n, : part.shape[1]] += part
        signal = signals[index]
        np.multiply(total.reshape(-1)[lead : lead + length], gain[:length], out=signal)
        if affine is not None and ones is not None:
            scale, shift = affine[index]
            signal *= np.float32(scale)
            signal += np.float32(shift) * ones[:length]

    share_out(synthesise_one, ((index,) for index in range(count)), workers)
    return signals


@lru_cache(maxsize=32)
def _synthesis_windows(transform: Transform) -> tuple[Float32, Float32]:
    """The window of a frame, and what overlapped frames are multiplied by, from where the segment begins."""
    window = (hann(transform.n_fft) * divisor(transform)).astype(np.float32)
    with np.errstate(divide="ignore"):  # behind the segment, where an envelope may end in zeros
        return window, (1 / envelope(transform)).astype(np.float32)


@lru_cache(maxsize=32)
def _response_to_ones(transform: Transform) -> Float32:
    """Synthesis of a spectrogram whose real and imaginary parts are all one."""
    ones = np.ones((1, 2, transform.bins, transform.frames), np.float32)
    with np.errstate(invalid="ignore"):
        response: Float32 = synthesise(ones, transform, transform.span - transform.lead)[0]
    return response


def share_out(work: Callable[..., None], tasks: Iterable[tuple[int, ...]], workers: int) -> None:
    """Call ``work`` once for every task, on ``workers`` threads; NumPy and SciPy let each other run."""
    if workers == 1:
        for task in tasks:
            work(*task)
        return
    with ThreadPoolExecutor(workers) as threads:
        for done in [threads.submit(work, *task) for task in tasks]:
            done.result()


def statistics(x: Float32) -> Float64:
    """Mean and unbiased standard deviation of every item of ``[B, ...]``: ``[B, 2]``.

    One float32 accumulator over millions of elements would lose 40 dB of the model's precision: the mean is
    a float64 sum, and squares are added in float32 within chunks only, in float64 over them.
    """
    result = np.empty((len(x), 2))
    for index, item in enumerate(x):
        flat = item.reshape(-1)
        chunks = [flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK)]
        exact = float(flat.mean(dtype=np.float64))
        mean = np.float32(exact)
        rest, power = 0.0, 0.0
        for chunk in chunks:
            centred = chunk - mean
            rest += float(centred.sum())
            power += float(np.dot(centred, centred))
        # What the rounded mean left behind must not count as deviation.
        variance = (power - rest**2 / flat.size) / max(flat.size - 1, 1)
        result[index] = exact, math.sqrt(max(variance, 0.0))
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
