"""The real Fourier transform of a windowed frame as two matrix products, and its inverse.

Engines have no Fourier transform in common: TensorRT for RTX has none at all, TensorRT and ONNX Runtime
differ in the versions of ``STFT`` and ``DFT`` they read and in where they run them. Matrix products they
all have, on every device.

**Factors.** ``N = n_fft = N1 N2`` (Cooley and Tukey 1965). With ``n = N2 n1 + n2``, ``k = k1 + N1 k2`` and
``w_M = exp(-2 pi i / M)`` the exponent ``n k / N`` is ``n1 k1 / N1 + n2 k1 / N + n2 k2 / N2`` up to whole
numbers, so the scaled transform of the windowed frame ``h x`` is

    A[n2, k1]      = sum_n1  { h[n] w_N1^(n1 k1) w_N^(n2 k1) / sqrt(N) }  x[N2 n1 + n2]
    X[k1 + N1 k2]  = sum_n2  { w_N2^(n2 k2) }  A[n2, k1],                          k2 < N2 / 2

The braces are constants. The twiddle factor ``w_N^(n2 k1)`` and the window depend on ``n2``, so the first
product is one of a matrix for every ``n2``: that is 2 N N1 numbers instead of 2 N1^2, and saves three
passes over complex data four times the size of the signal. Bins from ``N / 2`` on are conjugates of
others (or the Nyquist bin, which the models drop): only half of the second product is computed. In real
arithmetic a complex matrix is stacked from its real and imaginary parts.

**Inverse.** Transposed. Of a real signal's spectrum ``Z`` with a zero Nyquist bin only the bins below are
given; the others are their conjugates, so ``x[n] = Re(Z[0] + 2 sum_{0<k<N/2} Z[k] w_N^(-n k)) / sqrt(N)``
and

    G[n2, k1]      = sum_k2  { w_N2^(-n2 k2) }  Z[k1 + N1 k2],                     k2 < N2 / 2
    x[N2 n1 + n2]  = Re sum_k1  { 2 h'[n] w_N1^(-n1 k1) w_N^(-n2 k1) / sqrt(N) }  G[n2, k1]

where bin 0 must have been halved, and of the second product only the real part is computed. ``h'`` is
the window divided by the overlapped squared windows. Those repeat with the hop wherever windows overlap
fully, and the synthesis of the models surrounds its frames with zero frames so that they do everywhere.

**Cost** in multiply-accumulates a frame and channel, forward and inverse alike: ``2 N N1 + 2 N N2``. With
``N`` = 4096 = 64 * 64 that is 1.0 M and with 8192 = 64 * 128 it is 3.1 M, against 16.8 M and 67.1 M for one
``N x N`` matrix and 0.12 M and 0.27 M operations (2.5 N log2 N) of a fast Fourier transform. All transforms
of a 7.8 s segment of HTDemucs (four sources) come to 3.5 G, and of 10 s of HTDemucs_n at 2048, 4096 and
8192 to 14.5 G, beside the model's own 112 G (:func:`~mrsep_deploy.export.transform_graphs.transform_macs`).
Three factors would need half as many again as a fast transform does, in products too small to keep an
engine busy: with 64 to 128 terms a sum, a product does some 30 operations a byte, which is what current
GPUs are balanced for. Using that the input is real in the first product too would save a quarter to a
third, for reversing half of the spectrogram in memory, which takes as long.

**Precision.** Constants are computed in float64 and rounded once (relative error 2e-8 rms). A sum of
``m`` float32 products in sequence errs by about ``6e-8 sqrt(m) / 2`` of its size, less where engines add in
blocks: the two products together by 1e-7 to 4e-7, 128 to 140 dB, of a frame's level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.spectrogram import Float32, Float64, hann

Complex128 = NDArray[np.complex128]

LARGEST_FIRST = 64
"""Largest ``N1``: the constants of the first product take ``8 N N1`` bytes, 2 MB for ``N`` = 4096."""


@dataclass(frozen=True)
class Factors:
    """``first * second = n_fft``: ``N1`` and ``N2`` above."""

    first: int
    second: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, in either direction."""
        return 2 * self.first * self.second * (self.first + self.second)


