"""benchmarks/precision_trained.py: what it finds, and that it goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_package
import soundfile
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import figures_source
import machine_info
import precision_trained
from precision_trained import CommandLine, Material

Samples = NDArray[np.float32]

RATE = precision_trained.SAMPLE_RATE
MIX = 0.2 * np.random.default_rng(0).standard_normal((2, RATE)).astype(np.float32)
STEMS = {"drums": MIX, "vocals": 10 ** (-55 / 20) * MIX}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of results, in which nothing is yet; tracks of one second, and a model of that name."""
    for module in (machine_info, figures_source, precision_trained):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    model = tmp_path / "model.zip"
    model.write_bytes(b"a model")
    monkeypatch.setattr(precision_trained, "MODELS", {"some": lambda: model})
    tracks = [Material.of_stems("excerpt", STEMS), Material("song", lambda: np.split(MIX, 3, axis=1))]
    monkeypatch.setattr(precision_trained, "materials", lambda _store: tracks)
    return tmp_path / "results"


@pytest.fixture
def separated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the command line was asked for; its stems in float16 are 50 and 40 dB away."""
    asked: list[tuple[str, str]] = []
    noise = (
        np.random.default_rng(1).standard_normal(MIX.shape) / np.sqrt(np.mean(np.square(MIX)) / 0.04) * 0.2
    )

    def separate(
        commands: CommandLine, model: str, mix: Path, precision: str
    ) -> tuple[Path, Mapping[str, Any]]:
        asked.append((mix.stem, precision))
        np.testing.assert_allclose(soundfile.read(mix, dtype="float32")[0].T.std(), MIX.std(), rtol=0.01)
        folder = commands.folder / precision / model
        folder.mkdir(parents=True, exist_ok=True)
        for (name, stem), apart in zip(STEMS.items(), (50, 40), strict=True):
            gain = stem.std() / MIX.std() * 10 ** (-apart / 20)
            written = stem + gain * noise if precision == "fp16" else stem
            soundfile.write(folder / f"{name}.wav", written.T, RATE, subtype="FLOAT")
        return folder, {"elapsed": 1.0}

    monkeypatch.setattr(CommandLine, "separate", separate)
    return asked


def test_stems_are_judged_by_the_rule(results: Path, separated: list[tuple[str, str]]) -> None:
    precision_trained.main(["--track", "song"])
    entry = json.loads((results / "precision_trained.json").read_text())["models"]["some"]["song"]
    drums, vocals = entry["stems"]["drums"], entry["stems"]["vocals"]
    assert drums["snr_db"] == pytest.approx(50, abs=0.1)
    assert (drums["passes_by"], vocals["passes_by"]) == (None, "mix")
    assert vocals["snr_db"] == pytest.approx(40, abs=0.1)
    assert vocals["below_mix_db"] == pytest.approx(95, abs=0.1)
    assert vocals["level_dbfs"] == pytest.approx(entry["mix_dbfs"] - 55, abs=0.2)
    assert entry["mix_dbfs"] == pytest.approx(20 * np.log10(0.2), abs=0.1)
    assert not entry["passes"]
    assert separated == [("song", "fp32"), ("song", "fp16")]


def test_it_goes_on_where_it_stopped(
    results: Path,
    separated: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    precision_trained.main(["--track", "excerpt"])
    stems = json.loads((results / "precision_trained.json").read_text())["models"]["some"]["excerpt"]["stems"]
    assert {"sdr_db", "sdr_change_db"} <= set(stems["drums"])
    capsys.readouterr()
    precision_trained.main(["--left"])
    assert "left: song by some\n" in capsys.readouterr().out
    del separated[:]
    precision_trained.main([])
    assert separated == [("song", "fp32"), ("song", "fp16")]
    assert "left: nothing" in capsys.readouterr().out
    found = json.loads((results / "precision_trained.json").read_text())["models"]["some"]
    assert list(found) == ["excerpt", "song"]
    # another conversion makes all of it stale
    monkeypatch.setattr(precision_trained, "VERSION", -1)
    precision_trained.main(["--left"])
    assert "left: excerpt by some, song by some" in capsys.readouterr().out


def test_an_unknown_track_is_refused_with_those_that_there_are(results: Path) -> None:
    with pytest.raises(SystemExit, match=r"no track 'sonk', expected one of excerpt, song"):
        precision_trained.main(["--track", "sonk"])
    assert not results.exists()


@pytest.mark.slow
def test_a_real_model_through_the_command_line(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = small_package.write(tmp_path / "small.th")
    monkeypatch.setattr(precision_trained, "MODELS", {"small": lambda: package})
    precision_trained.main(["--track", "excerpt", "--threads", "1"])
    entry = json.loads((results / "precision_trained.json").read_text())["models"]["small"]["excerpt"]
    assert all(20 < stem["snr_db"] < 100 for stem in entry["stems"].values())
    assert set(entry["runs"]) == {"fp32", "fp16"}
    assert entry["seconds"] == 1
