"""Our HTDemucs and the published one, given the same parameters, are the same function."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

import demucs.transformer
import pytest
import torch
from demucs.htdemucs import HTDemucs
from models import SMALL, SOURCES, noise, randomise, relative
from torch import Tensor

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families.demucs.config import parse_config
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.variants import build_model

# Both sides run in float64, where rounding reaches 1e-13 or so through the norms of a few layers. Any
# difference in a formula or in the precision of a constant (1e-7 for one float32) is far above 1e-10.
TOLERANCE = 1e-10

BASE: dict[str, object] = {**SMALL, "nfft": 512, "t_layers": 2, "t_heads": 2, "t_hidden_scale": 2.0}
MERGED: dict[str, object] = {**SMALL, "nfft": 64, "t_layers": 0}


@pytest.fixture(autouse=True)
def _published_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the published code make its windows and positions in float64.

    It makes them in the default dtype. Positions are then rounded to float32, as they are in every
    published run and in ours: what is compared is how they are used, and that they are the same.
    """
    for name in ("create_sin_embedding", "create_2d_sin_embedding"):

        def rounded(*args: object, original=getattr(demucs.transformer, name), **kwargs: object) -> Tensor:  # type: ignore[no-untyped-def] # noqa: B008
            return original(*args, **kwargs).float()

        monkeypatch.setattr(demucs.transformer, name, rounded)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair(arguments: dict[str, object], seed: int = 0) -> tuple[SeparationModel, HTDemucs]:
    """Our model and the published one with equal parameters."""
    config, _ = parse_config("htdemucs", (), arguments)
    ours, theirs = build_model(config), HTDemucs(**arguments).eval()
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    randomise(theirs, seed)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def difference(arguments: dict[str, object], length: int | None = None, seed: int = 0) -> float:
    ours, theirs = pair(arguments, seed)
    channels = int(str(arguments.get("audio_channels", 2)))
    mix = noise(2, channels, length or ours.config.segment_samples, seed=seed)
    expected = theirs(mix)
    found = ours(mix)
    assert found.shape == expected.shape == (2, len(theirs.sources), channels, mix.shape[-1])
    return relative(found, expected)


VARIANTS: dict[str, dict[str, object]] = {
    "base": {},
    "one-source": {"sources": SOURCES[:1]},
    "six-sources": {"sources": SOURCES},
    "mono": {"audio_channels": 1},
    "three-channels": {"audio_channels": 3},
    "wide": {"channels": 12},
    "same-time-channels": {"channels_time": 4},
    "other-time-channels": {"channels_time": 6, "t_layers": 0},
    "growth-1": {"growth": 1},
    "growth-3": {"growth": 3, "depth": 2},
    "growth-1.5": {"growth": 1.5, "t_layers": 0},
    "depth-1": {"depth": 1},
    "depth-2": {"depth": 2},
    "depth-4": {"depth": 4, "nfft": 2048},
    "norm-from-0": {"norm_starts": 0, "norm_groups": 2},
    "norm-from-1": {"norm_starts": 1},
    "norm-groups-1": {"norm_starts": 0, "norm_groups": 1},
    "dconv-none": {"dconv_mode": 0},
    "dconv-decoder": {"dconv_mode": 2},
    "dconv-both": {"dconv_mode": 3},
    "dconv-depth-0": {"dconv_depth": 0},
    "dconv-depth-1": {"dconv_depth": 1},
    "dconv-depth-4": {"dconv_depth": 4, "dconv_mode": 3},
    "dconv-no-dilation": {"dconv_depth": -3},
    "dconv-comp-4": {"dconv_comp": 4},
    "dconv-comp-1.5": {"dconv_comp": 1.5},
    "dconv-wider": {"dconv_comp": 0.4},
    "no-rewrite": {"rewrite": False},
    "no-rewrite-norms": {"rewrite": False, "norm_starts": 0},
    "context-0": {"context": 0},
    "context-2": {"context": 2},
    "context-enc": {"context_enc": 1},
    "bottom": {"bottom_channels": 12},
    "bottom-unused": {"bottom_channels": 12, "t_layers": 0},
    "no-transformer": {"t_layers": 0},
    "one-layer": {"t_layers": 1},
    "five-layers": {"t_layers": 5},
    "heads-1": {"t_heads": 1},
    "heads-8": {"t_heads": 8},
    "hidden-0.7": {"t_hidden_scale": 0.7},
    "cross-first": {"t_cross_first": True, "t_layers": 3},
    "no-norm-in": {"t_norm_in": False},
    "norm-in-group": {"t_norm_in": False, "t_norm_in_group": True},
    "norm-in-both": {"t_norm_in": True, "t_norm_in_group": True},
    "group-norm": {"t_group_norm": True},
    "norm-last": {"t_norm_first": False},
    "norm-last-group": {"t_norm_first": False, "t_group_norm": True},
    "no-norm-out": {"t_norm_out": False},
    "no-layer-scale": {"t_layer_scale": False},
    "relu": {"t_gelu": False},
    "positions-weak": {"t_weight_pos_embed": 0.3},
    "positions-none": {"t_weight_pos_embed": 0.0},
    "max-period": {"t_max_period": 100.0},
    "no-embedding": {"freq_emb": 0},
    "embedding-scale": {"freq_emb": 0.7, "emb_scale": 3, "emb_smooth": False},
    "kernel-4-stride-2": {"kernel_size": 4, "stride": 2},
    "kernel-2-stride-2": {"kernel_size": 2, "stride": 2},
    "kernel-6-stride-2": {"kernel_size": 6, "stride": 2, "depth": 1},
    "kernel-8-stride-2": {"kernel_size": 8, "stride": 2, "depth": 1, "freq_emb": 0},
    "kernel-8-stride-2-embedding": {"kernel_size": 8, "stride": 2, "depth": 1, "freq_emb": 0.4},
    "kernel-16-stride-8": {"kernel_size": 16, "stride": 8, "nfft": 2048, "depth": 2},
    "segment-fraction": {"segment": Fraction(39, 50)},
    "segment-float": {"segment": 0.7301},
    "segment-odd": {"segment": Fraction(1477, 2000)},
    "segment-even": {"segment": Fraction(1478, 2000)},
    "segment-shorter-than-nfft": {"segment": Fraction(301, 2000)},
    "sample-rate": {"samplerate": 1001, "segment": 1.9},
    "training-only": {
        "t_dropout": 0.4,
        "dconv_init": 0.3,
        "rescale": 0.2,
        "t_lr": 1e-3,
        "t_weight_decay": 0.1,
    },
    "sparse-settings-unused": {"t_sparsity": 0.5, "t_mask_type": "random", "t_auto_sparsity": True},
    "wide-segment": {"use_train_segment": True, "segment": 2},
}