def factorise(n_fft: int, hop: int) -> Factors:
    """The cheapest factors of ``n_fft``.

    ``N2`` is even (half of ``k2`` is computed) and divides the hop, so that frames are made of whole rows
    ``n1`` of blocks one hop long.

    Raises:
        ValueError: there are none; multiples of 8 with a hop of a half or a quarter always have some.
    """
    pairs = [Factors(first, n_fft // first) for first in range(1, LARGEST_FIRST + 1) if n_fft % first == 0]
    usable = [pair for pair in pairs if pair.second % 2 == 0 and hop % pair.second == 0]
    if not usable:
        raise ValueError(f"n_fft {n_fft} with hop {hop} has no factors to compute it with")
    return min(usable, key=lambda pair: pair.first + pair.second)


def forward_first(factors: Factors) -> Float32:
    """``[N2, 2 N1, N1]``: for every ``n2`` from ``n1`` to (re/im, ``k1``) of ``A``."""
    n_fft = factors.first * factors.second
    window = hann(n_fft).reshape(factors.first, factors.second).T
    rotation = _first_rotation(factors) * window[:, None, :] / math.sqrt(n_fft)
    return np.concatenate([rotation.real, rotation.imag], axis=1).astype(np.float32)


def forward_second(factors: Factors) -> Float32:
    """``[N2, 2 N2]``: from (``n2``, re/im) of ``A`` to (re/im, ``k2``) of the spectrum, ``k2 < N2 / 2``."""
    rotation = _second_rotation(factors)
    real = np.stack([rotation.real, -rotation.imag], axis=-1)
    imaginary = np.stack([rotation.imag, rotation.real], axis=-1)
    return np.stack([real, imaginary]).reshape(factors.second, 2 * factors.second).astype(np.float32)


def inverse_first(factors: Factors) -> Float32:
    """``[2 N2, N2]``: from (re/im, ``k2 < N2 / 2``) of the spectrum to (``n2``, re/im) of ``G``."""
    return np.ascontiguousarray(forward_second(factors).T)  # the conjugate transpose of a complex matrix


def inverse_second(factors: Factors, hop: int) -> Float32:
    """``[N2, N1, 2 N1]``: for every ``n2`` from (re/im, ``k1``) of ``G`` to ``n1`` of the windowed frame."""
    n_fft = factors.first * factors.second
    window = synthesis_window(n_fft, hop).reshape(factors.first, factors.second).T
    rotation = _first_rotation(factors) * window[:, None, :] * (2 / math.sqrt(n_fft))
    # Re(conj(w) G) = Re w Re G + Im w Im G
    stacked = np.concatenate([rotation.real, rotation.imag], axis=1)
    return np.ascontiguousarray(stacked.transpose(0, 2, 1)).astype(np.float32)


def synthesis_window(n_fft: int, hop: int) -> Float64:
    """The window over the sum of all squared windows that overlap it, ``[n_fft]``.

    The transform is scaled by ``sqrt(N) / N``, so its part of the scaling is in the matrices.
    """
    window = hann(n_fft)
    envelope = np.square(window).reshape(-1, hop).sum(axis=0)
    return window / np.tile(envelope, n_fft // hop)


@lru_cache(maxsize=2)
def _first_rotation(factors: Factors) -> Complex128:
    """``w_N1^(n1 k1) w_N^(n2 k1) = w_N^((N2 n1 + n2) k1)`` as ``[N2, k1, n1]``."""
    n1, n2 = np.arange(factors.first), np.arange(factors.second)
    sample = factors.second * n1[None, None, :] + n2[:, None, None]
    return _root(sample * n1[None, :, None], factors.first * factors.second)


def _second_rotation(factors: Factors) -> Complex128:
    """``w_N2^(n2 k2)`` as ``[k2, n2]``, ``k2 < N2 / 2``."""
    n2 = np.arange(factors.second)
    return _root(np.outer(n2[: factors.second // 2], n2), factors.second)


def _root(power: NDArray[np.int_], order: int) -> Complex128:
    """``exp(-2 pi i power / order)``; the power is reduced first, so that angles stay exact."""
    return np.asarray(np.exp(-2j * np.pi * (power % order) / order))
