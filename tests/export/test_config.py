"""Constructor arguments: published defaults, and what is refused, always with an error that names it."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families import family_of
from mrsep_deploy.export.families.demucs.config import TRAINING_ONLY, VARIANTS, ModelConfig, parse_config
from mrsep_deploy.export.families.demucs.variants import build_model

FOUR = ("drums", "bass", "other", "vocals")


def parse(family: str = "htdemucs", **arguments: object) -> ModelConfig:
    return parse_config(family, (), {"sources": list(FOUR), **arguments})[0]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("htdemucs", {"channels": 48, "nfft_list": (4096,), "freq_emb": 0.2, "attention": "softmax"}),
        ("htdemucs_n", {"channels": 24, "nfft_list": (2048, 4096, 8192), "freq_emb": 0.3, "norm_starts": 4}),
        ("htdemucs_nn", {"channels": 24, "nfft_list": (2048, 4096, 8192), "attention": "linear"}),
        (
            "htdemucs_2nn",
            {"nfft_list": tuple(2**i for i in range(9, 16)), "hop_divisor": 2, "norm_starts": 3},
        ),
        ("htdemucs_nf", {"nfft_list": tuple(2**i for i in range(10, 15)), "t_layers": 0, "dconv_mode": 0}),
        ("htdemucs_dnf", {"channels": 16, "waveform": False, "fusion": "unet", "t_channels": 64}),
        ("mrhdemucs", {"fusion": "shared", "waveform": False, "t_layers": 0}),
    ],
)
def test_defaults(family: str, expected: dict[str, object]) -> None:
    config = parse(family)
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.sources, config.audio_channels, config.samplerate) == (FOUR, 2, 44100)
    assert config.segment_samples == 441000
    assert config.hops == tuple(n // config.hop_divisor for n in config.nfft_list)


def test_sources_by_position_are_those_by_name() -> None:
    assert parse_config("htdemucs", (list(FOUR),), {}) == parse_config("htdemucs", (), {"sources": FOUR})


@pytest.mark.parametrize(
    ("segment", "samples"),
    [(Fraction(39, 5), 343980), (7.8, 343980), (10, 441000), (11, 485100), (Fraction(1, 3), 14700)],
)
def test_segment_lengths(segment: object, samples: int) -> None:
    assert parse(segment=segment).segment_samples == samples


def test_training_arguments_are_listed_and_do_nothing() -> None:
    training = dict.fromkeys(TRAINING_ONLY, 0.5)
    config, ignored = parse_config("htdemucs", (FOUR,), training)
    assert ignored == sorted(TRAINING_ONLY)
    assert config == parse()


@pytest.mark.parametrize("family", VARIANTS)
def test_unknown_arguments_are_named(family: str) -> None:
    with pytest.raises(CheckpointError, match=f"{family} does not know: lstm_layers, zeta"):
        parse(family, zeta=1, lstm_layers=2)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("htdemucs", "nfft_list"),
        ("htdemucs", "t_channels"),
        ("htdemucs", "attention"),
        ("htdemucs_n", "nfft"),
        ("htdemucs_n", "waveform"),
        ("htdemucs_nf", "t_layers"),
        ("htdemucs_dnf", "bottom_channels"),
        ("htdemucs_nn", "fusion"),
        ("mrhdemucs", "hop_divisor"),
    ],
)
def test_arguments_of_other_families_are_unknown(family: str, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not know: {name}"):
        parse(family, **{name: 1})


@pytest.mark.parametrize("family", ["demucs", "HDemucs", "HTDemucs", ""])
def test_unknown_families(family: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be exported") as caught:
        family_of(family)
    assert "htdemucs_n" in caught.value.fix


@pytest.mark.parametrize(
    "sources",
    [None, [], "vocals", 3, [1], [""], ["a", None], ["a", "a"], {"a": 1}, list(map(str, range(65)))],
)
def test_impossible_sources(sources: object) -> None:
    with pytest.raises(CheckpointError, match="sources"):
        parse(sources=sources)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sources": []}, "sources is an empty list, expected at least one name"),
        ({"sources": "vocals"}, "sources is 'vocals', expected a list of names"),
        ({"sources": None}, "sources is None, expected a list of names"),
        ({"sources": {"a": 1}}, "sources is a dict, expected a list of names"),
        ({"sources": ["a", ""]}, "sources[1] is '', expected a name"),
        ({"sources": [["a"]]}, "sources[0] is a list, expected a name"),
        ({"nfft_list": []}, "nfft_list is an empty list, expected at least one whole number"),
        ({"nfft_list": [512, "1024"]}, "nfft_list[1] is '1024', expected a whole number"),
        ({"nfft_list": 512}, "nfft_list is 512, expected a list of whole numbers"),
    ],
)
def test_a_list_that_is_wrong_is_told_by_what_is_wrong_in_it(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config("htdemucs_n", (), {"sources": FOUR, **arguments})
    assert caught.value.message == said


def test_sources_are_given_once() -> None:
    with pytest.raises(CheckpointError, match="does not name its sources"):
        parse_config("htdemucs", (), {})
    with pytest.raises(CheckpointError, match="sources twice"):
        parse_config("htdemucs", (FOUR,), {"sources": FOUR})
    with pytest.raises(CheckpointError, match="2 constructor arguments by position"):
        parse_config("htdemucs", (FOUR, 2), {})


WHOLE = ["audio_channels", "channels", "depth", "kernel_size", "stride", "time_stride", "norm_groups"]
REAL = ["growth", "freq_emb", "dconv_comp", "t_hidden_scale", "t_max_period", "t_weight_pos_embed", "segment"]
SWITCHES = ["rewrite", "t_norm_in", "t_group_norm", "t_norm_first", "t_norm_out", "t_layer_scale", "t_gelu"]


@pytest.mark.parametrize("value", ["8", None, 1.5, math.nan, math.inf, True, [8], {}, -1, 10**400, 2**62])
@pytest.mark.parametrize("name", WHOLE)
def test_impossible_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(CheckpointError):
        parse(**{name: value})


@pytest.mark.parametrize("value", ["8", None, math.nan, math.inf, -math.inf, True, [8], 10**400, -1e300])
@pytest.mark.parametrize("name", REAL)
def test_impossible_real_numbers(name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{name} has an impossible value"):
        parse(**{name: value})


@pytest.mark.parametrize("value", ["yes", None, 2, -1, 0.5, math.nan, []])
@pytest.mark.parametrize("name", SWITCHES)
def test_impossible_switches(name: str, value: object) -> None:
    """Also whole numbers: for published norms, ``t_group_norm=4`` means four groups, not "yes"."""
    with pytest.raises(CheckpointError, match=f"{name} has an impossible value"):
        parse(**{name: value})


@pytest.mark.parametrize("value", [0, 1])
def test_switches_may_be_numbers(value: int) -> None:
    assert parse(t_group_norm=value).t_group_norm is bool(value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"nfft": 4095}, "nfft"),
        ({"nfft": 2**20}, "nfft"),
        ({"nfft": "4096"}, "expected a whole number"),
        ({"depth": 0}, "depth"),
        ({"depth": 9}, "depth"),
        ({"segment": 0}, "segment"),
        ({"segment": 601}, "segment"),
        ({"segment": 1e-9}, "segment"),
        ({"samplerate": 0}, "sample rate"),
        ({"stride": 9}, "stride"),
        ({"time_stride": 0}, "time_stride"),
        ({"t_heads": 5}, "384 channels does not divide into 5 heads"),
        ({"bottom_channels": 18, "t_heads": 3}, "by 4 for its positions"),
        ({"dconv_comp": 0}, "dconv_comp"),
        ({"t_max_period": 0}, "t_max_period"),
        ({"t_hidden_scale": -1}, "t_hidden_scale"),
        ({"growth": 0}, "growth"),
    ],
)
def test_values_that_make_no_model(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        parse(**arguments)


@pytest.mark.parametrize(
    ("family", "arguments", "said"),
    [
        ("htdemucs", {"channels_time": 24}, "waveform branch 192 channels|the waveform branch"),
        ("htdemucs", {"norm_starts": 0, "norm_groups": 5}, "norm_groups=5 does not divide"),
        ("htdemucs", {"growth": 64}, "layer of .* channels"),
        ("htdemucs", {"dconv_comp": 100}, "in its DConv"),
        ("htdemucs", {"depth": 6, "nfft": 1024}, "which a transformer cannot follow"),
        ("htdemucs", {"depth": 4, "nfft": 1024, "t_layers": 0, "stride": 2}, "bins"),
        ("htdemucs", {"kernel_size": 8, "stride": 3}, "its decoder returns as"),
        ("htdemucs", {"kernel_size": 8, "stride": 8, "t_layers": 0, "freq_emb": 0}, "its decoder returns as"),
        ("htdemucs_n", {"nfft_list": [512, 64]}, "nfft=64 has"),
        ("htdemucs_2nn", {"nfft_list": [528]}, "nfft=528 gives"),
    ],
)
def test_structures_that_cannot_run(family: str, arguments: dict[str, object], said: str) -> None:
    config = parse(family, **arguments)
    with pytest.raises(CheckpointError, match=said), torch.device("meta"):
        build_model(config)


def test_messages_stay_short() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(segment="9" * 100_000)
    assert len(str(caught.value)) < 400


JUNK = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([48, 64, 100, 1000, 4096, 10**9, 2**63, 10**400, -(10**400)]),
    st.floats(),
    st.floats(0, 8),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.fractions(),
    st.lists(st.integers(-1, 5000), max_size=4),
)
NAMES = sorted({f.name for f in ModelConfig.__dataclass_fields__.values()} | {"nfft", "wiener_iters", "cac"})


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(VARIANTS),
    arguments=st.dictionaries(st.sampled_from(NAMES), JUNK, min_size=1, max_size=3),
)
def test_junk_is_refused_with_our_own_error(family: str, arguments: dict[str, object]) -> None:
    """Whatever stands in a checkpoint: a model that can be built, or a ``CheckpointError``, nothing else."""
    given_sources = {"sources": ["a", "b"], "samplerate": 8000, "segment": 1}
    message = ""
    with torch.device("meta"):
        try:
            build_model(parse_config(family, (), {**given_sources, **arguments})[0])
        except CheckpointError as error:
            message = error.message
    assert len(message) < 1000
