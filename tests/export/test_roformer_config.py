"""Configurations of RoFormers: what is read out of published files, and what is refused, by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from goldens import FOLDER, checkpoint

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.config_file import MAX_BYTES, ConfigFile, beside, read_config
from mrsep_deploy.export.checkpoint.read import read_checkpoint
from mrsep_deploy.export.families.roformer.bands import Band, mel_bands, memberships, side_by_side
from mrsep_deploy.export.families.roformer.config import BS, MEL, RoformerConfig, parse_config
from mrsep_deploy.export.families.roformer.family import overlap_of
from mrsep_deploy.export.families.roformer.toolkit import OURS, arguments, stem_names
from mrsep_deploy.separation.segments import stride_of

NAMES = (OURS, "final_norm.gamma", "mask_estimators.0.to_freqs.0.0.0.weight")
MODEL: dict[str, object] = {"dim": 8, "depth": 1, "stereo": True}
SONG: dict[str, object] = {"sources": ("vocals", "other"), "num_stems": 2}


def file(model: dict[str, object] | None = None, **sections: dict[str, object]) -> ConfigFile:
    every = {
        "audio": {"chunk_size": 4096},
        "training": {"instruments": ["vocals", "other"], "target_instrument": "vocals"},
        "inference": {},
        **sections,
    }
    return ConfigFile(model={**MODEL, **(model or {})}, **every)  # type: ignore[arg-type]


def parsed(given: ConfigFile, names: tuple[str, ...] = NAMES) -> RoformerConfig:
    found = arguments(given, names)
    assert found is not None
    return parse_config(found[0], (), found[1])[0]


# --- what a file says


def test_a_published_configuration() -> None:
    """``audio.hop_length`` and ``audio.dim_t`` say nothing; arguments of the training are reported."""
    found = arguments(read_config(FOLDER / "bs_roformer.yaml"), NAMES)
    assert found is not None
    config, ignored = parse_config(found[0], (), found[1])
    assert (config.kind, config.dim, config.depth, config.audio_channels) == (BS, 16, 2, 2)
    assert (config.n_fft, config.hop, config.bins, len(config.bands)) == (2048, 441, 1025, 62)
    assert (config.segment_samples, config.num_overlap, config.sample_rate) == (44100, 2, 44100)
    assert (config.sources, config.stems, config.target, config.complement) == (
        ("vocals", "other"),
        1,
        0,
        True,
    )
    assert config.zero_dc
    assert "multi_stft_resolutions_window_sizes" in ignored


def test_the_family_and_the_layers_of_masks_come_from_the_checkpoint() -> None:
    """The two classes count the layers differently; the names in the file do not."""
    deeper = (*NAMES, "mask_estimators.0.to_freqs.0.0.2.weight")
    assert parsed(file({"mask_estimator_depth": 7}), deeper).mask_layers == 2
    without = tuple(name for name in NAMES if not name.startswith("final"))
    assert parsed(file({"num_bands": 60, "sample_rate": 44100}), without).kind == MEL
    assert arguments(file(), ("encoder.0.conv.weight",)) is None


@pytest.mark.parametrize(
    ("training", "stems", "sources", "used"),
    [
        ({"instruments": ["a", "b"], "target_instrument": "b"}, 1, ("b", "a"), (0,)),
        ({"instruments": ["a", "b", "c"], "target_instrument": "b"}, 1, ("b",), (0,)),
        ({"instruments": ["a"], "target_instrument": "a"}, 1, ("a",), (0,)),
        ({"instruments": ["a", "b"], "target_instrument": "b"}, 2, ("b", "a"), (1,)),
        ({"instruments": ["a", "b"], "target_instrument": None}, 2, ("a", "b"), (0, 1)),
        ({"instruments": ["a", "b"]}, 2, ("a", "b"), (0, 1)),
        (
            {"instruments": ["No Reverb", "rest"], "target_instrument": "No Reverb"},
            1,
            ("No_Reverb", "rest"),
            (0,),
        ),
    ],
)
def test_stems(
    training: dict[str, object], stems: int, sources: tuple[str, ...], used: tuple[int, ...]
) -> None:
    """One target has its complement, under the name of the one other instrument."""
    config = parsed(file({"num_stems": stems}, training=training))
    assert (config.sources, config.used_stems) == (sources, used)
    assert config.complement == (len(sources) > len(used))


def test_a_chunk_of_the_inference_goes_before_that_of_the_audio() -> None:
    config = parsed(file(inference={"chunk_size": 8192, "num_overlap": 4, "normalize": True}))
    assert (config.segment_samples, config.num_overlap, config.normalize) == (8192, 4, True)


@pytest.mark.parametrize("segment", [352_800, 485_100, 588_800, 44_032, 8000, 4099])
@pytest.mark.parametrize("chunks", range(1, 13))
def test_steps_are_whole_parts_of_a_chunk(segment: int, chunks: int) -> None:
    """As the toolkit rounds them: a share of an overlap must not lose a sample."""
    assert stride_of(segment, overlap_of(segment, chunks)) == segment // chunks


# --- what is refused


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("layers.0.0.layers.0.0.branch.norm.gamma", "hyper-connections"),
        ("layers.0.0.layers.0.0.to_value_residual_mix.weight", "value residuals"),
        ("layers.0.0.layers.0.0.temperature", "linear attention"),
        ("layers.0.0.layers.0.0.pope_embed.bias", "PoPE"),
        ("layers.0.0.layers.0.conv.net.0.weight", "conformer"),
        ("mask_estimators.0.segm.weight", "segmentation"),
        ("mask_estimators.0.transformer.norm.gamma", "mask heads of another kind"),
    ],
)
def test_variants_by_their_keys(name: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as refused:
        arguments(file(), (*NAMES, name))
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"linear_transformer_depth": 1}, "linear_transformer_depth is 1: this variant"),
        ({"use_pope": True}, "use_pope is True: this variant"),
        ({"num_residual_streams": 4}, "num_residual_streams is 4"),
        ({"fancy_new_idea": 1}, "unknown argument fancy_new_idea"),
        ({"stft_win_length": 1024}, "stft_win_length is 1024, expected 2048"),
        ({"stft_n_fft": 2047}, "stft_n_fft is 2047, expected an even number"),
        ({"stft_hop_length": 1500}, "stft_hop_length is 1500"),
        ({"dim_head": 15}, "dim_head is 15, expected an even number"),
        ({"freqs_per_bands": [4, 4]}, "freqs_per_bands adds up to 8 bins, expected the 1,025"),
        ({"freqs_per_bands": "all"}, "freqs_per_bands is all"),
        ({"dim": True}, "dim is True"),
        ({"dim": 10**30}, "dim is 1"),
        ({"depth": 200, "time_transformer_depth": 64}, "transformer blocks, expected at most"),
        ({"stereo": "yes"}, "stereo is yes"),
        ({"num_stems": 3}, "num_stems is 3 for the target vocals, expected 1 or 2"),
    ],
)
def test_impossible_arguments(model: dict[str, object], expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        parsed(file(model))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"training": {}}, "no training.instruments"),
        (
            {"training": {"instruments": ["a", "a"]}},
            "training.instruments is .*, expected a list of different names",
        ),
        (
            {"training": {"instruments": [True, False]}},
            "training.instruments is .*, expected a list of different",
        ),
        (
            {"training": {"instruments": ["a"], "target_instrument": "b"}},
            "training.target_instrument is b, expected null or one of training.instruments: a",
        ),
        ({"training": {"instruments": ["a", "b"]}}, "num_stems is 1 and there are 2 sources"),
        ({"audio": {}}, "neither inference.chunk_size nor audio.chunk_size"),
        ({"audio": {"chunk_size": 100}}, "chunk_size is 100"),
        ({"inference": {"num_overlap": 0}}, "num_overlap is 0"),
    ],
)
def test_what_a_file_lacks(sections: dict[str, dict[str, object]], expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        parsed(file(**sections))


def test_stems_are_called_as_files_can_be() -> None:
    names = ["Lead Vocals", "人声", "вокал/2", "-x", "..", "lead vocals", "Lead/Vocals"]
    expected = ["Lead_Vocals", "stem2", "_2", "x", "stem5", "lead_vocals", "stem7"]
    assert list(stem_names(names).values()) == expected


def test_the_model_needs_its_size() -> None:
    given = file()
    for name in ("dim", "depth"):
        model = {key: value for key, value in MODEL.items() if key != name}
        with pytest.raises(CheckpointError, match=f"no model.{name}"):
            arguments(ConfigFile(given.audio, model, given.training, given.inference), NAMES)


# --- files from strangers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("model: !!python/name:os.system", "could not determine a constructor"),
        ("model: {a: &a {b: 1}, <<: *a}", "merge keys"),
        ("model: [unclosed", "not YAML of plain values in line 1"),
        ("model: " + "[" * 5000, "not YAML of plain values"),
        ("model: " + "[" * 40 + "]" * 40, "nested more than"),
        ("model: 2026-01-01", "holds date"),
        ("model: {dim: " + "9" * 5000 + "}", "not YAML of plain values"),
        ("audio: {}", "no section model"),
        ("just text", "expected a dict with names"),
        ("model: {}\naudio: 3", "the section audio is int"),
        ("", "expected a dict with names"),
        ("#" * (MAX_BYTES + 1), "more than 65,536 bytes"),
    ],
)
def test_hostile_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=expected) as refused:
        read_config(path)
    assert str(refused.value).startswith("config.yaml: ")
    assert "\n" not in str(refused.value)


def test_a_small_file_cannot_stand_for_billions_of_values(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join([*lines, "model: {}"]))
    with pytest.raises(CheckpointError, match="more than 250,000 values"):
        read_config(path)


def test_a_tuple_is_read_and_a_missing_file_named(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("model: {widths: !!python/tuple [1, 2]}\n")
    assert read_config(path).model == {"widths": (1, 2)}
    assert beside(tmp_path / "model.ckpt") == path
    assert beside(tmp_path / "other.ckpt") is None
    assert beside(path) is None
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(tmp_path / "absent.yaml")


# --- bands


def test_published_bands() -> None:
    bands = side_by_side((2, 3, 1), 6)
    assert bands == (Band(0, 2), Band(2, 3), Band(5, 1))
    assert memberships(bands, 6) == [[place] for place in range(6)]


@pytest.mark.parametrize("name", ["mel_band_roformer_2", "roformer_small_mel"])
def test_mel_bands_are_as_wide_as_those_that_were_trained(name: str) -> None:
    """A checkpoint's own layers say how many numbers each band has."""
    state = read_checkpoint(checkpoint(name), (), bare=True).state
    model = yaml.unsafe_load((FOLDER / f"{name}.yaml").read_text())["model"]
    bands = mel_bands(model["num_bands"], model["stft_n_fft"], model["sample_rate"])
    numbers = 4 if model["stereo"] else 2
    widths = [len(state[f"band_split.to_features.{k}.0.gamma"]) // numbers for k in range(len(bands))]
    assert [band.width for band in bands] == widths


@pytest.mark.parametrize(
    ("count", "n_fft", "rate"), [(60, 2048, 44100), (64, 2048, 48000), (20, 4096, 44100), (30, 1024, 16000)]
)
def test_mel_bands_overlap_with_their_neighbours_only(count: int, n_fft: int, rate: int) -> None:
    bands = mel_bands(count, n_fft, rate)
    assert (bands[0].start, bands[-1].stop) == (0, n_fft // 2 + 1)
    assert all(np.diff([band.start for band in bands]) >= 0)
    assert {len(places) for places in memberships(bands, n_fft // 2 + 1)} <= {1, 2}


def test_more_bands_than_bins_can_fill() -> None:
    with pytest.raises(CheckpointError, match="num_bands is 200"):
        mel_bands(200, 1024, 44100)
