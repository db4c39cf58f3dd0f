"""Analysis and synthesis against the published code, against ``torch.stft`` spelled out, and each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from demucs.hdemucs import pad1d
from demucs.htdemucs import HTDemucs
from models import noise, relative
from torch import Tensor

from mrsep_deploy.bundle.manifest import Transform
from mrsep_deploy.export.families import transforms
from mrsep_deploy.export.families.demucs.stages import transform
from mrsep_deploy.export.families.transforms import reflect
from mrsep_deploy.transforms import spectrogram

# All in float64, where an FFT rounds to about 1e-15: 1e-12 is that and a few thousand additions.
TOLERANCE = 1e-12
QUARTER = [(64, 16), (256, 64), (1024, 256), (4096, 1024), (528, 132)]
HALF = [(64, 32), (256, 128), (1024, 512), (4096, 2048)]
LENGTHS = [1, 2, 15, 16, 17, 100, 383, 384, 385, 767, 768, 1000, 5003]


@pytest.fixture(autouse=True)
def _windows_in_float64() -> Iterator[None]:
    """The published code makes its window in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def analyse(x: Tensor, n_fft: int, hop: int) -> Tensor:
    """The published transform of the whole of ``x``."""
    return transforms.analyse(x, transform(n_fft, hop, x.shape[-1]))


def synthesise(x: Tensor, n_fft: int, hop: int, length: int) -> Tensor:
    return transforms.synthesise(x, transform(n_fft, hop, length), length)


def published(n_fft: int) -> HTDemucs:
    return HTDemucs(["a"], channels=1, nfft=n_fft, depth=1, t_layers=0, dconv_mode=0)


