"""The real Fourier transform of a windowed frame as matrix products, and its inverse.

Engines have no Fourier transform in common: TensorRT for RTX has none at all, TensorRT and ONNX Runtime
differ in the versions of ``STFT`` and ``DFT`` they read and in where they run them. Matrix products they
all have, on every device.

**Factors.** ``N = n_fft = N1 N2 N3`` (Cooley and Tukey 1965), where ``N2`` is 1 for short frames. With

    M = N2 N3,   w_K = exp(-2 pi i / K)
    n = M n1 + N3 n2 + n3        n1, k1 < N1
    k = k1 + N1 k2 + N1 N2 k3    n2, k2 < N2    n3, k3 < N3

``n k / N`` is ``n1 k1 / N1 + (N3 n2 + n3) k1 / N + n2 k2 / N2 + n3 k2 / M + n3 k3 / N3`` up to whole numbers, so the
scaled transform of the windowed frame ``h x`` is

    A[n3, n2, k1]  =  sum_n1  { h[n] w_N1^(n1 k1) w_N^((N3 n2 + n3) k1) / sqrt(N) }  x[n]
    B[n3, k2, k1]  =  sum_n2  { w_N2^(n2 k2) w_M^(n3 k2) }  A[n3, n2, k1]
    X[k3, k2, k1]  =  sum_n3  { w_N3^(n3 k3) }  B[n3, k2, k1],            k3 < N3 / 2

The braces are constants. Window and twiddle factors depend on ``n2`` and ``n3``, so the first product has a
matrix for each of these, 2 N N1 numbers: that saves four passes over complex data several times
the size of the signal. Bins from ``N / 2`` on are conjugates of others (or the Nyquist bin, which the
models drop), so half of the last product is enough. In real arithmetic a complex matrix is stacked
from its real and imaginary parts.

**Inverse.** Transposed. Of a real signal's spectrum ``Z`` with a zero Nyquist bin only the bins below are
given; the others are their conjugates, so ``x[n] = Re(Z[0] + 2 sum_{0<k<N/2} Z[k] w_N^(-n k)) / sqrt(N)``
and the products run from ``k3`` over ``k2`` to ``k1`` with the conjugate constants. The one that ends at
``n1`` has twice the synthesis window ``h'`` for ``h``, and of it only the real part is computed; bin 0 must
have been halved. ``h'`` is the window divided by the overlapped squared windows, where these repeat with the
hop; elsewhere the window alone, and the overlapped sum is divided.

**Nyquist bin.** ``X[N/2] = sum_n (-1)^n h[n] x[n] / sqrt(N)`` is real, one product of a row; the inverse likewise.

**Cost.** ``N (2 N1 + 4 N2 + 2 N3)`` multiply-accumulates a frame and channel in either direction, without the
middle term for two factors:

    n_fft   factors       products   one matrix N x N   operations of a fast transform, 2.5 N log2 N
     4096   64 * 64          1.0 M             16.8 M                                          0.12 M
     8192   16 * 16 * 32     1.3 M             67.1 M                                          0.27 M
    32768   32 * 32 * 32     8.4 M           1073.7 M                                          1.23 M

All transforms of a segment, four sources, beside the model's own:
HTDemucs 7.8 s 3.5 G of 124 G, HTDemucs_n 10 s at 2048, 4096 and 8192 10.7 G of 63 G, HTDemucs_nf 10 s at 1024
to 16384 16.4 G of 75 G; the constants of these graphs take 4, 8 and 17 MB.

A third factor costs another pass over the complex data, 16 bytes a sample written and read, in
which a current GPU does some ``STEP`` = 192 float32 multiply-accumulates (RTX 3090: 35.6 TFLOP/s of which a
product reaches two thirds, 0.94 TB/s); :func:`factorise` weighs it so. That the input is real would
spare part of the first product too, for reversing half of the spectrogram in memory, which takes as
long.

**Precision.** Constants are computed in float64 and rounded once (relative error 2e-8 rms). A sum of
``m`` float32 products in sequence errs by about ``6e-8 sqrt(m) / 2`` of its size, less where engines add in
blocks: the products together by 1e-7 to 4e-7 of a frame's level, 128 to 140 dB; a fast transform
in float32 reaches 137 dB here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Transform
from mrsep_deploy.transforms.spectrogram import Float32, Float64, divisor, hann

Complex128 = NDArray[np.complex128]

LARGEST_FIRST = 64
"""Largest ``N1``: the constants of its product take ``8 N N1`` bytes, 2 MB for ``N`` = 4096."""

STEP = 192
"""Multiply-accumulates a sample that cost as much as one product more."""


@dataclass(frozen=True)
class Factors:
    """``first * middle * last = n_fft``: ``N1``, ``N2`` and ``N3`` above; ``middle`` is 1 for two products."""

    first: int
    middle: int
    last: int

    @property
    def rest(self) -> int:
        """``M = N2 N3``."""
        return self.middle * self.last

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, in either direction."""
        middle = 4 * self.middle if self.middle > 1 else 0
        return self.first * self.rest * (2 * self.first + middle + 2 * self.last)

    @property
    def cost(self) -> int:
        """``macs`` and what a third product costs besides."""
        return self.macs + (STEP * self.first * self.rest if self.middle > 1 else 0)


