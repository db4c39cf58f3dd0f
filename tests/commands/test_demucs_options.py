"""Side by side with the published demucs: the same weights, files and options give the same stems under the same names.

Both programs' command lines run, on a small model with every option, and on trained weights and music where options
change what is computed. What differs on purpose is listed in docs/running.md, and tested as different here.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import once
import pytest
import small_package
import soundfile
import trained
from assets import SAMPLE_RATE, trained_htdemucs
from click.testing import CliRunner
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.commands.main import main
from mrsep_deploy.export.exporter import export_model
from mrsep_deploy.export.load import load_model
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.songs import journal

pytest.importorskip("demucs", reason="the published reference; pip install demucs==4.1.0")

pytestmark = pytest.mark.slow

NAME = "955717e8"
REQUIRED_SNR = 95.0
"""dB, of float32 against demucs' float32, whose own rounding is at 117 to 119 on whole segments; where segments are
filled up with silence both lose more, and reach 100."""

# What is given to both, and what besides to demucs and to this package.
SAME: dict[str, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "defaults": ([], ["--shifts", "0"], []),
    "one shift, demucs' default": ([], [], ["--shifts", "1", "--seed", "7"]),
    "two shifts": (["--shifts", "2"], [], ["--seed", "7"]),
    "overlap": (["--overlap", "0.6"], ["--shifts", "0"], []),
    "segment": (["--segment", "4"], ["--shifts", "0"], []),
    "two stems": (["--two-stems", "vocals"], ["--shifts", "0"], []),
    "two stems, minus": (["--two-stems", "bass", "--other-method", "minus"], ["--shifts", "0"], []),
    "two stems, none": (["--two-stems", "drums", "--other-method", "none"], ["--shifts", "0"], []),
    "file names": (["--filename", "{stem}/{track} {trackext}.{ext}"], ["--shifts", "0"], []),
    "device, jobs": (["-d", "cpu", "-j", "2"], ["--shifts", "0"], []),
}


TRAINED = ("defaults", "one shift, demucs' default", "overlap")
"""Those of these cases that run on trained weights, too."""


LOUD = 12
"""Times the song, and every stem of the small model is above full scale."""


@dataclass(frozen=True)
class Model:
    """A model as both programs take it: a package in a folder for demucs' ``--repo``, and the bundle of it."""

    repo: Path
    bundle: Bundle


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of noise and tones."""
    time = np.arange(6 * SAMPLE_RATE)[:, None] / SAMPLE_RATE
    noise = np.random.default_rng(0).normal(0, 0.1, (len(time), 2))
    song = noise * np.abs(np.sin(5 * time)) + 0.2 * np.sin(np.array([[500, 900]]) * time)
    path = tmp_path_factory.mktemp("mix") / "a song.with dots.wav"
    soundfile.write(path, song, SAMPLE_RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def small() -> Model:
    def make(repo: Path) -> None:
        repo.mkdir()
        package = small_package.write(repo / f"{NAME}.th", samplerate=SAMPLE_RATE, segment=5, nfft=2048)
        export_model(load_model(package), "small", repo / "bundle")

    repo = once.made("demucs_options", make)
    return Model(repo, Bundle.open(repo / "bundle"))


@pytest.fixture
def trained_model(tmp_path: Path) -> Model:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / f"{NAME}.th").symlink_to(trained_htdemucs())
    return Model(repo, Bundle.open(trained.trained_bundle("split")))


def by_demucs(model: Model, out: Path, track: Path, options: Sequence[str]) -> Path:
    from demucs import separate

    # The model draws from the same source between two shifts, for an embedding it shifts by 0 places.
    with mock.patch("demucs.apply.random", random.Random(7)):
        separate.main(["--repo", str(model.repo), "-n", NAME, "-o", str(out), *options, str(track)])
    return out / NAME


def by_us(model: Model, out: Path, track: Path, options: Sequence[str]) -> Path:
    # Demucs rescales each stem by itself; what one gain for all does is tested below
    same = ["--engine", "ort", "-n", str(model.bundle.path), "-o", str(out), "--clip-mode", "rescale-each"]
    arguments = ["run", "-q", *same, *options, str(track)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return out / model.bundle.manifest.name


def files(folder: Path) -> dict[str, Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != journal.NAME)
    return {str(path.relative_to(folder)): path for path in found}


def samples(path: Path) -> NDArray[np.float64]:
    found: NDArray[np.float64] = soundfile.read(path, always_2d=True)[0].T
    return found


@pytest.mark.parametrize("case", SAME)
def test_the_same_stems_under_the_same_names(
    tmp_path: Path, mix: Path, small: Model, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(tmp_path, mix, small, case, capsys)


@pytest.mark.weights
@pytest.mark.network
@pytest.mark.parametrize("case", TRAINED)
def test_the_same_stems_of_music(
    tmp_path: Path, trained_model: Model, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "music.wav", trained.excerpt_mix().T, SAMPLE_RATE, subtype="FLOAT")
    compare(tmp_path, tmp_path / "music.wav", trained_model, case, capsys)


def compare(folder: Path, track: Path, model: Model, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    both, theirs, ours = SAME[case]
    expected = files(by_demucs(model, folder / "demucs", track, [*both, *theirs, "--float32"]))
    found = files(by_us(model, folder / "ours", track, [*both, *ours, "--float32"]))
    assert sorted(found) == sorted(expected)
    levels = {}
    for name, path in found.items():
        assert soundfile.info(path).samplerate == soundfile.info(expected[name]).samplerate
        assert soundfile.info(path).subtype == soundfile.info(expected[name]).subtype == "FLOAT"
        levels[name] = Deviation.between(samples(path), samples(expected[name])).snr
    with capsys.disabled():
        print(
            f"\n{model.bundle.manifest.name}, {case}: worst of {len(levels)} files {min(levels.values()):.1f} dB"
        )
    assert min(levels.values()) > REQUIRED_SNR, levels


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ([], 2**-15),
        (["--int24"], 2**-23),
        (["--clip-mode", "clamp"], 2**-15),
        (["--clip-mode", "none"], 2**-15),
    ],
)
def test_the_same_integers(tmp_path: Path, mix: Path, small: Model, options: list[str], step: float) -> None:
    """A song far too loud, so that every way to keep from clipping has something to do.

    Both cut towards zero, so an error of float32 moves a sample of 16 bits by one step at most, and 24 bits show the
    error itself.
    """
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, LOUD * soundfile.read(mix, dtype="float32")[0], SAMPLE_RATE, subtype="FLOAT")
    expected = files(by_demucs(small, tmp_path / "demucs", loud, ["--shifts", "0", *options]))
    found = files(by_us(small, tmp_path / "ours", loud, options))
    assert sorted(found) == sorted(expected)
    for name, path in found.items():
        assert soundfile.info(path).subtype == soundfile.info(expected[name]).subtype
        ours, theirs = samples(path), samples(expected[name])
        if step < 1e-6:
            assert Deviation.between(ours, theirs).snr > REQUIRED_SNR
        else:
            assert np.abs(ours - theirs).max() <= step
            assert np.mean(ours != theirs) < 0.05


def test_mp3_of_the_same_name_without_the_delay(tmp_path: Path, mix: Path, small: Model) -> None:
    """The encoder is the same; ours says how much silence it has put before the song, and players leave it out."""
    options = ["--mp3", "--mp3-bitrate", "192"]
    expected = files(by_demucs(small, tmp_path / "demucs", mix, ["--shifts", "0", *options]))
    found = files(by_us(small, tmp_path / "ours", mix, options))
    assert sorted(found) == sorted(expected)
    for name, path in found.items():
        assert soundfile.info(path).frames == soundfile.info(mix).frames
        assert soundfile.info(expected[name]).frames > soundfile.info(mix).frames
        assert path.stat().st_size == pytest.approx(expected[name].stat().st_size, rel=0.05)


def test_float32_beyond_full_scale_is_kept(tmp_path: Path, mix: Path, small: Model) -> None:
    """Different on purpose: demucs clamps float files to ±1 even without clipping."""
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, LOUD * soundfile.read(mix, dtype="float32")[0], SAMPLE_RATE, subtype="FLOAT")
    options = ["--float32", "--clip-mode", "none"]
    theirs = files(by_demucs(small, tmp_path / "demucs", loud, ["--shifts", "0", *options]))
    ours = files(by_us(small, tmp_path / "ours", loud, options))
    beyond = [name for name in ours if np.abs(samples(ours[name])).max() > 1]
    assert beyond
    for name in ours:
        expected, found = samples(theirs[name]), samples(ours[name])
        assert np.abs(expected).max() <= 1
        assert Deviation.between(np.clip(found, -1, 1), expected).snr > REQUIRED_SNR


def test_one_gain_for_all_stems(tmp_path: Path, mix: Path, small: Model) -> None:
    """Different on purpose: demucs lowers each stem by itself, and they no longer add up to the song."""
    loud = tmp_path / "loud.wav"
    song = LOUD * soundfile.read(mix, dtype="float32")[0]
    soundfile.write(loud, song, SAMPLE_RATE, subtype="FLOAT")
    theirs = files(by_demucs(small, tmp_path / "demucs", loud, ["--shifts", "0", "--float32"]))
    whole = files(by_us(small, tmp_path / "whole", loud, ["--float32", "--clip-mode", "none"]))
    ours = files(by_us(small, tmp_path / "ours", loud, ["--float32", "--clip-mode", "rescale"]))
    gains = {name: np.abs(samples(ours[name])).max() / np.abs(samples(whole[name])).max() for name in ours}
    apart = {name: np.abs(samples(theirs[name])).max() / np.abs(samples(whole[name])).max() for name in ours}
    assert max(gains.values()) == pytest.approx(min(gains.values()), rel=1e-5)
    assert min(gains.values()) == pytest.approx(min(apart.values()), rel=1e-3)
    assert max(apart.values()) > 1.1 * min(apart.values())


@pytest.mark.skipif(sys.platform == "win32", reason="a name of dots")
def test_the_input_s_rate_is_kept(tmp_path: Path, mix: Path, small: Model) -> None:
    """Different on purpose: demucs writes 44.1 kHz whatever came in; ``--sample-rate model`` does, too."""
    fast = tmp_path / "fast.wav"
    soundfile.write(fast, soundfile.read(mix, dtype="float32")[0], 48000, subtype="FLOAT")
    theirs = files(by_demucs(small, tmp_path / "demucs", fast, ["--shifts", "0", "--float32"]))
    kept = files(by_us(small, tmp_path / "kept", fast, ["--float32"]))
    model = files(by_us(small, tmp_path / "model", fast, ["--float32", "--sample-rate", "model"]))
    for name, path in theirs.items():
        assert soundfile.info(path).samplerate == soundfile.info(model[name]).samplerate == SAMPLE_RATE
        assert soundfile.info(kept[name]).samplerate == 48000
        assert soundfile.info(kept[name]).frames == soundfile.info(fast).frames
        assert abs(soundfile.info(path).frames - soundfile.info(model[name]).frames) <= 1
        # The two resamplers (julius, soxr) cut off differently near the top of the band.
        shortest = min(samples(path).shape[1], samples(model[name]).shape[1])
        assert Deviation.between(samples(model[name])[:, :shortest], samples(path)[:, :shortest]).snr > 30