MERGED_VARIANTS: dict[str, dict[str, object]] = {
    "at-the-last-layer": {"depth": 2},
    "one-layer-inside": {"depth": 3},
    "four-layers-inside": {"depth": 6, "channels": 2, "dconv_comp": 1},
    "deeper": {"depth": 4, "nfft": 256},
    "deepest": {"depth": 6, "nfft": 4096, "channels": 2, "dconv_comp": 1, "segment": 3},
    "wider-time": {"depth": 3, "channels_time": 6},
    "narrower-time": {"depth": 3, "channels_time": 2},
    "dconv-both": {"depth": 4, "dconv_mode": 3},
    "norms": {"depth": 4, "norm_starts": 1},
    "all-norms": {"depth": 4, "norm_starts": 0, "norm_groups": 2},
    "time-stride-4": {"depth": 4, "time_stride": 4},
    "odd-frames": {"depth": 5, "segment": Fraction(1777, 2000), "channels": 2, "dconv_comp": 1},
    "even-frames": {"depth": 4, "segment": Fraction(1760, 2000)},
    "no-rewrite": {"depth": 4, "rewrite": False},
    "context": {"depth": 4, "context": 2, "context_enc": 1},
    "long-kernel": {"depth": 3, "kernel_size": 32, "stride": 16},
    "long-kernel-wider-time": {"depth": 2, "kernel_size": 32, "stride": 16, "channels_time": 6},
    "transformer": {"depth": 2, "t_layers": 2, "t_heads": 2, "t_hidden_scale": 2.0},
    "transformer-bottom": {"depth": 2, "t_layers": 3, "t_heads": 2, "bottom_channels": 8, "channels": 6},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    assert difference({**BASE, **VARIANTS[name]}) < TOLERANCE


@pytest.mark.parametrize("name", MERGED_VARIANTS)
def test_merged_branches(name: str) -> None:
    arguments = {**MERGED, **MERGED_VARIANTS[name]}
    assert parse_config("htdemucs", (), arguments)[0].family == "htdemucs"
    ours, _ = pair(arguments)
    assert ours.plan.merge is not None
    assert difference(arguments) < TOLERANCE


@pytest.mark.parametrize("length", [1, 7, 383, 384, 1023, 1999, 2000])
def test_inputs_shorter_than_the_segment(length: int) -> None:
    assert difference(BASE, length) < TOLERANCE


def test_an_input_longer_than_the_segment_is_refused() -> None:
    ours, theirs = pair(BASE)
    mix = noise(1, 2, ours.config.segment_samples + 1)
    with pytest.raises(ValueError, match="more than the model's segment"):
        ours(mix)
    with pytest.raises(ValueError, match="longer than"):
        theirs.valid_length(mix.shape[-1])


DRAWN = 24
"""Configurations drawn in every run; three times as many where slow tests run."""


def draw(seed: int) -> dict[str, object]:
    """Arguments drawn at random, usual and unusual ones mixed."""
    pick = random.Random(seed).choice
    merged = pick([True, False])
    arguments: dict[str, object] = {
        "sources": SOURCES[: pick([1, 2, 4])],
        "audio_channels": pick([1, 2, 2, 3]),
        "channels": pick([4, 8]),
        "channels_time": pick([None, None, 4, 6]),
        "growth": pick([1, 2, 2]),
        "nfft": pick([64, 256] if merged else [512, 1024]),
        "depth": pick([1, 2, 3, 4]),
        "rewrite": pick([True, True, False]),
        "freq_emb": pick([0, 0.2, 0.5]),
        "kernel_size": pick([8, 8, 8, 4]),
        "stride": pick([4, 4, 4, 2]),
        "time_stride": pick([2, 2, 4]),
        "context": pick([0, 1, 2]),
        "context_enc": pick([0, 1]),
        "norm_starts": pick([0, 1, 4]),
        "norm_groups": pick([1, 2, 4]),
        "dconv_mode": pick([0, 1, 2, 3]),
        "dconv_depth": pick([-2, 1, 2, 3]),
        "dconv_comp": pick([1, 2, 4]),
        "bottom_channels": pick([0, 8]),
        "t_layers": pick([0, 1, 3]),
        "t_heads": pick([1, 2, 4]),
        "t_hidden_scale": pick([1.0, 2.5]),
        "t_cross_first": pick([True, False]),
        "t_norm_in": pick([True, False]),
        "t_norm_in_group": pick([True, False]),
        "t_group_norm": pick([True, False]),
        "t_norm_first": pick([True, True, False]),
        "t_norm_out": pick([True, False]),
        "t_layer_scale": pick([True, False]),
        "t_gelu": pick([True, False]),
        "samplerate": 2000,
        "segment": Fraction(pick([600, 997, 1024, 1501]), 2000),
    }
    return arguments


def accepted(arguments: dict[str, object]) -> bool:
    try:
        build_model(parse_config("htdemucs", (), arguments)[0])
    except CheckpointError:
        return False
    return True


def run_published(arguments: dict[str, object]) -> None:
    published = HTDemucs(**arguments).eval()
    published(noise(1, published.audio_channels, int(published.segment * published.samplerate)))


@pytest.mark.parametrize(
    "seed",
    [*range(DRAWN), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(DRAWN, 3 * DRAWN))],
)
def test_drawn_configurations(seed: int) -> None:
    """Equal where we accept a configuration; where we refuse it, the published class cannot run it either."""
    arguments = draw(seed)
    if accepted(arguments):
        assert difference(arguments, seed=seed) < TOLERANCE
    else:
        with pytest.raises((RuntimeError, AssertionError, ValueError, IndexError, TypeError)):
            run_published(arguments)


