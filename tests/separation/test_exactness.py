"""What comes out is what went in, as far as the model lets it: no seams, right edges, nothing made of nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bundles import CHANNELS, SAMPLE_RATE, SAMPLES
from click.testing import CliRunner
from numpy.typing import NDArray
from test_separator import waveform_bundle

from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.commands import run as run_module
from mrsep_deploy.commands.main import main
from mrsep_deploy.separation import segments
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.testing import Arrays, FakeEngine, identity

Float32 = NDArray[np.float32]


# --- seams -------------------------------------------------------------------------------------------------


def step_ratio(signal: NDArray[Any], segment: int, stride: int) -> float:
    """How much further a signal moves where segments begin and end than it does anywhere else.

    Args:
        signal: ``[samples]``.
        segment, stride: samples of a segment, and from one's start to the next.

    Returns:
        The largest difference of neighbours at a border over the largest elsewhere: a step in a smooth signal
        shows as a number above 1.
    """
    moved = np.abs(np.diff(signal.astype(np.float64)))
    at_border = np.zeros(len(moved), bool)
    for start in range(0, len(moved), stride):
        for border in (start, start + segment):
            at_border[max(border - 2, 0) : border + 2] = True
    inner, borders = moved[segment:-segment], at_border[segment:-segment]
    return float(inner[borders].max() / inner[~borders].max())


LARGEST_STEP = 1.1


def uneven(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
    """A model that repeats the mix, a third louder in every other segment: a worst case for borders."""
    identity(stage, inputs, outputs)
    if stage.name == "branch.time":
        uneven.calls += 1  # type: ignore[attr-defined]
        for output in outputs.values():
            output *= 1 + (uneven.calls % 2) / 3  # type: ignore[attr-defined]


def separated_by_uneven_model(folder: Path, overlap: float, shifts: int = 0) -> Float32:
    uneven.calls = 0  # type: ignore[attr-defined]
    slow = 0.5 * np.sin(2 * np.pi * np.arange(40 * SAMPLES) / (3 * SAMPLES) + 0.7)
    mix = np.stack([slow, -slow]).astype(np.float32)
    options = {"overlap": overlap, "shifts": shifts}
    with Separator(waveform_bundle(folder), engine=FakeEngine(uneven), **options) as separator:  # type: ignore[arg-type]
        return separator.separate(mix)["drums"]


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
def test_no_seam_where_segments_meet(tmp_path: Path, overlap: float) -> None:
    """Segments that disagree by a third are faded into each other over the whole overlap."""
    found = separated_by_uneven_model(tmp_path, overlap)
    assert step_ratio(found[0], SAMPLES, int((1 - overlap) * SAMPLES)) < LARGEST_STEP


def hard_cut(segment: int) -> Float32:
    """Weights that do not fade."""
    return np.ones(segment, np.float32)


def short_fade(segment: int) -> Float32:
    """Weights that fade over two samples."""
    weights = np.ones(segment, np.float32)
    weights[:2] = weights[-2:] = (0.3, 0.7)
    return weights


@pytest.mark.parametrize("weights", [hard_cut, short_fade])
def test_a_planted_seam_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Callable[[int], Float32]
) -> None:
    """The test above can fail: without the fades there are steps, and they are seen."""
    monkeypatch.setattr(segments, "triangle", weights)
    found = separated_by_uneven_model(tmp_path, 0.25)
    assert step_ratio(found[0], SAMPLES, 48) > LARGEST_STEP


# --- songs as they may be ----------------------------------------------------------------------------------


@pytest.fixture
def repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Float32, int]]:
    """Runs the command line with a model whose every stem is the mix: ``repeat(samples, rate, *options)``."""
    bundle = waveform_bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)

    def separator(options: Any, _model: Any, _wanted: Any, _report: Any) -> Separator:
        return Separator(bundle, engine=FakeEngine(), overlap=options.overlap, shifts=options.shifts)

    monkeypatch.setattr(run_module, "_separator", separator)

    def run(samples: NDArray[Any], rate: int, *options: str) -> tuple[Float32, int]:
        soundfile.write("song.wav", samples.T, rate, subtype="FLOAT")
        arguments = [
            "run",
            "song.wav",
            "-q",
            "-n",
            str(bundle.path),
            "--float32",
            "--clip-mode",
            "none",
            *options,
        ]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        found, found_rate = soundfile.read(
            "separated/waveform/song/other.wav", dtype="float32", always_2d=True
        )
        return found.T, found_rate

    return run


def signals() -> dict[str, Float32]:
    """Songs at the limits of what a song is."""
    time = np.arange(1000) / SAMPLE_RATE
    sine = np.sin(2 * np.pi * 440 * time)
    made = {
        "one sample": np.array([0.7]),
        "two samples": np.array([0.7, -0.2]),
        "a segment less one": sine[: SAMPLES - 1],
        "a segment": sine[:SAMPLES],
        "a segment and one": sine[: SAMPLES + 1],
        "full scale": np.sign(sine),
        "clipped": np.clip(3 * sine, -1, 1),
        "beyond full scale": 4 * sine,
        "very quiet": 1e-4 * sine,
        "one click at the start": np.eye(1, 1000, 0)[0],
        "one click at the end": np.eye(1, 1000, 999)[0],
    }
    return {name: np.stack([signal, -0.5 * signal]).astype(np.float32) for name, signal in made.items()}


@pytest.mark.parametrize("shifts", ["0", "3"])
@pytest.mark.parametrize("name", signals())
def test_first_and_last_samples_are_right(repeat: Callable[..., Any], name: str, shifts: str) -> None:
    """A model that repeats the mix gives the song, every sample of it."""
    song = signals()[name]
    found, rate = repeat(song, SAMPLE_RATE, "--shifts", shifts)
    assert rate == SAMPLE_RATE
    assert found.shape == song.shape
    # 1e-5 beside a segment's deviation is the model's own error, larger where a segment is mostly zeros.
    np.testing.assert_allclose(found, song, atol=2e-4 * np.abs(song).max())


@pytest.mark.parametrize("level", [0.0, 0.5, -1.0, 1e-6])
@pytest.mark.parametrize("shifts", ["0", "2"])
def test_silence_and_dc_stay_what_they_are(repeat: Callable[..., Any], level: float, shifts: str) -> None:
    song = np.full((CHANNELS, 700), level, np.float32)
    found, _ = repeat(song, SAMPLE_RATE, "--shifts", shifts)
    np.testing.assert_allclose(found, song, atol=1e-7 * abs(level), rtol=1e-6)


@pytest.mark.parametrize("rate", [11025, 44100, 48000])
def test_another_rate_there_and_back(repeat: Callable[..., Any], rate: int) -> None:
    """As long as the song, aligned with it, and the same as far as the model's band goes."""
    time = np.arange(rate) / rate
    fade = np.sin(np.pi * time)
    song = np.stack([fade * np.sin(2 * np.pi * 440 * time), fade * np.sin(2 * np.pi * 1100 * time)])
    found, found_rate = repeat(song.astype(np.float32), rate)
    assert found_rate == rate
    assert found.shape == song.shape
    snr = 10 * np.log10(np.square(song).sum() / np.square(found - song).sum())
    assert snr > 60
