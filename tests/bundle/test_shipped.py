"""The model that comes with the package: what it is, that it runs with nothing else, and how well it separates."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import trained
from click.testing import CliRunner

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from mrsep_deploy.bundle import Bundle, shipped
from mrsep_deploy.commands import main
from mrsep_deploy.separation.separator import Separator

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import shipped_model  # noqa: E402
from figures_source import result  # noqa: E402

INSTRUMENTS = ("drums", "bass", "other")
RATE = 44100


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(shipped.BUNDLE)


def test_it_is_a_small_model_over_three_resolutions(bundle: Bundle) -> None:
    model = bundle.manifest.model
    assert model.trained
    assert model.sources == (*INSTRUMENTS, "vocals")
    assert (model.sample_rate, model.audio_channels) == (RATE, 2)
    assert [branch.transform and branch.transform.n_fft for branch in bundle.manifest.branches] == [
        2048,
        4096,
        8192,
    ]
    assert shipped.BUNDLE.stat().st_size <= 12e6


def test_it_has_learnt_to_weigh_resolutions(bundle: Bundle) -> None:
    for shares in bundle.manifest.fusion:
        (weights,) = shares.weights
        assert sum(weights) == pytest.approx(1)
        assert max(weights) - min(weights) > 0.01, "the weights are still where they started"


def test_the_bundle_is_made_from_the_checkpoint_beside_it(bundle: Bundle) -> None:
    recorded = bundle.manifest.provenance["checkpoint"]
    assert isinstance(recorded, dict)
    assert recorded["path"] == shipped.CHECKPOINT.name, "no path of the machine that made it"
    assert recorded["sha256"] == hashlib.sha256(shipped.CHECKPOINT.read_bytes()).hexdigest()


def test_every_file_beside_it_is_in_the_package() -> None:
    """And nothing else: what lies there is what a wheel holds."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "mrsep_deploy.bundle.shipped" in settings["packages"]
    files = {path.name for path in shipped.BUNDLE.parent.iterdir() if path.is_file()} - {"__init__.py"}
    assert files == set(settings["package-data"]["mrsep_deploy.bundle.shipped"])


