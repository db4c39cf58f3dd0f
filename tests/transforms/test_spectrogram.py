"""Analysis and synthesis are the published transforms; levels, bins and statistics are what physics says."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundles import transform as published_transform
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

from mrsep_deploy.transforms import spectrogram
from mrsep_deploy.transforms.spectrogram import (
    NORMALISE_EPS,
    denormalise,
    normalise,
    statistics,
)

Array = NDArray[Any]

TRANSFORMS = [(2048, 512), (4096, 1024), (512, 128), (512, 256), (4096, 2048), (64, 16), (64, 32)]

# A float32 value is off by at most 2^-24 (144 dB), 2^-25.8 (155 dB) on average. A fast transform of n points
# adds rounding of that size in each of its log2(n) stages; as these are independent, 12 stages of a few
# operations lose 10 to 20 dB. A window, an offset or a scale computed in float32 with an error that adds up
# would fall below.
SNR = 130.0


def analyse(x: Array, n_fft: int, hop: int, **options: Any) -> NDArray[np.float32]:
    """The published transform of the whole of ``x``."""
    return spectrogram.analyse(x, published_transform(n_fft, hop, x.shape[-1]), **options)


def synthesise(x: Array, n_fft: int, hop: int, length: int, **options: Any) -> NDArray[np.float32]:
    return spectrogram.synthesise(x, published_transform(n_fft, hop, length), length, **options)


def frame_offset(n_fft: int, hop: int) -> int:
    return published_transform(n_fft, hop, 1).offset


def snr(found: Array, exact: Array) -> float:
    """Signal to noise in dB; equal shapes are part of what is asserted."""
    assert found.shape == exact.shape
    noise = float(np.square(found.astype(np.float64) - exact).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(np.square(exact).sum()) / noise)


def published_padding(length: int, n_fft: int, hop: int) -> tuple[int, int]:
    frames = -(-length // hop)
    pad = 3 * (hop // 2) if 4 * hop == n_fft else hop
    return pad, pad + frames * hop - length


def published_analysis(x: Array, n_fft: int, hop: int) -> Array:
    """The definition, word for word, in float64: complex ``[B, C, n_fft/2, ceil(L/hop)]``."""
    signal = torch.from_numpy(x.astype(np.float64))
    length = signal.shape[-1]
    left, right = published_padding(length, n_fft, hop)
    if length <= max(left, right):
        zeros = max(left, right) - length + 1
        after = min(right, zeros)
        before = zeros - after
        signal = F.pad(signal, (before, after))
        left, right = left - before, right - after
    signal = F.pad(signal, (left, right), mode="reflect")
    z = torch.stft(
        signal.flatten(0, 1),
        n_fft,
        hop,
        win_length=n_fft,
        window=torch.hann_window(n_fft, dtype=torch.float64),
        center=True,
        pad_mode="reflect",
        normalized=True,
        return_complex=True,
    )
    first, frames = (2 if 4 * hop == n_fft else 1), -(-length // hop)
    z = z[:, :-1, first : first + frames]
    return z.view(*x.shape[:2], *z.shape[1:]).numpy()


def published_synthesis(z: Array, n_fft: int, hop: int, length: int) -> Array:
    """Complex ``[N, n_fft/2, T]`` -> ``[N, length]``, in float64."""
    count, _, frames = z.shape
    around = (2, 2) if 4 * hop == n_fft else (1, 2)
    pad = published_padding(length, n_fft, hop)[0]
    full = F.pad(torch.from_numpy(z), (*around, 0, 1))
    assert full.shape == (count, n_fft // 2 + 1, frames + sum(around))
    signal = torch.istft(
        full,
        n_fft,
        hop,
        win_length=n_fft,
        window=torch.hann_window(n_fft, dtype=torch.float64),
        center=True,
        normalized=True,
        length=hop * frames + 2 * pad,
    )
    return signal[:, pad : pad + length].numpy()


def as_channels(z: Array) -> Array:
    """Complex ``[B, C, F, T]`` -> ``[B, 2C, F, T]``, (real, imaginary) adjacent for every audio channel."""
    pairs = np.stack([z.real, z.imag], axis=2)
    return pairs.reshape(z.shape[0], -1, *z.shape[2:])


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def below_nyquist(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise with nothing near the Nyquist frequency, whose bin the models drop."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(shape))
    spectrum[..., int(0.8 * spectrum.shape[-1]) :] = 0
    return np.fft.irfft(spectrum, shape[-1]).astype(np.float32)


# --- the definition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_fft", "hop"), TRANSFORMS)
@pytest.mark.parametrize("hops", [0.01, 1, 2.5, 7, 20.3])
def test_analysis_is_the_published_one(n_fft: int, hop: int, hops: float) -> None:
    x = noise(2, 2, max(1, int(hops * hop)))
    found = analyse(x, n_fft, hop)
    assert found.dtype == np.float32
    assert snr(found, as_channels(published_analysis(x, n_fft, hop))) > SNR


@pytest.mark.parametrize(("n_fft", "hop"), TRANSFORMS)
@pytest.mark.parametrize("hops", [0.01, 1, 2.5, 7, 20.3])
def test_synthesis_is_the_published_one(n_fft: int, hop: int, hops: float) -> None:
    """Of any spectrogram, not only of one that an analysis could have made: models change it freely."""
    length = max(1, int(hops * hop))
    x = noise(3, 2, n_fft // 2, -(-length // hop))
    z = x[:, 0].astype(np.float64) + 1j * x[:, 1]
    found = synthesise(x.copy(), n_fft, hop, length)
    assert found.dtype == np.float32
    assert snr(found, published_synthesis(z, n_fft, hop, length)) > SNR


@given(
    transform=st.sampled_from([(16, 4), (16, 8), (64, 16), (64, 32), (256, 64)]),
    length=st.integers(1, 700),
    channels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_length(transform: tuple[int, int], length: int, channels: int, seed: int) -> None:
    """From one sample on: those shorter than the padding are extended by zeros before they are reflected."""
    n_fft, hop = transform
    x = noise(1, channels, length, seed=seed)
    z = published_analysis(x, n_fft, hop)
    found = analyse(x, n_fft, hop)
    assert found.shape == (1, 2 * channels, n_fft // 2, -(-length // hop))
    assert snr(found, as_channels(z)) > SNR
    back = synthesise(found.reshape(channels, 2, *found.shape[2:]), n_fft, hop, length)
    # At the ends few windows overlap, and dividing by their sum can make rounding larger: 10 dB for it.
    assert snr(back, published_synthesis(z[0], n_fft, hop, length)) > SNR - 10


@pytest.mark.parametrize(("n_fft", "length"), [(2048, 20000), (4096, 44100), (512, 100)])
def test_same_as_demucs(n_fft: int, length: int) -> None:
    demucs = pytest.importorskip("demucs.htdemucs")
    published, size = demucs.HTDemucs, SimpleNamespace(nfft=n_fft, hop_length=n_fft // 4)
    x = noise(1, 2, length)
    z = published._spec(size, torch.from_numpy(x))
    # Both sides are float32: each is SNR away from the truth, so 3 dB more apart.
    assert snr(analyse(x, n_fft, n_fft // 4), as_channels(z.numpy()).astype(np.float64)) > SNR - 3
    back = published._ispec(size, z, length).numpy()[0]
    pairs = as_channels(z.numpy()).reshape(2, 2, n_fft // 2, -1)
    found = synthesise(pairs.astype(np.float32), n_fft, n_fft // 4, length)
    # The published window is float32 in sum and in product: its errors of 2^-24 repeat in every frame.
    assert snr(found, back.astype(np.float64)) > SNR - 10


# --- what a spectrogram is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_fft", "hop"), TRANSFORMS)
def test_round_trip(n_fft: int, hop: int) -> None:
    """Away from the ends, where frames beyond the signal are missing, synthesis undoes analysis."""
    length = 10 * n_fft + 37
    x = below_nyquist(1, 2, length)
    z = analyse(x, n_fft, hop)
    back = synthesise(z.reshape(2, 2, *z.shape[2:]), n_fft, hop, length)
    inner = slice(n_fft, -n_fft)
    if n_fft < 100:  # so short a window leaks to the Nyquist bin, which is gone: -30 dB and less
        assert snr(back[:, inner], x[0, :, inner].astype(np.float64)) > 30
    else:
        assert snr(back[:, inner], x[0, :, inner].astype(np.float64)) > SNR - 10


@pytest.mark.parametrize(("n_fft", "hop"), [t for t in TRANSFORMS if t[0] > 100])
def test_energy_is_kept(n_fft: int, hop: int) -> None:
    """Parseval: a frame's bins hold the energy of its windowed samples, as the transform is orthonormal."""
    x = below_nyquist(1, 1, 8 * n_fft)
    z = analyse(x, n_fft, hop).astype(np.float64)
    power = np.square(z[0]).sum(axis=0)
    energy = 2 * power.sum(axis=0) - power[0]  # every bin but 0 stands for its negative frequency too
    window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    offset = frame_offset(n_fft, hop)
    for frame in range(n_fft // hop, z.shape[-1] - n_fft // hop):
        start = frame * hop - offset
        expected = np.square(window * x[0, 0, start : start + n_fft]).sum()
        # Rounding of 1e-7 in amplitude, over bins that add up; the missing Nyquist bin is smaller still.
        assert energy[frame] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n_fft", "hop"), TRANSFORMS)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.7])
def test_a_sine_lands_in_its_bin(n_fft: int, hop: int, share: float) -> None:
    """With ``a cos(2 pi k n / n_fft)``, bin k holds ``a sqrt(n_fft) / 4`` at the phase of the frame's start,
    its neighbours minus half of that, all others nothing."""
    k, amplitude, channel = int(share * n_fft / 2), 0.7, 1
    length = 8 * n_fft
    x = np.zeros((1, 2, length), np.float32)
    x[0, channel] = amplitude * np.cos(2 * np.pi * k * np.arange(length) / n_fft)
    z = analyse(x, n_fft, hop)
    assert not z[:, :2].any()  # the other channel
    found = z[0, 2 * channel] + 1j * z[0, 2 * channel + 1].astype(np.float64)
    inner = np.arange(n_fft // hop, found.shape[1] - n_fft // hop)
    starts = inner * hop - frame_offset(n_fft, hop)
    peak = amplitude * math.sqrt(n_fft) / 4
    expected = np.zeros((n_fft // 2, len(inner)), complex)
    expected[k] = peak * np.exp(2j * np.pi * k * starts / n_fft)
    expected[k - 1] = expected[k + 1] = -expected[k] / 2
    # The sine is rounded to 2^-25 of itself, and so spreads over all bins at -140 dB.
    assert np.abs(found[:, inner] - expected).max() < 1e-6 * peak


@pytest.mark.parametrize(("n_fft", "hop"), TRANSFORMS)
def test_analysis_is_linear_and_items_do_not_meet(n_fft: int, hop: int) -> None:
    x = noise(3, 2, 3 * n_fft)
    x[1] = 0
    z = analyse(x, n_fft, hop)
    assert not z[1].any()
    np.testing.assert_array_equal(analyse(x[2:], n_fft, hop), z[2:])
    np.testing.assert_array_equal(analyse(4 * x, n_fft, hop), 4 * z)  # a power of two rounds nothing
    np.testing.assert_array_equal(analyse(x[:, ::-1], n_fft, hop)[:, :2], z[:, 2:])


# --- buffers and threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("n_fft", "hop"), [(512, 128), (512, 256)])
def test_given_buffers_are_filled_whatever_they_held(n_fft: int, hop: int, workers: int) -> None:
    x = noise(2, 2, 5 * n_fft + 1)
    expected = analyse(x, n_fft, hop)
    out = np.full_like(expected, np.nan)
    assert analyse(x, n_fft, hop, out=out, workers=workers) is out
    np.testing.assert_array_equal(out, expected)
    pairs = out.reshape(4, 2, *out.shape[2:])
    signal = synthesise(pairs, n_fft, hop, x.shape[-1])
    buffer = np.full_like(signal, np.nan)
    assert synthesise(pairs, n_fft, hop, x.shape[-1], out=buffer, workers=workers) is buffer
    np.testing.assert_array_equal(buffer, signal)
    np.testing.assert_array_equal(pairs, expected.reshape(pairs.shape))  # the input is only read


@pytest.mark.parametrize("workers", [1, 3])
def test_synthesis_of_a_scaled_and_shifted_spectrogram(workers: int) -> None:
    """``affine`` is the synthesis of ``a x + b``, a constant in every bin included."""
    n_fft, hop, length = 256, 64, 3000
    x = noise(3, 2, n_fft // 2, math.ceil(length / hop))
    affine = [(0.5, 0.0), (2.0, -0.25), (1e-3, 4.0)]
    scaled = np.stack([a * one + b for one, (a, b) in zip(x, affine, strict=True)]).astype(np.float32)
    expected = synthesise(scaled, n_fft, hop, length)
    found = synthesise(x, n_fft, hop, length, workers=workers, affine=affine)
    for one, exact in zip(found, expected, strict=True):
        # the spectrogram that is compared with was itself rounded, at the size of its largest shift
        assert np.linalg.norm(one - exact) <= 3e-6 * np.linalg.norm(exact)


# --- statistics --------------------------------------------------------------------------------------------

ADVERSARIAL = {
    "noise": noise(1, 2, 50_000),
    "offset 1e3": noise(1, 2, 50_000) + np.float32(1e3),
    "offset -1e6": noise(1, 2, 50_000) - np.float32(1e6),
    "quiet on an offset": noise(1, 2, 50_000) * np.float32(1e-3) + np.float32(1),
    "one loud sample": np.concatenate(
        [noise(1, 1, 50_000) * np.float32(1e-4), np.full((1, 1, 1), 1e3)], axis=-1
    ),
    "loud": noise(1, 2, 50_000) * np.float32(1e10),
    "rising": np.linspace(0, 1e4, 100_000, dtype=np.float32)[None, None],
    "two samples": np.array([[[1e5, 1e5 + 1]]]),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_statistics(name: str) -> None:
    """float32 sums would lose the deviation on an offset altogether; these keep seven digits of it."""
    x = ADVERSARIAL[name].astype(np.float32)
    exact = x.astype(np.float64)
    (mean, std) = statistics(x)[0]
    # The mean is a float64 sum. Squares are rounded to float32, each by up to 6e-8 of itself.
    assert mean == pytest.approx(exact.mean(), abs=1e-13 * np.abs(exact).max())
    assert std == pytest.approx(exact.std(ddof=1), rel=1e-7)


def test_statistics_of_each_item() -> None:
    x = noise(3, 4, 5, 6) * np.array([1, 0, 100], np.float32)[:, None, None, None] + np.float32(0.1)
    found = statistics(x)
    assert found.dtype == np.float64
    assert found.shape == (3, 2)
    assert found[1, 1] == 0  # a constant deviates by nothing, not by rounding
    for item, row in zip(x.astype(np.float64), found, strict=True):
        assert row == pytest.approx([item.mean(), item.std(ddof=1)], rel=1e-7)


def test_a_single_sample_has_no_deviation() -> None:
    assert statistics(np.full((1, 1), 3, np.float32)).tolist() == [[3.0, 0.0]]


@given(mean=st.floats(-10, 10), log_std=st.floats(-6, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_normalising_and_back(mean: float, log_std: float, seed: int) -> None:
    """Normalised, a signal has mean 0 and deviation ``std / (std + eps)``; going back, it is itself again but
    for that same factor, which is the published one."""
    x = (noise(2, 3, 1000, seed=seed) * 10**log_std + mean).astype(np.float32)
    exact, stats = x.astype(np.float64), statistics(x)
    shrunk = (stats[:, 1] / (stats[:, 1] + NORMALISE_EPS))[:, None, None]
    centre = stats[:, :1, None]
    normalised = x.copy()
    normalise(normalised, stats)
    expected = (exact - centre) / (NORMALISE_EPS + stats[:, 1:, None])
    # Subtracting a mean rounded to float32 costs 6e-8 of it; all else is relative to the value.
    scale = 1 + np.abs(centre) / (NORMALISE_EPS + stats[:, 1:, None])
    assert (np.abs(normalised - expected) <= 3e-7 * (scale + np.abs(expected))).all()
    denormalise(normalised, stats, (1.0,) * 3)
    back = centre + (exact - centre) * shrunk
    assert (np.abs(normalised - back) <= 1e-6 * (np.abs(back) + np.abs(centre) + stats[:, 1:, None])).all()


def test_denormalising_is_the_inverse_of_normalising_a_loud_signal() -> None:
    """With a deviation of 1e4 the published 1e-5 in the divisor is beyond float32."""
    x = 1e4 * noise(2, 2, 1000) + np.float32(300)
    y = x.copy()
    stats = statistics(x)
    normalise(y, stats)
    assert np.abs(y).max() < 6
    denormalise(y, stats, (1.0, 1.0))
    # Two roundings each way, of values up to 4 deviations.
    assert np.abs(y - x).max() < 4 * 4 * 2**-24 * np.abs(x).max()


def test_gains_weigh_sources() -> None:
    stats = np.array([[0.5, 2.0], [-1.0, 0.25]])
    x = noise(2, 3, 2, 10)
    gains = (1.0, 0.0, -0.5)
    y = x.copy()
    denormalise(y, stats, gains)
    for item in range(2):
        for source, gain in enumerate(gains):
            expected = (x[item, source].astype(np.float64) * stats[item, 1] + stats[item, 0]) * gain
            assert y[item, source] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert not y[:, 1].any()