@lru_cache(maxsize=32)
def factorise(n_fft: int, hop: int) -> Factors:
    """The cheapest factors of an even ``n_fft``; of equally cheap ones, those with the smaller constants.

    ``N3`` is even (half of ``k3`` is computed). If some such factors let ``M`` divide the hop, these are taken:
    frames then are made of whole rows ``n1`` of blocks one hop long.
    """
    firsts = [
        first for first in range(1, LARGEST_FIRST + 1) if n_fft % first == 0 and n_fft // first % 2 == 0
    ]
    aligned = [first for first in firsts if n_fft % hop == 0 and hop % (n_fft // first) == 0]
    usable = [
        Factors(first, n_fft // first // last, last)
        for first in aligned or firsts
        for last in range(2, n_fft // first + 1, 2)
        if n_fft // first % last == 0
    ]
    return min(usable, key=lambda factors: (factors.cost, factors.first))


def first_product(factors: Factors, window: Float64) -> Float32:
    """``[M, 2 N1, N1]``: for every (``n3``, ``n2``) from ``n1`` to (re/im, ``k1``) of ``A``."""
    n = _by_first(np.arange(window.size), factors)
    rotation = _root(n[:, None, :] * np.arange(factors.first)[None, :, None], window.size)
    rotation = rotation * _by_first(window, factors)[:, None, :]
    return np.concatenate([rotation.real, rotation.imag], axis=1).astype(np.float32)


def middle_product(factors: Factors) -> Float32:
    """``[N3, 2 N2, 2 N2]``: for every ``n3`` from (``n2``, re/im) of ``A`` to (re/im, ``k2``) of ``B``."""
    n2, n3 = np.arange(factors.middle), np.arange(factors.last)
    # w_N2^(n2 k2) w_M^(n3 k2) = w_M^((N3 n2 + n3) k2) as [n3, k2, n2]
    sample = factors.last * n2[None, None, :] + n3[:, None, None]
    return _stacked(_root(sample * n2[None, :, None], factors.rest))


def last_product(factors: Factors) -> Float32:
    """``[N3, 2 N3]``: from (``n3``, re/im) of ``B`` to (re/im, ``k3 < N3 / 2``) of the spectrum."""
    n3 = np.arange(factors.last)
    return _stacked(_root(np.outer(n3[: factors.last // 2], n3), factors.last))


def nyquist_product(factors: Factors, window: Float64) -> Float32:
    """``[1, N]``: from (``n3``, ``n2``, ``n1``) of a frame to its Nyquist bin, ``sum_n (-1)^n h[n] x[n]``."""
    signs = 1 - 2 * (np.arange(window.size) % 2)
    return _by_first(window * signs, factors).reshape(1, -1).astype(np.float32)


def transposed(product: Float32) -> Float32:
    """The inverse of a product: the transpose of a stacked complex matrix is the stacked conjugate transpose.

    So it is of the first one, ``Re(conj(w) G) = Re w Re G + Im w Im G``, given twice the window of the synthesis.
    """
    return np.ascontiguousarray(product.swapaxes(-1, -2))


def divided(transform: Transform) -> bool:
    """Whether the division by the overlapped squared windows is in ``synthesis_window``.

    It is where these repeat with the hop: the hop divides the window, and frames overlap fully everywhere.
    """
    return transform.n_fft % transform.hop == 0 and transform.envelope == "endless"


def analysis_window(transform: Transform) -> Float64:
    """The window, scaled, ``[n_fft]``."""
    return np.asarray(hann(transform.n_fft) / divisor(transform))


def synthesis_window(transform: Transform) -> Float64:
    """The window, scaled, over the sum of all squared windows that overlap it where :func:`divided`, ``[n_fft]``."""
    window = hann(transform.n_fft)
    if divided(transform):
        envelope = np.square(window).reshape(-1, transform.hop).sum(axis=0)
        window = window / np.tile(envelope, transform.overlap)
    scale = math.sqrt(transform.n_fft) if transform.scale == "orthonormal" else transform.n_fft
    return np.asarray(window * (1 / scale))


def _by_first(values: NDArray[Any], factors: Factors) -> NDArray[Any]:
    """``[n_fft]`` -> ``[(n3, n2), n1]``: the samples that belong to each matrix of the first product."""
    cube = values.reshape(factors.first, factors.middle, factors.last)
    return cube.transpose(2, 1, 0).reshape(factors.rest, factors.first)


def _stacked(matrix: Complex128) -> Float32:
    """Complex ``[..., rows, columns]`` -> real ``[..., (re/im, rows), (columns, re/im)]``."""
    real = np.stack([matrix.real, -matrix.imag], axis=-1)
    imaginary = np.stack([matrix.imag, matrix.real], axis=-1)
    both = np.concatenate([real, imaginary], axis=-3)
    return both.reshape(*both.shape[:-2], -1).astype(np.float32)


def _root(power: NDArray[np.int64], order: int) -> Complex128:
    """``exp(-2 pi i power / order)``; the power is reduced first, so that angles stay exact."""
    return np.asarray(np.exp(-2j * np.pi * (power % order) / order))