def test_run_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A click track over a low tone: the clicks come out as drums, the tone as bass."""
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    time = np.arange(6 * RATE) / RATE
    random = np.random.default_rng(0)
    drums = random.standard_normal((2, len(time))) * np.exp(-(time % 0.5) * 60) * 0.3
    bass = np.sin(2 * np.pi * 55 * time) * 0.3
    song = tmp_path / "song.wav"
    soundfile.write(song, (drums + bass).T, RATE, subtype="FLOAT")
    arguments = ["run", str(song), "--engine", "ort", "-o", str(tmp_path / "out"), "--float32"]
    done = CliRunner().invoke(main.main, arguments, prog_name=main.PROGRAM)
    assert done.exit_code == 0, done.output
    first, *limits = done.stderr.splitlines()[:3]
    assert first.startswith(
        f"{shipped.NAME}, comes with mrsep-deploy (drums, bass, other, vocals; licence MIT) on ONNX Runtime"
    )
    assert limits == list(shipped.LIMITS)
    stems = tmp_path / "out" / shipped.NAME / "song"
    assert sorted(path.stem for path in stems.iterdir()) == sorted((*INSTRUMENTS, "vocals"))
    found = {path.stem: soundfile.read(path)[0].T for path in stems.iterdir()}

    def likeness(stem: str, source: np.ndarray) -> float:
        return float(np.corrcoef(found[stem].ravel(), np.broadcast_to(source, (2, len(time))).ravel())[0, 1])

    for name, source in (("drums", drums), ("bass", bass)):
        assert likeness(name, source) > 0.7
        assert max(INSTRUMENTS, key=lambda stem, source=source: likeness(stem, source)) == name


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_programs_are_not_told_of_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    soundfile.write(tmp_path / "song.wav", np.zeros((RATE // 10, 2)), RATE)
    arguments = ["run", str(tmp_path / "song.wav"), "--engine", "ort", "-o", str(tmp_path / "out"), option]
    done = CliRunner().invoke(main.main, arguments, prog_name=main.PROGRAM)
    assert (done.exit_code, done.stderr) == (0, "")


def test_what_is_said_of_its_limits_is_what_was_measured() -> None:
    """Drums, bass and other come apart, with leaks; of the vocals next to nothing is there."""
    things, vocals = shipped.LIMITS
    assert "drums, bass and other" in things
    assert "vocals" in vocals
    scores = result("shipped_model")["tracks"]
    for stem in INSTRUMENTS:
        assert 2 < np.median([track["model"][stem] for track in scores.values()]) < 6
    assert max(track["model"].get("vocals", 0.0) for track in scores.values()) < 0.1
    page = (ROOT / "docs" / "running.md").read_text()
    assert "mrsep-deploy fetch htdemucs" in vocals
    assert "mrsep-deploy fetch htdemucs" in page


@pytest.mark.slow
def test_engines_separate_as_the_checkpoint_does(bundle: Bundle) -> None:
    """110 dB, as the trained HTDemucs is held to; the torch engine finds the checkpoint in the package."""
    mix = np.random.default_rng(1).standard_normal((2, 10 * RATE)).astype(np.float32) * 0.1
    with Separator(bundle, engine="ort") as ours, Separator(bundle, engine="torch") as reference:
        found, expected = ours.separate(mix), reference.separate(mix)
    for source in INSTRUMENTS:
        error = np.linalg.norm(found[source] - expected[source]) / np.linalg.norm(expected[source])
        assert -20 * np.log10(error) > 110


# --- as measured: benchmarks/shipped_model.py


def test_the_figures_are_of_these_weights() -> None:
    found = result("shipped_model")
    assert found["checkpoint_sha256"] == hashlib.sha256(shipped.CHECKPOINT.read_bytes()).hexdigest()


def test_what_the_shipped_model_promises() -> None:
    """Held out: 3 dB over the mixture for each instrument; 1.5 dB for the drums and bass of real music."""
    found = result("shipped_model")
    tracks = found["tracks"]
    gains = {
        name: {s: scores["model"][s] - scores["mixture"][s] for s in INSTRUMENTS}
        for name, scores in tracks.items()
    }
    for source in INSTRUMENTS:
        assert found["medians"][source]["gain"] >= 3
        assert gains["lmms-Thomasso-AxeFromThe80s"][source] >= 3
    assert min(gains["excerpt"][source] for source in ("drums", "bass")) >= 1.5
    # float16 costs nothing that can be heard, the silent vocals included
    assert min(found["float16"]["snr"].values()) >= 64
    assert max(map(abs, found["float16"]["sdr_change"].values())) < 0.005
    assert found["float16"]["passes"]
    for name, ours in found["bundle"].items():
        assert ours["sdr"] == pytest.approx(tracks[name]["model"], abs=0.02)


@pytest.mark.slow
@pytest.mark.network
def test_the_excerpt_comes_out_as_measured(bundle: Bundle) -> None:
    with Separator(bundle, engine="ort") as separator:
        stems = separator.separate(trained.excerpt_mix())
    found = shipped_model.evaluate.score(trained.excerpt_stems(), stems)
    assert found == pytest.approx(result("shipped_model")["tracks"]["excerpt"]["model"], abs=0.02)


@pytest.mark.slow
@pytest.mark.network
def test_float16_comes_out_as_measured(bundle: Bundle, tmp_path: Path) -> None:
    """Emulated on a CPU; another processor rounds other last digits, which float16 may enlarge to tenths of a dB."""
    pair = shipped_model.Pair(bundle, shipped_model.halved(bundle, tmp_path / "low"), 0)
    found = pair.verify([shipped_model.excerpt_track()])
    ours = {stem.source: stem.figures.snr for stem in found.stems if stem.source in INSTRUMENTS}
    measured = result("shipped_model")["float16"]["snr"]
    assert ours == pytest.approx({source: measured[source] for source in INSTRUMENTS}, abs=1)
