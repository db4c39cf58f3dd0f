"""Our HDemucs and Demucs and the published ones, given the same parameters, are the same function."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from demucs.demucs import Demucs as PublishedDemucs
from demucs.hdemucs import HDemucs as PublishedHDemucs
from models import SOURCES, noise, randomise, relative

from mrsep_deploy.export.families import FAMILIES
from mrsep_deploy.export.families.staged import StagedModel

FAMILY = FAMILIES["hdemucs"]

# Both sides run in float64. A difference in a formula, or in the precision of a constant, is far above this.
TOLERANCE = 1e-10

# Rewrites work constants out in float64 and round them to float32 once, 6e-8 at most.
ROUNDED_ONCE = 1e-6

PUBLISHED = {"hdemucs": PublishedHDemucs, "demucs_time": PublishedDemucs}

HYBRID: dict[str, object] = {
    "sources": SOURCES[:2],
    "channels": 4,
    "nfft": 64,
    "depth": 4,
    "dconv_comp": 2,
    "dconv_lstm": 2,
    "dconv_attn": 2,
    "samplerate": 2000,
    "segment": 0.5,
}
"""A spectrogram of 32 bins: one layer, the merging layer, and two along time."""

WAVEFORM: dict[str, object] = {
    "sources": SOURCES[:2],
    "channels": 4,
    "depth": 3,
    "dconv_comp": 2,
    "dconv_lstm": 1,
    "dconv_attn": 1,
    "samplerate": 2000,
    "segment": 0.3,
}

HYBRIDS: dict[str, dict[str, object]] = {
    "base": {},
    "windows": {"segment": 7},
    "windows-odd": {"segment": Fraction(13333, 2000)},
    "lstm-in-frequency": {"dconv_lstm": 0, "dconv_attn": 0, "segment": 0.2, "channels": 8},
    "magnitudes": {"cac": False},
    "old": {"hybrid_old": True},
    "magnitudes-old": {"cac": False, "hybrid_old": True, "audio_channels": 1},
    "bands": {"nfft": 256, "multi_freqs": [0.3, 0.6], "multi_freqs_depth": 1},
    "bands-twice": {"nfft": 1024, "multi_freqs": [0.1, 0.3], "depth": 5, "dconv_lstm": 4, "dconv_attn": 4},
    "bands-halves": {"nfft": 4096, "multi_freqs": [0.25, 0.5], "depth": 6, "dconv_lstm": 5, "dconv_attn": 5},
    "bands-none": {"multi_freqs": [], "multi_freqs_depth": 2},
    "three-channels": {"audio_channels": 3},
    "one-source-mono": {"sources": SOURCES[:1], "audio_channels": 1},
    "time-channels": {"channels_time": 8},
    "norms": {"norm_starts": 0, "norm_groups": 2},
    "dconv-3": {"dconv_mode": 3},
    "dconv-none": {"dconv_mode": 0},
    "dconv-undilated": {"dconv_depth": -2, "dconv_mode": 3},
    "no-embedding": {"freq_emb": 0},
    "no-rewrite": {"rewrite": False},
    "contexts": {"context": 2, "context_enc": 1},
    "merge-last": {"depth": 2, "dconv_lstm": 1, "dconv_attn": 1},
    "merge-only": {"depth": 1, "nfft": 64, "kernel_size": 32, "stride": 16, "dconv_lstm": 0},
    "time-stride": {"time_stride": 4},
    "growth": {"growth": 3, "channels": 8},
    "odd-segment": {"segment": Fraction(997, 2000)},
}  # fmt: skip

WAVEFORMS: dict[str, dict[str, object]] = {
    "base": {},
    "no-resampling": {"resample": False},
    "no-normalisation": {"normalize": False},
    "neither": {"resample": False, "normalize": False, "dconv_mode": 0},
    "bottom-lstm": {"lstm_layers": 2, "dconv_mode": 0},
    "bottom-lstm-deep": {"lstm_layers": 1, "dconv_lstm": 2, "dconv_attn": 9},
    "windows": {"segment": 3, "dconv_lstm": 0, "dconv_attn": 3},
    "no-bottleneck": {"dconv_lstm": 9, "dconv_attn": 9},
    "lstm-from-0": {"dconv_lstm": 0, "dconv_attn": 0, "channels": 8},
    "relu": {"glu": False, "gelu": False},
    "no-rewrite": {"rewrite": False},
    "norms": {"norm_starts": 0, "norm_groups": 2},
    "dconv-3": {"dconv_mode": 3},
    "dconv-decoder": {"dconv_mode": 2},
    "context": {"context": 3},
    "stereo-three": {"audio_channels": 3, "sources": SOURCES[:3]},
    "odd-kernel": {"kernel_size": 7, "stride": 3},
    "odd-kernel-no-resampling": {"kernel_size": 5, "stride": 2, "resample": False},
    "growth": {"growth": 3, "channels": 8},
}


@pytest.fixture(autouse=True)
def _published_in_float64() -> Iterator[None]:
    """Let the published code make its windows in float64: it makes them in the default dtype."""
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        yield
    torch.set_default_dtype(torch.float32)


def pair(variant: str, arguments: dict[str, object], seed: int = 0) -> tuple[StagedModel, torch.nn.Module]:
    """Our model and the published one with equal parameters."""
    config, _ = FAMILY.config(variant, (), arguments)
    ours, theirs = FAMILY.model(config), PUBLISHED[variant](**arguments).eval()
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    randomise(theirs, seed)
    # Parameters are float32 numbers, as those of checkpoints are.
    ours.load_state_dict({name: value.float().double() for name, value in theirs.state_dict().items()})
    theirs.load_state_dict(ours.state_dict())
    return StagedModel(FAMILY, ours), theirs


def differences(variant: str, arguments: dict[str, object], seed: int = 0) -> tuple[float, float]:
    """Of our model, and of the same rewritten, to the published one."""
    ours, theirs = pair(variant, arguments, seed)
    mix = noise(2, ours.model.config.audio_channels, ours.model.config.segment_samples, seed=seed)
    expected = theirs(mix)
    rewritten = copy.deepcopy(ours)
    FAMILY.rewrite(rewritten.model, FAMILY.rewrites)
    return relative(ours(mix), expected), relative(rewritten.double()(mix), expected)


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrid(name: str) -> None:
    plain, rewritten = differences("hdemucs", {**HYBRID, **HYBRIDS[name]})
    assert plain < TOLERANCE
    assert rewritten < ROUNDED_ONCE


@pytest.mark.parametrize("name", WAVEFORMS)
def test_waveform(name: str) -> None:
    plain, rewritten = differences("demucs_time", {**WAVEFORM, **WAVEFORMS[name]})
    assert plain < TOLERANCE
    assert rewritten < ROUNDED_ONCE
