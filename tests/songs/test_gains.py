"""Every gain is told, and all stems of a song get the same one, so that they still add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs
import soundfile
from bundles import SAMPLE_RATE, SOURCES
from numpy.typing import NDArray
from runs import run

from mrsep_deploy.audio.compress import flac
from mrsep_deploy.audio.write import StemWriter
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import DONE

_home, bundle = runs._home, runs.bundle

TWO = ("--two-stems", SOURCES[0], "--other-method", "minus", "--float32")
"""A loud stem and one whose peak is another."""


@pytest.fixture
def loud() -> Path:
    path = Path("loud.wav")
    noise = np.random.default_rng(0).uniform(-4, 4, (3000, 2))
    soundfile.write(path, noise, SAMPLE_RATE, subtype="FLOAT")
    return path


def stem(path: str) -> NDArray[np.float64]:
    found: NDArray[np.float64] = soundfile.read(path, always_2d=True)[0]
    return found


def names() -> tuple[str, str]:
    return f"{SOURCES[0]}.wav", f"minus_{SOURCES[0]}.wav"


def decibels(folder: str, name: str) -> float:
    whole = stem(f"whole/tiny/loud/{name}")
    return 20 * float(np.log10(np.abs(stem(f"{folder}/tiny/loud/{name}")).max() / np.abs(whole).max()))


def test_all_stems_of_a_song_get_one_gain(bundle: Bundle, loud: Path) -> None:
    assert run(loud, *TWO, "-o", "whole", "--clip-mode", "none").code == DONE
    done = run(loud, *TWO, "-o", "one")
    each = run(loud, *TWO, "-o", "each", "--clip-mode", "rescale-each")
    one = {decibels("one", name) for name in names()}
    apart = [decibels("each", name) for name in names()]
    assert max(one) - min(one) < 1e-4
    assert min(one) == pytest.approx(min(apart), abs=1e-4)
    assert max(apart) > min(apart) + 0.5, "the two peaks differ, else nothing is tested"
    song = stem("loud.wav") * 10 ** (min(one) / 20)
    added = sum(stem(f"one/tiny/loud/{name}") for name in names())
    np.testing.assert_allclose(added, song, atol=1e-5)
    assert f"all stems {min(one):+.1f} dB to keep from clipping" in done.out
    for name, gain in zip(names(), apart, strict=True):
        assert f"{Path(name).stem} {gain:+.1f} dB" in each.out


def test_every_gain_is_told(bundle: Bundle, loud: Path) -> None:
    soundfile.write("quiet.wav", stem("loud.wav") / 100, SAMPLE_RATE, subtype="FLOAT")
    options = (*TWO, "--clip-mode", "rescale-each")
    assert run(loud, *TWO, "-o", "whole", "--clip-mode", "none").code == DONE
    done = run(loud, "quiet.wav", *options, "--json", "--summary", "summary.json")
    told = [json.loads(line) for line in done.out.splitlines()]
    kept = {
        each["track"]: each["gains_db"] for each in json.loads(Path("summary.json").read_text())["tracks"]
    }
    assert {each["track"]: each["gains_db"] for each in told if each["event"] == "ended"} == kept
    assert kept["quiet.wav"] == {Path(name).stem: 0.0 for name in names()}
    for name in names():
        assert kept["loud.wav"][Path(name).stem] == pytest.approx(decibels("separated", name), abs=0.01)
    assert "dB" not in run("quiet.wav", *TWO).out


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_writer_is_told_the_peak_of_the_song(tmp_path: Path, form: str) -> None:
    encoding = {"encoding": flac()} if form == "flac" else {}
    samples = np.full((2, 1000), 0.8, np.float32)
    with StemWriter(tmp_path / f"alone.{form}", 44100, 2, **encoding) as alone:
        alone.write(samples)
    beside = StemWriter(tmp_path / f"beside.{form}", 44100, 2, **encoding)
    beside.write(samples)
    assert beside.peak == pytest.approx(0.8)
    written = beside.close(song_peak=2.0)
    assert alone.written is not None
    assert (alone.written.gain, written.gain) == (1.0, pytest.approx(1 / 2.02))
    assert (alone.written.decibels, written.decibels) == (0.0, -6.11)
    assert np.abs(stem(f"{tmp_path}/beside.{form}")).max() == pytest.approx(0.8 / 2.02, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "limit", "named"),
    [
        (["--clip-mode", "clamp", "--float32"], 0.99, "±0.99"),
        (["--clip-mode", "clamp", "--flac"], 0.99, "±0.99"),
        (["--clip-mode", "none"], 1.0, "full scale"),
        (["--clip-mode", "none", "--mp3", "--sample-rate", "44100"], 1.0, "full scale"),
        (["--clip-mode", "none", "--float32"], np.inf, ""),
        (["--clip-mode", "rescale"], np.inf, ""),
        (["--clip-mode", "rescale-each", "--flac"], np.inf, ""),
    ],
)
def test_peaks_that_are_cut_off_are_told(
    bundle: Bundle, loud: Path, options: list[str], limit: float, named: str
) -> None:
    """How many samples of which stem, as remarks are told; nothing where nothing is cut off."""
    rate = ["--sample-rate", "44100"] if "--mp3" in options else []
    assert run(loud, "-o", "whole", "--float32", "--clip-mode", "none", *rate).code == DONE
    cut = {source: np.abs(stem(f"whole/tiny/loud/{source}.wav")) > limit for source in SOURCES}
    counts = ", ".join(f"{name} {found.sum()} samples" for name, found in cut.items() if found.any())
    remark = f"has stems with peaks beyond {named}, cut off: {counts}"
    done = run(loud, *options, "--summary", "summary.json")
    told = json.loads(Path("summary.json").read_text())["tracks"][0].get("remarks", [])
    assert told == ([remark] if named else [])
    assert (f"mrsep-deploy: loud.wav {remark}\n" in done.err) == bool(named)
    assert ("cut off" in done.err) == bool(named)
    assert bool(counts) == bool(named), "the song is loud enough"
