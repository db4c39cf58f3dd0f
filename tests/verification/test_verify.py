"""Figures, tracks and verdicts, on a bundle so small that the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from bundles import CHANNELS, SAMPLE_RATE, SAMPLES, SOURCES, tiny_bundle, tiny_files, tiny_manifest
from numpy.typing import NDArray
from onnx import numpy_helper

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import AudioError, UsageError
from mrsep_deploy.measuring.limits import Limit, limit_for
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.verification.chain import Chain
from mrsep_deploy.verification.figures import Difference, Figures
from mrsep_deploy.verification.reference import BundleReference, require_same_stages
from mrsep_deploy.verification.report import stem_table, to_plain
from mrsep_deploy.verification.results import Verification
from mrsep_deploy.verification.tracks import Track, builtin_tracks, read_tracks, with_stems
from mrsep_deploy.verification.verify import verify

Float32 = NDArray[np.float32]


# --- figures


def figures(value: NDArray[np.generic], reference: NDArray[np.generic]) -> Figures:
    difference = Difference()
    difference.add(value, reference)
    return difference.figures()


def test_equal_signals_are_exact() -> None:
    found = figures(np.ones((2, 3)), np.ones((2, 3)))
    assert (found.snr, found.si_sdr, found.worst, found.elements) == (math.inf, math.inf, 0.0, 6)


def test_snr_is_energy_over_energy() -> None:
    reference = np.random.RandomState(0).standard_normal((2, 500))
    error = np.random.RandomState(1).standard_normal((2, 500)) * 1e-3
    expected = 10 * np.log10((reference**2).sum() / (error**2).sum())
    assert figures(reference + error, reference).snr == pytest.approx(expected, abs=1e-6)


def test_si_sdr_forgives_a_gain_and_nothing_else() -> None:
    reference = np.random.RandomState(0).standard_normal(1000)
    assert figures(reference * 1.1, reference).snr == pytest.approx(20, abs=0.01)
    assert figures(reference * 1.1, reference).si_sdr > 160
    error = np.random.RandomState(1).standard_normal(1000) * 1e-7
    assert figures((reference + error) * 0.5, reference).si_sdr == pytest.approx(140, abs=1)


def test_the_worst_sample_is_found_across_blocks() -> None:
    reference, value = np.zeros((2, 10)), np.zeros((2, 10))
    value[1, 7] = -3
    value[0, 2] = 2
    difference = Difference()
    for start in range(0, 10, 4):
        block = slice(start, start + 4)
        difference.add(value[:, block], reference[:, block], start)
    assert difference.figures().worst == 3
    assert difference.figures().worst_at == (1, 7)


def test_blocks_give_the_figures_of_the_whole() -> None:
    random = np.random.RandomState(3)
    reference, value = random.standard_normal((2, 2, 999))
    difference = Difference()
    for start in range(0, 999, 100):
        difference.add(value[:, start : start + 100], reference[:, start : start + 100], start)
    assert difference.figures().snr == pytest.approx(figures(value, reference).snr)
    assert difference.figures().si_sdr == pytest.approx(figures(value, reference).si_sdr)
    assert difference.figures().worst_at == figures(value, reference).worst_at


def test_what_is_not_finite_is_counted_and_infinitely_far() -> None:
    value = np.array([np.nan, np.inf, -np.inf, 1, 2], np.float32)
    found = figures(value, np.ones(5, np.float32))
    assert (found.nan, found.inf, found.snr, found.finite) == (1, 2, -math.inf, False)
    assert found.worst_at == (0,)


def test_saturation_is_the_largest_number_of_the_type() -> None:
    value = np.array([65504, -65504, 65472], np.float16)
    assert figures(value, value.astype(np.float32)).saturated == 2
    assert figures(value.astype(np.float32), value.astype(np.float32)).saturated == 0


def test_silence_is_met_by_silence_only() -> None:
    assert figures(np.zeros(3), np.zeros(3)).snr == math.inf
    assert figures(np.full(3, 1e-9), np.zeros(3)).snr == -math.inf


# --- limits


def test_limits_have_reasons() -> None:
    for precision in ("float32", "float16", "bfloat16"):
        assert limit_for(precision).reason
    assert limit_for("float16", 48.0) == Limit(48.0, "as asked for")
    with pytest.raises(UsageError, match="limits are known for"):
        limit_for("int8")


def test_a_float32_limit_yields_to_what_pytorch_itself_loses() -> None:
    limit = limit_for("float32")
    assert limit.for_stem(None) == 100
    assert limit.for_stem(140) == 100
    assert limit.for_stem(100) == pytest.approx(100 - 20 * math.log10(3))


# --- running


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path, "exact")


@pytest.fixture
def music() -> Float32:
    """Two and a half segments."""
    samples = np.random.RandomState(0).standard_normal((CHANNELS, SAMPLES * 5 // 2)) * 0.2
    return samples.astype(np.float32)


def changed(folder: Path, stage: str, offset: float) -> Bundle:
    """The tiny bundle with another offset in one stage."""
    manifest = tiny_manifest()
    files = tiny_files(manifest)
    model = onnx.load_from_string(files[f"{stage}.onnx"])
    constant = next(each for each in model.graph.initializer if each.name == "offset")
    constant.CopyFrom(numpy_helper.from_array(np.array([offset], np.float32), "offset"))
    files[f"{stage}.onnx"] = model.SerializeToString()
    return write_bundle(folder / "changed", manifest, files, overwrite=False)


def verified(
    candidate: Bundle, reference: Bundle, tracks: Sequence[Track], limit: float = 60.0
) -> Verification:
    engine = choose("ort", EngineOptions(1)).engine
    exact = BundleReference(reference, 1)
    try:
        return verify(candidate, engine, exact, tracks, limit)
    finally:
        exact.close()
        engine.close()


def track(samples: Float32, **truth: Float32) -> Track:
    return with_stems("song", samples, truth)


def test_a_bundle_is_exactly_itself(bundle: Bundle, music: Float32) -> None:
    found = verified(bundle, bundle, [track(music), *builtin_tracks(bundle.manifest)])
    assert found.passes
    assert {stem.figures.snr for stem in found.stems} == {math.inf}
    assert {stage.stage for stage in found.stages} == {"branch.16", "branch.time"}
    assert found.segments == 4 + 8


def test_stems_are_compared_as_the_separator_gives_them(
    bundle: Bundle, music: Float32, tmp_path: Path
) -> None:
    other = changed(tmp_path, "branch.16", 0.26)
    stems = []
    for each in (other, bundle):
        with Separator(each, engine="ort", threads=1) as separator:
            stems.append(separator.separate(music))
    found = verified(other, bundle, [track(music)])
    for stem in found.stems:
        expected = figures(stems[0][stem.source], stems[1][stem.source])
        assert stem.figures.snr == pytest.approx(expected.snr, abs=1e-3)
        assert stem.figures.worst == pytest.approx(expected.worst, rel=1e-3)
        assert stem.figures.elements == music.size
        assert 0 <= stem.seconds < music.shape[1] / SAMPLE_RATE


@pytest.mark.parametrize("batch", [1, 3])
def test_a_change_is_found_in_its_stage_alone(music: Float32, tmp_path: Path, batch: int) -> None:
    bundle = tiny_bundle(tmp_path, "exact", batch=batch)
    found = verified(changed(tmp_path, "branch.time", 0.3).at_batch(batch), bundle, [track(music)])
    snr = {stage.stage: min(each.snr for each in stage.tensors.values()) for stage in found.stages}
    assert snr["branch.16"] == math.inf
    assert snr["branch.time"] < 40
    assert not found.passes
    assert all("expected at least 60.0 dB" in failure for failure in found.failures)
    assert found.segments == math.ceil(4 / batch)


def test_the_worst_segments_are_kept(bundle: Bundle, music: Float32, tmp_path: Path) -> None:
    found = verified(changed(tmp_path, "branch.time", 0.3), bundle, [track(music)])
    assert found.probes
    assert found.probes[0].excess == max(probe.excess for probe in found.probes) > 1
    engine = choose("ort", EngineOptions(1)).engine
    with Chain(bundle, engine) as chain:
        exact = chain.run(found.probes[0].batch.mix)["stems"]
    engine.close()
    assert found.probes[0].ratio(exact, exact) == 0
    assert math.isinf(found.probes[0].ratio(exact * np.nan, exact))


def test_nan_fails_even_in_silence(bundle: Bundle, tmp_path: Path) -> None:
    silence = track(np.zeros((CHANNELS, SAMPLES), np.float32))
    found = verified(changed(tmp_path, "branch.time", math.nan), bundle, [silence])
    assert any(failure.startswith("stage branch.time:") for failure in found.failures)
    assert any(failure.startswith("drums of song:") for failure in found.failures)


def test_in_silence_an_error_passes_that_16_bits_do_not_hold(bundle: Bundle, tmp_path: Path) -> None:
    noise = np.random.RandomState(0).standard_normal((CHANNELS, SAMPLES)).astype(np.float32)
    other = changed(tmp_path, "branch.time", 0.3)
    found = verified(other, bundle, [track(noise * 1e-6)])
    assert found.passes
    assert all(stem.figures.snr < 60 for stem in found.stems)
    assert {stem.judgement.passes_by for stem in found.stems} == {"silence"}
    # the same at -66 dBFS is still silence, but its error is not
    found = verified(other, bundle, [track(noise * 5e-4)])
    assert all("in silence its error is at" in failure for failure in found.failures)
    assert len(found.failures) == len(SOURCES)


def levelled(place: Path, drums: float, other: float) -> Bundle:
    """A bundle whose stems are the mix times a gain each, given in dB."""
    manifest = tiny_manifest()
    gains = {"16": (0.0, 0.0), "time": (10 ** (drums / 20), 10 ** (other / 20))}
    files = {}
    for stage in manifest.graph_stages:
        model = onnx.load_from_string(tiny_files(manifest)[str(stage.file)])
        target = manifest.tensor(stage.outputs[0])
        copies = target.shape[1] // len(SOURCES)
        factors = np.repeat(gains[stage.branch], copies).reshape(-1, *[1] * (len(target.shape) - 2))
        model.graph.node[1].op_type = "Mul"
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(factors.astype(np.float32), "offset"))
        files[str(stage.file)] = model.SerializeToString()
    return write_bundle(place, manifest, files, overwrite=False)


def test_a_nearly_empty_stem_passes_by_the_mix_and_a_loud_one_does_not(tmp_path: Path) -> None:
    """The stem at -70 dBFS with an error at -110 dBFS, below a mix at -15 dBFS; no probe is beyond what is allowed."""
    noise = np.random.RandomState(0).standard_normal(SAMPLES * 5 // 2)
    # channels that are opposite have no mean, in the spectrogram neither
    song = track((np.array([noise, -noise]) * 10 ** (-15 / 20)).astype(np.float32))
    exact = levelled(tmp_path / "exact", 0, -55)
    apart = 20 * math.log10(1 + 10 ** (-40 / 20))
    found = verified(levelled(tmp_path / "quiet", 0, -55 + apart), exact, [song])
    assert found.passes
    drums, other = found.stems
    assert (drums.judgement.passes_by, other.judgement.passes_by) == ("SNR", "mix")
    assert other.figures.snr == pytest.approx(40, abs=0.1)
    assert other.judgement.powers.below_mix == pytest.approx(95, abs=0.1)
    assert other.figures.level == pytest.approx(-70, abs=0.5)
    assert found.probes[0].excess < 1
    shown = to_plain(found)["stems"][1]
    assert (shown["passes_by"], shown["limit_db"]) == ("mix", 60)
    assert shown["margin_db"] == pytest.approx(10, abs=0.1)
    assert stem_table(to_plain(found)).rows[1][-1] == "mix"

    apart = 20 * math.log10(1 + 10 ** (-50 / 20))
    found = verified(levelled(tmp_path / "loud", apart, -55), exact, [song])
    (failure,) = found.failures
    assert failure == (
        "drums of song: 50.0 dB, expected at least 60.0 dB; its error is 50.0 dB below the mix, expected at least "
        "85.0 dB"
    )
    assert found.probes[0].excess == pytest.approx(10, rel=0.9)
    assert stem_table(to_plain(found)).rows[0][-1] == "failed"


def test_the_level_of_the_mix_is_that_of_all_its_samples(music: Float32) -> None:
    song = replace(track(music), blocks=lambda: [music[:, :30], music[:, 30:]])
    assert song.power() == pytest.approx(float(np.square(music, dtype=np.float64).mean()))


def test_change_in_sdr(bundle: Bundle, music: Float32, tmp_path: Path) -> None:
    with Separator(bundle, engine="ort", threads=1) as separator:
        stems = separator.separate(music)
    noise = np.random.RandomState(5).standard_normal(music.shape).astype(np.float32) * 0.1
    truth = {name: stem + noise for name, stem in stems.items()}
    same = verified(bundle, bundle, [track(music, **truth)])
    expected = figures(stems["drums"], truth["drums"]).snr
    assert same.stems[0].sdr == pytest.approx(expected, abs=1e-3)
    assert same.stems[0].sdr_change == 0
    # loose enough for the stems' own limit, so that it is the SDR that fails
    worse = verified(changed(tmp_path, "branch.time", 0.5), bundle, [track(music, **truth)], limit=1.0)
    assert any("SDR changed by" in failure for failure in worse.failures)


def test_other_stages_cannot_be_compared(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, stages=bundle.manifest.stages[:-1])
    with pytest.raises(UsageError, match="different stages or shapes"):
        require_same_stages(manifest, bundle.manifest)


# --- tracks


@pytest.fixture
def folder(tmp_path: Path, music: Float32) -> Path:
    place = tmp_path / "song"
    place.mkdir()
    for name in ("mixture", *SOURCES):
        soundfile.write(place / f"{name}.wav", music.T, SAMPLE_RATE, subtype="FLOAT")
    return place


def test_a_folder_gives_mixture_and_truth(bundle: Bundle, folder: Path, music: Float32) -> None:
    (found,) = read_tracks([folder], bundle.manifest)
    assert set(found.truth) == set(SOURCES)
    np.testing.assert_array_equal(np.concatenate(list(found.blocks()), axis=1), music)


def test_a_file_is_a_track_without_truth(bundle: Bundle, folder: Path) -> None:
    (found,) = read_tracks([folder / "drums.wav"], bundle.manifest)
    assert (found.name, found.truth) == ("drums.wav", {})


def test_folders_that_hold_something_else_are_refused(bundle: Bundle, folder: Path) -> None:
    soundfile.write(folder / "drums.wav", np.zeros((9, CHANNELS)), SAMPLE_RATE)
    with pytest.raises(AudioError, match="stems of different lengths"):
        read_tracks([folder], bundle.manifest)
    for name in SOURCES:
        (folder / f"{name}.wav").unlink()
    with pytest.raises(AudioError, match="holds no stem of this model"):
        read_tracks([folder], bundle.manifest)
    (folder / "mixture.wav").unlink()
    with pytest.raises(AudioError, match=r"holds no mixture\.wav"):
        read_tracks([folder], bundle.manifest)


def test_builtin_tracks_are_one_segment_each_and_always_the_same(bundle: Bundle) -> None:
    first, second = (builtin_tracks(bundle.manifest) for _ in range(2))
    assert len(first) == 8
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(*(np.concatenate(list(t.blocks()), axis=1) for t in (one, other)))
        assert one.statistics.scale == 1.0