def test_many_drawn_configurations_are_accepted() -> None:
    """Or else the test above would be about refusals."""
    assert sum(accepted(draw(seed)) for seed in range(DRAWN)) >= DRAWN // 3


def test_every_parameter_matters() -> None:
    """With the parameters these tests draw, an error in any path shows: none has a small gain."""
    shape = {"dconv_mode": 3, "bottom_channels": 8, "norm_starts": 1, "norm_groups": 2, "depth": 2}
    ours, _ = pair({**BASE, **shape})
    mix = noise(1, 2, ours.config.segment_samples)
    expected = ours(mix)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in ours.named_parameters():
        before = parameter.data.clone()
        parameter.data += torch.randn(parameter.shape, generator=generator) * (0.1 + 0.1 * before.abs())
        assert relative(ours(mix), expected) > 1e-5, name
        parameter.data.copy_(before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("t_sparse_self_attn", True),
        ("t_sparse_cross_attn", True),
        ("t_emb", "cape"),
        ("t_emb", "scaled"),
        ("wiener_iters", 1),
        ("end_iters", 1),
        ("wiener_residual", True),
        ("cac", False),
        ("multi_freqs", [0.5]),
    ],
)
def test_what_is_not_computed_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}=.*only {name}=.* is supported"):
        parse_config("htdemucs", (), {**BASE, name: value})
