"""The transforms of HDemucs, and magnitudes with the phase of the mix, are the published ones."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from demucs.hdemucs import HDemucs as Published
from models import noise, relative
from torch import Tensor

from mrsep_deploy.bundle.manifest import Branch, Stage, TensorSpec
from mrsep_deploy.export.families.hdemucs.config import HybridConfig
from mrsep_deploy.export.families.hdemucs.hybrid import Magnitudes, WithPhase
from mrsep_deploy.export.families.hdemucs.stages import hybrid_transform
from mrsep_deploy.export.families.transforms import analyse, synthesise
from mrsep_deploy.export.graphs.transforms import transform_graph
from mrsep_deploy.transforms import spectrogram

# In float64, where an FFT rounds to about 1e-15: 1e-12 is that and a few thousand additions.
TOLERANCE = 1e-12
# In float32, 120 dB: what the products of a factored transform lose at these sizes. A segment shorter than a frame
# lies where the first window begins, so that its synthesis divides small numbers by small ones.
SINGLE, SHORT = 1e-6, 1e-5
CASES = [(n_fft, length) for n_fft in (64, 1024) for length in (1, 16, 255, 256, 257, 2000)]


@pytest.fixture(autouse=True)
def _windows_in_float64() -> Iterator[None]:
    """The published code makes its window in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def config(n_fft: int, length: int, old: bool) -> HybridConfig:
    return HybridConfig(
        "hdemucs", ("a",), nfft_list=(n_fft,), samplerate=1000, segment=Fraction(length, 1000), hybrid_old=old
    )


def published(n_fft: int, old: bool = False, cac: bool = True) -> Published:
    return Published(["a"], channels=4, depth=1, nfft=n_fft, dconv_mode=0, hybrid_old=old, cac=cac).eval()


def pairs(z: Tensor) -> Tensor:
    """Complex ``[B, C, F, T]`` -> ``[B, 2C, F, T]``."""
    return torch.view_as_real(z).permute(0, 1, 4, 2, 3).flatten(1, 2)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("n_fft", "length"), CASES)
def test_spectrogram_and_its_inverse(n_fft: int, length: int, old: bool) -> None:
    model, x, transform = (
        published(n_fft, old),
        noise(2, 2, length),
        hybrid_transform(config(n_fft, length, old)),
    )
    z = model._spec(x)
    assert relative(analyse(x, transform), pairs(z)) < TOLERANCE
    if not old or length >= n_fft:  # shorter than that, torch finds no window under the published frames
        estimate = noise(*pairs(z).shape, seed=2)
        there = torch.view_as_complex(estimate.unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2).contiguous())
        expected = model._ispec(there, length)
        assert relative(synthesise(estimate, transform, length), expected) < TOLERANCE


@pytest.mark.parametrize(("n_fft", "length"), [case for case in CASES if case[1] > case[0] // 8])
def test_the_old_transform_on_the_host_and_as_graphs(n_fft: int, length: int) -> None:
    import onnxruntime as ort

    transform = hybrid_transform(config(n_fft, length, old=True))
    x = noise(1, 2, length, dtype=torch.float32)
    exact = analyse(x.double(), transform)
    found = spectrogram.analyse(x.numpy(), transform)
    back, limit = synthesise(exact, transform, length), SINGLE if length > n_fft else SHORT
    pieces = np.ascontiguousarray(exact.float().numpy().reshape(2, 2, transform.bins, transform.frames))
    assert relative(torch.from_numpy(found), exact) < SINGLE
    assert relative(torch.from_numpy(spectrogram.synthesise(pieces, transform, length))[None], back) < limit
    branches = (Branch("s", (1.0,), transform, normalise=False),)
    shapes = {"mix": (1, 2, length), "spectrogram": tuple(exact.shape), "signal": (1, 1, 2, length)}
    tensors = {name: TensorSpec(name, shape) for name, shape in shapes.items()}
    for stage, feed, expected in (
        (Stage("a", "spectrogram", "s", ("mix",), ("spectrogram",)), x.numpy(), exact),
        (Stage("b", "inverse", "s", ("spectrogram",), ("signal",)), exact.float().numpy(), back[:, None]),
    ):
        graph = transform_graph(stage, branches, tensors)
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (result,) = session.run(None, {stage.inputs[0]: feed})
        assert relative(torch.from_numpy(result), expected) < limit, stage.name


def test_magnitudes_and_phases() -> None:
    """Loud, quiet, and silent bins; a bin of zeros has the phase zero, and magnitudes may be negative."""
    model, mix = published(64, cac=False), noise(2, 3, 700)
    z = model._spec(mix)
    z[0, :, :5] = 0
    z[1, :, 5:9] *= 1e-30
    size = model._magnitude(z)
    mean, std = size.mean((1, 2, 3), keepdim=True), size.std((1, 2, 3), keepdim=True)
    found, statistics = Magnitudes(3)(pairs(z))
    assert relative(found, (size - mean) / (1e-5 + std)) < TOLERANCE
    assert relative(statistics, torch.cat([mean, std], 1).flatten(1)) < TOLERANCE
    estimate = noise(2, 6, *size.shape[2:], seed=3)
    expected = model._mask(z, (estimate * std + mean).unflatten(1, (2, 3)))
    result = WithPhase(3)(estimate, statistics, pairs(z))[0]
    assert relative(result, pairs(expected.flatten(1, 2))) < TOLERANCE