def as_complex(x: Tensor) -> Tensor:
    """``[B, 2C, F, T]`` -> complex ``[B, C, F, T]``."""
    b, c, f, t = x.shape
    return torch.view_as_complex(x.view(b, c // 2, 2, f, t).permute(0, 1, 3, 4, 2).contiguous())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("n_fft", "hop"), QUARTER)
def test_quarter_hop_is_the_published_transform(n_fft: int, hop: int, length: int) -> None:
    model, x = published(n_fft), noise(2, 3, length)
    expected = model._spec(x)
    found = analyse(x, n_fft, hop)
    assert found.shape == (2, 6, n_fft // 2, math.ceil(length / hop))
    assert torch.equal(found, model._magnitude(expected))
    assert torch.equal(as_complex(found), expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("n_fft", "hop"), QUARTER)
def test_quarter_hop_synthesis_is_the_published_one(n_fft: int, hop: int, length: int) -> None:
    """On noise in the spectrogram too, which no signal has: how overlaps are averaged counts as well."""
    model = published(n_fft)
    x = noise(2, 3, 4, n_fft // 2, math.ceil(length / hop))
    expected = model._ispec(as_complex(x.flatten(0, 1)).view(2, 3, 2, n_fft // 2, -1), length)
    found = synthesise(x, n_fft, hop, length)
    assert found.shape == expected.shape == (2, 3, 2, length)
    assert relative(found, expected) < TOLERANCE


def half_hop_frame(x: Tensor, n_fft: int, index: int) -> Tensor:
    """Frame ``index`` of ``x`` ``[L]`` by definition: a windowed Fourier sum around sample ``index * hop``.

    Padding by a hop on the left, transforming centred (another ``n_fft / 2`` = hop) and dropping one
    frame leaves frame 0 centred on sample 0, the signal being reflected at both of its ends.
    """
    hop = n_fft // 2
    position = torch.arange(n_fft) + index * hop - n_fft // 2
    length = len(x)
    position = position.abs()
    position = torch.where(position >= length, 2 * (length - 1) - position, position)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(n_fft) / n_fft)
    phase = torch.outer(torch.arange(n_fft // 2), torch.arange(n_fft)).remainder(n_fft) * (
        2 * math.pi / n_fft
    )
    frame = x[position] * window / math.sqrt(n_fft)
    return torch.complex((frame * phase.cos()).sum(-1), -(frame * phase.sin()).sum(-1))


@pytest.mark.parametrize("length", [256, 384, 1000, 1024, 2111])
@pytest.mark.parametrize("n_fft", [64, 256])
def test_half_hop_is_a_windowed_fourier_sum(n_fft: int, length: int) -> None:
    x = noise(1, 1, length)
    found = as_complex(analyse(x, n_fft, n_fft // 2))[0, 0]
    assert found.shape == (n_fft // 2, math.ceil(length / (n_fft // 2)))
    for index in {0, 1, found.shape[1] // 2, found.shape[1] - 1}:
        expected = half_hop_frame(x[0, 0], n_fft, index)
        assert relative(torch.view_as_real(found[:, index]), torch.view_as_real(expected)) < TOLERANCE


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("n_fft", "hop"), HALF)
def test_half_hop_is_torchs_transform_of_the_padded_signal(n_fft: int, hop: int, length: int) -> None:
    """Padding spelled out with the published ``pad1d``, short signals included."""
    x = noise(2, 2, length)
    frames = math.ceil(length / hop)
    padded = pad1d(x, (hop, hop + frames * hop - length), mode="reflect")
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(n_fft) / n_fft)
    z = torch.stft(padded.flatten(0, 1), n_fft, hop, window=window, center=True, return_complex=True)
    expected = z.view(2, 2, n_fft // 2 + 1, -1)[:, :, :-1, 1 : 1 + frames] / math.sqrt(n_fft)
    found = as_complex(analyse(x, n_fft, hop))
    assert relative(torch.view_as_real(found), torch.view_as_real(expected)) < TOLERANCE


@pytest.mark.parametrize(("n_fft", "hop"), HALF)
def test_half_hop_synthesis_is_weighted_overlap_add(n_fft: int, hop: int) -> None:
    """Sum of windowed inverse frames over the sum of squared windows, for any spectrogram."""
    length, frames = 5 * hop - 7, 5
    x = noise(1, 2, n_fft // 2, frames)
    z = torch.nn.functional.pad(as_complex(x)[0, 0], (0, 0, 0, 1)) * math.sqrt(n_fft)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(n_fft) / n_fft)
    # Frame k is centred on sample k * hop; a zero frame before and two after complete the sums.
    total, weight = torch.zeros((frames + 4) * hop), torch.zeros((frames + 4) * hop)
    for k in range(-1, frames + 2):
        frame = torch.fft.irfft(z[:, k]) if 0 <= k < frames else torch.zeros(n_fft)
        start = (k + 1) * hop
        total[start : start + n_fft] += frame * window
        weight[start : start + n_fft] += window**2
    expected = (total / weight.clamp_min(1e-11))[2 * hop : 2 * hop + length]
    assert relative(synthesise(x, n_fft, hop, length)[0, 0], expected) < TOLERANCE


@pytest.mark.parametrize(("n_fft", "hop"), [*QUARTER, *HALF])
def test_round_trip(n_fft: int, hop: int) -> None:
    """Away from the ends, where frames are dropped, a signal without a Nyquist bin comes back.

    Tones far below the Nyquist frequency leak into its bin by the Hann window's side lobes, which fall
    with the third power of the distance: 1e-4 for the shortest window here.
    """
    t = torch.arange(3 * n_fft + 5)
    x = torch.stack([torch.cos(0.5 * t), torch.cos(0.9 * t + 0.1)])[None]
    found = synthesise(analyse(x, n_fft, hop), n_fft, hop, len(t))
    assert found.shape == x.shape
    inner = slice(n_fft, -n_fft)
    assert relative(found[..., inner], x[..., inner]) < 1e-4


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize(("left", "right"), [(12, 12), (12, 30), (30, 5), (7, 0)])
def test_reflection_of_short_signals(length: int, left: int, right: int) -> None:
    x = noise(1, 2, length)
    try:
        expected = pad1d(x, (left, right), mode="reflect")
    except RuntimeError:
        pytest.skip("torch cannot reflect this in the published code either")
    assert torch.equal(reflect(x, left, right), expected)


def test_scale_is_orthonormal() -> None:
    """White noise of variance 1 has bins of variance 3/8, the mean square of the Hann window."""
    x = torch.randn(1, 1, 200_000, generator=torch.Generator().manual_seed(0))
    z = as_complex(analyse(x, 1024, 256))
    assert float(z.abs().square().mean()) == pytest.approx(3 / 8, rel=0.03)


OTHERS = [
    Transform(2048, 441, 101, 1025, 1024, 1024, scale="none", envelope="frames"),
    Transform(2048, 441, 101, 1024, 1024, 1024, padding="zeros"),
    Transform(512, 128, 345, 257, 256, 256, envelope="frames", padding="zeros"),
    Transform(100, 33, 1337, 51, 50, 50, envelope="frames"),
]
"""Hops that do not divide the window, the Nyquist bin, no scale, zeros around; of 44,100 samples."""


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_any_transform_is_torchs_and_comes_back(other: Transform) -> None:
    """Centred frames are what ``torch.stft`` and ``torch.istft`` have; with the Nyquist bin nothing is lost."""
    x = noise(1, 2, 44_100)
    found = transforms.analyse(x, other)
    window = torch.hann_window(other.n_fft)
    mode = "reflect" if other.padding == "reflect" else "constant"
    z = torch.stft(
        x[0], other.n_fft, other.hop, window=window, pad_mode=mode, normalized=other.scale == "orthonormal",
        return_complex=True,
    )  # fmt: skip
    assert (
        relative(torch.view_as_real(as_complex(found)[0]), torch.view_as_real(z[:, : other.bins])) < TOLERANCE
    )
    back = transforms.synthesise(found, other, 44_100)
    if other.nyquist:
        assert relative(back, x) < TOLERANCE
    if other.envelope == "frames":
        expected = torch.istft(
            as_complex(found)[0], other.n_fft, other.hop, window=window, length=44_100,
            normalized=other.scale == "orthonormal",
        )  # fmt: skip
        assert relative(back[0], expected) < TOLERANCE


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_any_transform_on_the_host(other: Transform) -> None:
    """The host's are torch's, but for float32: 120 dB."""
    x = noise(1, 2, 44_100, dtype=torch.float32)
    exact = transforms.analyse(x.double(), other)
    found = spectrogram.analyse(x.numpy(), other)
    assert relative(torch.from_numpy(found), exact) < 1e-6
    back = spectrogram.synthesise(found.reshape(2, 2, other.bins, other.frames), other, 44_100, workers=2)
    assert (
        relative(
            torch.from_numpy(back), transforms.synthesise(torch.from_numpy(found).double(), other, 44_100)[0]
        )
        < 1e-6
    )
