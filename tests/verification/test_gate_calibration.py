"""The gate is found where lower precision begins to fail, kept in the bundle, shown, and used."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundles import CHANNELS, SAMPLES, tiny_bundle
from click.testing import CliRunner, Result

from mrsep_deploy.bundle import Bundle, write_archive
from mrsep_deploy.bundle.manifest import Gate
from mrsep_deploy.bundle.registry import register
from mrsep_deploy.commands import main
from mrsep_deploy.measuring.limits import Limit
from mrsep_deploy.separation.gate import burstiness_of
from mrsep_deploy.verification.gate_calibration import (
    LEAST_BURSTINESS,
    MARGIN,
    GateCalibration,
    Tried,
    _judged,
)
from mrsep_deploy.verification.made_up import PLACES, SHAPES, made_up, music_of, probe_music

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = tiny_bundle(tmp_path)
    register(made)
    return made


# --- made-up segments --------------------------------------------------------------------------------------


def test_made_up_segments_are_the_same_every_time_and_of_every_kind(bundle: Bundle) -> None:
    model = bundle.manifest.model
    first, again = (list(made_up(model, probe_music(model), 60)) for _ in range(2))
    assert all(np.array_equal(a.mix, b.mix) and a.title == b.title for a, b in zip(first, again, strict=True))
    assert all(each.mix.shape == (CHANNELS, SAMPLES) and each.mix.dtype == np.float32 for each in first)
    for words in (PLACES, SHAPES, ("digital silence", "noise"), ("one channel",)):
        assert all(any(word in each.title for each in first) for word in words)
    other = list(made_up(model, probe_music(model), 60, seed=1))
    assert not any(np.array_equal(a.mix, b.mix) for a, b in zip(first, other, strict=True))


def test_they_cover_every_burstiness() -> None:
    """At the length of real segments, with steady music."""
    from dataclasses import replace
    from fractions import Fraction

    from bundles import tiny_manifest

    model = replace(tiny_manifest().model, sample_rate=44100, segment=Fraction(39, 5), segment_samples=343980)
    song = np.random.default_rng(0).standard_normal((CHANNELS, 2 * 343980)).astype(np.float32) * 0.2
    values = [burstiness_of(each.mix) for each in made_up(model, music_of([song]), 60)]
    counts, _ = np.histogram(values, [1, 2, 4, 8, 16, 64, 257])
    assert counts.min() >= 3, counts


def test_where_the_music_lies(bundle: Bundle) -> None:
    """At its place, and in one channel where the title says so."""
    music = music_of([np.ones((CHANNELS, 1000), np.float32)])
    for each in made_up(bundle.manifest.model, music, 60):
        sounding = np.abs(each.mix) > 1e-3
        assert sounding.any() or "pieces" in each.title
        if "one channel" in each.title:
            assert sounding.any(axis=1).sum() <= 1
        if "as it is at the start" in each.title:
            assert sounding[:, 0].any()
        if "as it is at the end" in each.title:
            assert sounding[:, -1].any()


# --- the gate ----------------------------------------------------------------------------------------------


def calibration(*tried: tuple[float, bool], songs: Sequence[tuple[float, bool]] = ()) -> GateCalibration:
    own = [Tried("", True, burstiness, 0.0, passes) for burstiness, passes in tried]
    own += [Tried("", False, burstiness, 0.0, passes) for burstiness, passes in songs]
    return GateCalibration("float16", 50.0, tuple(own), {"song": (5.0, 9.0, 30.0, 40.0)})


def test_it_lies_below_the_first_that_fails() -> None:
    found = calibration((8, True), (30, False), (12, True), (20, False), (15, True))
    assert found.gate.burstiness == MARGIN * 20
    assert found.redone() == {"song": 0.5}


def test_where_none_fails_it_lies_at_the_highest_that_was_tried() -> None:
    assert calibration((8, True), (30, True), (12, True)).gate == Gate(30, 3 - 1, 0)


def test_it_does_not_fall_into_music() -> None:
    assert calibration((LEAST_BURSTINESS - 1, False), (30, False)).gate.burstiness == LEAST_BURSTINESS


def test_misses_are_counted_on_segments_it_was_not_made_of() -> None:
    # Halves are (8, 40, 50) and (30, 12, 45): the gate of the first lets 30 pass, which fails.
    found = calibration((8, True), (30, False), (40, False), (12, True), (50, False), (45, False))
    assert found.gate.burstiness == MARGIN * 30
    assert (found.gate.tried, found.gate.missed) == (2 + 1, 1)
    songs = calibration((8, True), (30, False), (40, False), (12, True), songs=[(9, False), (35, False)])
    assert (songs.gate.tried, songs.gate.missed) == (2 + 1 + 2 + 1, 1 + 2 + 1 - 0)


@pytest.mark.parametrize(
    ("error", "level", "passes"), [(-45, 0, True), (-55, 0, True), (-35, 0, False), (-80, -60, True)]
)
def test_a_segment_passes_by_stem_or_by_mix(error: float, level: float, passes: bool) -> None:
    random = np.random.default_rng(0)
    mix = random.standard_normal((2, 5000)).astype(np.float32)
    stem, noise = random.standard_normal((2, 1, 2, 5000)).astype(np.float32)
    exact = stem * np.float32(10 ** (level / 20))
    snr, passed = _judged(exact, exact + noise * np.float32(10 ** (error / 20)), mix, 0.1, Limit(40, ""))
    assert passed == passes
    assert math.isinf(snr) if level else snr == pytest.approx(-error, abs=0.5)


def test_what_is_not_finite_fails() -> None:
    stems = np.ones((1, 2, 8), np.float32)
    broken = stems.copy()
    broken[0, 0, 0] = np.inf
    assert _judged(stems, broken, stems[0], 1.0, Limit(40, "")) == (-math.inf, False)


# --- the command line --------------------------------------------------------------------------------------


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main.main, list(map(str, arguments)))


@pytest.fixture
def song(bundle: Bundle, tmp_path: Path) -> Path:
    random = np.random.default_rng(2)
    samples = np.concatenate([random.uniform(-0.5, 0.5, (2000, 2)), np.zeros((900, 2))])
    samples[2500] = 0.9
    soundfile.write(tmp_path / "song.wav", samples, bundle.manifest.model.sample_rate, subtype="FLOAT")
    return tmp_path / "song.wav"


def test_from_calibration_to_run(bundle: Bundle, song: Path, tmp_path: Path) -> None:
    name = bundle.manifest.name
    result = command("verify", name, "--calibrate-gate", "--audio", song, "--limit", 90, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    burstiness = found["gate"]["burstiness"]
    assert burstiness >= LEAST_BURSTINESS
    assert {each["title"].startswith("song.wav") for each in found["segments"]} == {True, False}
    shown = json.loads(command("inspect", name, "--json").stdout)
    assert shown["gates"] == {"float16": found["gate"]}
    assert f"burstiness above {burstiness:g}" in " ".join(command("inspect", name).stdout.split())

    def run(*options: object) -> tuple[dict[str, object], str]:
        given = ("run", song, "-n", name, "-o", tmp_path / "out", "--engine", "ort", "--float32", *options)
        done = command(*given, "--summary", tmp_path / "summary.json", "--overwrite")
        assert done.exit_code == 0, done.stderr
        return json.loads((tmp_path / "summary.json").read_text()), done.stderr + done.stdout

    summary, said = run("--precision", "fp16")
    assert f"segments of burstiness above {burstiness:g} in float32" in said
    track = summary["tracks"][0]  # type: ignore[index]
    assert 0 < track["segments_in_float32"] < track["segments"]
    assert summary["segments_in_float32"] == track["segments_in_float32"]
    assert f"{track['segments_in_float32']} of {track['segments']} segments in float32" in said
    summary, said = run("--precision", "fp16", "--gate", "off")
    assert summary["segments_in_float32"] == 0
    assert "segments in float32" not in said
    summary, _ = run("--precision", "fp16", "--gate", "0.5")
    assert track["segments_in_float32"] < summary["segments_in_float32"] <= summary["segments"]  # type: ignore[operator]
    summary, _ = run()
    assert summary["segments_in_float32"] == 0


@pytest.mark.parametrize("gate", ["-1", "loud", "nan", "inf"])
def test_a_gate_is_burstiness_or_off(gate: str, song: Path) -> None:
    result = command("run", song, "--gate", gate)
    assert result.exit_code == 2
    assert "is neither off nor burstiness" in result.stderr


def test_verify_runs_segments_as_run_does(bundle: Bundle, song: Path) -> None:
    common = ("verify", bundle.manifest.name, "--precision", "fp16", "--audio", song, "--json", "-q")
    gated = json.loads(command(*common, "--gate", "5").stdout)
    assert gated["gate"]["burstiness"] == 5
    assert 0 < gated["gate"]["in_float32"] < gated["gate"]["segments"]
    assert json.loads(command(*common, "--gate", "off").stdout)["gate"] is None
    all_exact = json.loads(command(*common, "--gate", "0").stdout)
    assert all(stem["snr_db"] is None or stem["snr_db"] > 100 for stem in all_exact["stems"])
    said = command(*common[:-2], "--gate", "5").stdout
    assert "segments ran in float32" in said
    assert "prove nothing" not in said
    assert "So the stems prove nothing of float16" in command(*common[:-2], "--gate", "0").stdout


def test_what_cannot_be_calibrated(bundle: Bundle, tmp_path: Path) -> None:
    archive = write_archive(bundle, tmp_path / "tiny.zip")
    result = command("verify", archive, "--calibrate-gate")
    assert (result.exit_code, "is an archive" in result.stderr) == (2, True)
    result = command("verify", bundle.path, "--calibrate-gate", "--calibrate")
    assert (result.exit_code, "two things" in result.stderr) == (2, True)
    result = command("verify", bundle.path, "--calibrate-gate", "--html", tmp_path / "page.html")
    assert (result.exit_code, "has no report" in result.stderr) == (2, True)
