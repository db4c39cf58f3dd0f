"""``mrsep-deploy run``: any song to stems where Demucs puts them; whatever is wrong, one plain line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import runs
import soundfile
from bundles import CHANNELS, SAMPLE_RATE, SOURCES, tiny_bundle
from click.testing import CliRunner
from goldens import Export, checkpoint, golden
from numpy.typing import NDArray

from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.audio.resample import resampled_length
from mrsep_deploy.bundle import Bundle, registry, write_archive
from mrsep_deploy.commands.main import INTERRUPTED, main
from mrsep_deploy.errors import DONE, FAILED, PARTIAL, USAGE
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.songs import journal

Float32 = NDArray[np.float32]


_home = runs._home


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundles")


def song(path: Path, rate: int = SAMPLE_RATE, channels: int = 2, frames: int = 3001, **how: Any) -> Path:
    """A few notes in each channel, written as the name's suffix says."""
    time = np.arange(frames) / rate
    notes = [
        0.3 * np.sin(2 * np.pi * 200 * (n + 1) * time) + 0.1 * np.cos(np.pi * time) for n in range(channels)
    ]
    soundfile.write(path, np.stack(notes, axis=1).astype(np.float32), rate, **how)
    return path


class Result:
    """What came of one call: exit code, and all that was printed."""

    def __init__(self, *arguments: str | Path) -> None:
        done = CliRunner().invoke(main, ["run", *map(str, arguments)])
        self.code, self.output = done.exit_code, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in self.output, self.output
        assert "bug" not in self.output, self.output


def written(folder: Path) -> list[str]:
    """All files below, hidden ones too, but for the journal of a run of several songs."""
    found = folder.rglob("*") if folder.exists() else iter(())
    return sorted(str(p.relative_to(folder)) for p in found if p.is_file() and p.name != journal.NAME)


def stems_of(folder: Path) -> dict[str, NDArray[np.float64]]:
    found = {}
    for path in sorted(folder.glob("*.wav")):
        samples, rate = soundfile.read(path, always_2d=True)
        assert rate == SAMPLE_RATE
        found[path.stem] = samples.T
    return found


def expected_stems(bundle: Bundle, track: Path, **options: Any) -> dict[str, Float32]:
    """Through the Python door: the whole song in memory, at the model's rate."""
    with Separator(bundle, **options) as separator:
        return separator.separate(AudioSource(track, separator.sample_rate, separator.audio_channels).read())


# --- songs to stems ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("rate", [8000, 44100, 11025])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_rate_and_channels(tmp_path: Path, bundle: Bundle, suffix: str, rate: int, channels: int) -> None:
    """Stems in the model's channels, and if asked for at its rate, as long as the song to the sample."""
    track = song(tmp_path / f"my song.{suffix}", rate, channels)
    options = ("--threads", "1", "--float32", "--clip-mode", "none", "--sample-rate", "model")
    result = Result("-n", bundle.path, *options, track)
    assert result.code == DONE
    folder = tmp_path / "separated" / "tiny" / "my song"
    assert written(tmp_path / "separated") == [f"tiny/my song/{name}.wav" for name in sorted(SOURCES)]
    expected = expected_stems(bundle, track, threads=1)
    for name, stem in stems_of(folder).items():
        assert stem.shape == (CHANNELS, resampled_length(3001, rate, SAMPLE_RATE))
        # The file is read in blocks, whose float64 means differ in the last bits; else it is the same.
        np.testing.assert_allclose(stem, expected[name], atol=1e-6 * np.abs(expected[name]).max())
        assert np.abs(stem).max() > 0.1


@pytest.mark.parametrize(
    ("options", "subtype", "step"),
    [([], "PCM_16", 2**-15), (["--int24"], "PCM_24", 2**-23), (["--float32"], "FLOAT", 2**-24)],
)
@pytest.mark.parametrize("clip", ["rescale", "rescale-each", "clamp", "none"])
def test_precision_and_clipping(
    tmp_path: Path, bundle: Bundle, options: list[str], subtype: str, step: float, clip: str
) -> None:
    """Within two steps of the format: one as Demucs cuts towards zero, one as its full scale is 2^n - 1."""
    track = song(tmp_path / "song.wav", subtype="FLOAT")
    assert Result("-n", bundle.path, "--clip-mode", clip, *options, track).code == DONE
    folder = tmp_path / "separated/tiny/song"
    expected = expected_stems(bundle, track)
    loudest = max(float(np.abs(value).max()) for value in expected.values())
    for name, value in expected.items():
        exact = value.astype(np.float64)
        assert soundfile.info(folder / f"{name}.wav").subtype == subtype
        if clip.startswith("rescale"):
            exact /= max(1.01 * (loudest if clip == "rescale" else np.abs(exact).max()), 1)
        elif clip == "clamp":
            exact = np.clip(exact, -0.99, 0.99)
        elif subtype != "FLOAT":
            exact = np.clip(exact, -1, 1)
        np.testing.assert_allclose(stems_of(folder)[name], exact, atol=2 * step + 1e-6 * np.abs(exact).max())


def test_output_folder_and_default_model(tmp_path: Path, bundle: Bundle) -> None:
    """Without ``-n`` the model exported last; with ``-o`` another root, made if need be."""
    registry.register(bundle)
    result = Result("-o", tmp_path / "a/b", song(tmp_path / "x.y.wav"))
    assert result.code == DONE
    assert written(tmp_path / "a") == [f"b/tiny/x.y/{name}.wav" for name in sorted(SOURCES)]
    assert not (tmp_path / "separated").exists()
    assert "x realtime" in result.output


def test_a_second_run_replaces_the_first_to_the_same_bytes(tmp_path: Path, bundle: Bundle) -> None:
    track, folder = song(tmp_path / "song.wav"), tmp_path / "separated/tiny/song"
    contents = []
    for _ in range(2):
        assert Result("-n", bundle.path, track).code == DONE
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_an_archive_and_an_overlap(tmp_path: Path, bundle: Bundle) -> None:
    archive, track = write_archive(bundle, tmp_path / "m.zip"), song(tmp_path / "song.flac")
    assert Result("-n", archive, "--overlap", "0.5", "--float32", "--clip-mode", "none", track).code == DONE
    expected = expected_stems(bundle, track, overlap=0.5)
    other = expected_stems(bundle, track, overlap=0.0)
    for name, stem in stems_of(tmp_path / "separated/tiny/song").items():
        np.testing.assert_allclose(stem, expected[name], atol=1e-6 * np.abs(expected[name]).max())
        assert np.abs(stem - other[name]).max() > 1e-3


def test_several_segments_in_one_run(tmp_path: Path, bundle: Bundle) -> None:
    """Any batch gives the same stems; one beyond the limit is refused in a line."""
    track = song(tmp_path / "song.wav")
    for batch in ("1", "3"):
        assert Result(track, "-n", bundle.path, "-o", tmp_path / batch, "--batch", batch).code == DONE
    for name in SOURCES:
        one, three = (tmp_path / batch / f"tiny/song/{name}.wav" for batch in ("1", "3"))
        assert one.read_bytes() == three.read_bytes()
    result = Result(track, "-n", bundle.path, "--batch", "99999")
    assert (result.code, len(result.output.splitlines())) == (USAGE, 1)
    assert "a batch of 99999 segments was asked for" in result.output


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
def test_a_timeline(tmp_path: Path, bundle: Bundle, mode: str) -> None:
    """Every stage of the first segments is in the picture, and no later segment's."""
    track, picture = song(tmp_path / "song.wav", frames=30 * 3001), tmp_path / "timeline.svg"
    assert (
        Result(track, "-n", bundle.path, "-o", tmp_path / "out", "--mode", mode, "--timeline", picture).code
        == 0
    )
    told = [
        title.text or "" for title in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}title")
    ]
    for stage in bundle.manifest.stages:
        found = [line for line in told if line.startswith(f"{stage.name}, segment ")]
        assert [line.split("segment ")[1][0] for line in found] == ["0", "1", "2", "3"]


def test_an_untrained_model_is_announced(tmp_path: Path, bundle: Bundle) -> None:
    track = song(tmp_path / "song.wav")
    loud = Result("-n", bundle.path, "--engine", "ort", track).output
    assert "untrained" in loud
    assert "random" in loud
    assert "tiny" in loud
    assert "ONNX Runtime" in loud
    assert Result("-q", "-n", bundle.path, track).output == ""


# --- several songs -----------------------------------------------------------------------------------------


def test_one_broken_song_of_several(tmp_path: Path, bundle: Bundle) -> None:
    """It is named, the others are done, and the exit code says so."""
    good = [song(tmp_path / "one.wav"), song(tmp_path / "two.flac")]
    broken = tmp_path / "broken.wav"
    broken.write_text("this is no audio")
    result = Result("-n", bundle.path, good[0], broken, good[1])
    assert result.code == PARTIAL
    assert "broken.wav" in result.output
    assert "1 of 3 failed" in result.output
    expected = [f"tiny/{track}/{name}.wav" for track in ("one", "two") for name in sorted(SOURCES)]
    assert written(tmp_path / "separated") == expected


def test_all_of_several_broken(tmp_path: Path, bundle: Bundle) -> None:
    """Nothing is done, so this is no partial success."""
    result = Result("-n", bundle.path, tmp_path / "a.wav", tmp_path / "b.wav")
    assert result.code == FAILED
    assert written(tmp_path / "separated") == []


# --- hostile audio -----------------------------------------------------------------------------------------


def truncated_flac(path: Path) -> None:
    song(path, frames=40_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_nan(path: Path, value: float = np.nan) -> None:
    samples = np.zeros((2000, 2), np.float32)
    samples[1234, 1] = value
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")


HOSTILE_AUDIO: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated": ("song.flac", truncated_flac),
    "text": ("song.wav", lambda path: path.write_text("Dear diary\n" * 100)),
    "text as mp3": ("song.mp3", lambda path: path.write_text("Dear diary\n" * 100)),
    "empty": ("song.wav", lambda path: path.write_bytes(b"")),
    "header only": ("song.wav", lambda path: song(path, frames=0)),
    "three bytes": ("song.wav", lambda path: path.write_bytes(b"RIF")),
    "nan": ("song.wav", with_nan),
    "infinite": ("song.wav", lambda path: with_nan(path, np.inf)),
    "nothing": ("song.wav", lambda path: None),
    "a dangling link": ("song.wav", lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("kind", HOSTILE_AUDIO)
def test_hostile_audio(tmp_path: Path, bundle: Bundle, kind: str) -> None:
    """One line that names the file; nothing is written, and what was there before stays."""
    name, make = HOSTILE_AUDIO[kind]
    make(tmp_path / name)
    earlier = tmp_path / "separated/tiny/song/drums.wav"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("kept")
    result = Result("-q", "-n", bundle.path, name)
    assert result.code == FAILED
    assert len(result.output.splitlines()) == 1
    assert result.output.startswith("mrsep-deploy: error: ")
    assert name in result.output
    assert written(tmp_path / "separated") == ["tiny/song/drums.wav"]
    assert earlier.read_text() == "kept"


# --- hostile bundles ---------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def foreign_zip(folder: Path) -> None:
    shutil.rmtree(folder)
    with zipfile.ZipFile(folder, "w") as archive:
        archive.writestr("readme.txt", "holiday pictures")
        archive.writestr("../../escaped.txt", "gotcha")


HOSTILE_BUNDLES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing graph": ("b", lambda b: (b / "branch.16.onnx").unlink(), r"branch.16.onnx"),
    "flipped byte": ("b", lambda b: flip(b / "branch.time.onnx"), r"branch.time.onnx"),
    "longer graph": ("b", lambda b: (b / "branch.16.onnx").open("ab").write(b"\0"), r"branch.16.onnx"),
    "no manifest": ("b", lambda b: (b / "manifest.json").unlink(), r"manifest.json"),
    "manifest of nonsense": ("b", lambda b: (b / "manifest.json").write_text("[" * 10_000), r"manifest"),
    "foreign zip": ("b.zip", foreign_zip, r"b.zip"),
    "text as zip": ("b.zip", lambda b: (shutil.rmtree(b), b.write_text("hello")), r"b.zip"),
    "a file": ("b", lambda b: (shutil.rmtree(b), b.write_text("hello")), r"b"),
    "nothing": ("b", shutil.rmtree, r"b"),
}


@pytest.mark.parametrize("kind", HOSTILE_BUNDLES)
def test_hostile_bundles(tmp_path: Path, kind: str) -> None:
    name, damage, cause = HOSTILE_BUNDLES[kind]
    place = tmp_path / "bundles" / name
    tiny_bundle(place.parent, name)
    damage(place)
    before = written(tmp_path)
    result = Result("-n", place, song(tmp_path / "song.wav"))
    assert result.code == FAILED
    assert len(result.output.splitlines()) == 1
    assert cause in result.output
    assert written(tmp_path) == sorted([*before, "song.wav"])


# --- wrong usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int24", "--float32", "song.wav"], "--int24 and --float32"),
        (["--overlap", "1.5", "song.wav"], "overlap"),
        (["--overlap", "nan", "song.wav"], "overlap"),
        (["--engine", "gpu", "song.wav"], "gpu"),
        (["--threads", "-1", "song.wav"], "threads"),
        (["--clip-mode", "loud", "song.wav"], "loud"),
        ([], "TRACKS"),
        (["--no-such-option", "song.wav"], "--no-such-option"),
    ],
)
def test_wrong_usage(tmp_path: Path, bundle: Bundle, arguments: list[str], message: str) -> None:
    song(tmp_path / "song.wav")
    result = Result("-n", bundle.path, *arguments)
    assert result.code == USAGE
    assert message in result.output
    assert not (tmp_path / "separated").exists()


def test_no_such_model(tmp_path: Path) -> None:
    result = Result("-n", "mine", song(tmp_path / "song.wav"))
    assert result.code == USAGE
    assert "no model 'mine' yet (here: mrsep-small)" in result.output


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written(tmp_path: Path, bundle: Bundle) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = Result("-q", "-n", bundle.path, "-o", locked, song(tmp_path / "song.wav"))
    assert result.code == FAILED
    assert str(locked) in result.output


def test_a_file_where_the_stems_should_go(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "separated").write_text("mine")
    result = Result("-q", "-n", bundle.path, song(tmp_path / "song.wav"))
    assert result.code == FAILED
    assert "separated" in result.output
    assert (tmp_path / "separated").read_text() == "mine"


# --- the reference engine ----------------------------------------------------------------------------------

REAL = "htdemucs_nf"


def moved_from(bundle: Bundle, place: Path, found_at: str) -> Bundle:
    """The same bundle, exported (so it says) from a checkpoint at another place."""
    shutil.copytree(bundle.path, place)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["provenance"]["checkpoint"]["path"] = found_at
    (place / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(place)


@pytest.mark.slow
def test_torch_gives_the_same_stems(tmp_path: Path, exports: Export) -> None:
    """From the checkpoint, with nothing of the graphs; and the trained model is not called untrained."""
    pytest.importorskip("torch")
    track = tmp_path / "song.wav"
    soundfile.write(track, 0.1 * golden("song_htdemucs_nf").mix.T, SAMPLE_RATE, subtype="FLOAT")
    found = []
    for engine in ("ort", "torch"):
        options = ("--engine", engine, "--threads", "1", "--float32", "--clip-mode", "none")
        result = Result("-n", exports(REAL).path, "-o", engine, *options, track)
        assert result.code == DONE
        assert "untrained" not in result.output
        found.append(np.stack(list(stems_of(tmp_path / engine / REAL / "song").values())))
    assert found[0].shape[0] == len(exports(REAL).manifest.model.sources)
    # Two float32 runs, each within 1e-5 of the truth on this checkpoint (tests/test_golden.py).
    assert Deviation.between(*found).relative < 2e-5


@pytest.mark.slow
def test_a_checkpoint_that_has_moved(tmp_path: Path, exports: Export) -> None:
    pytest.importorskip("torch")
    bundle = moved_from(exports(REAL), tmp_path / "moved", str(tmp_path / "gone" / "old.th"))
    track = song(tmp_path / "song.wav")
    options = ("-q", "-n", bundle.path, "--engine", "torch")
    result = Result(*options, track)
    assert result.code == FAILED
    assert "old.th" in result.output
    assert "--checkpoint FILE" in result.output
    wrong = Result(*options, "--checkpoint", checkpoint("htdemucs"), track)
    assert wrong.code == FAILED
    assert "sha256" in wrong.output
    assert not written(tmp_path / "separated")
    assert Result(*options, "--checkpoint", checkpoint(REAL), track).code == DONE
    assert len(written(tmp_path / "separated")) == len(bundle.manifest.model.sources)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
def test_control_c_in_the_middle_of_the_second_song(tmp_path: Path, bundle: Bundle, mode: str) -> None:
    """The first song's stems stay, nothing of the second does, and the process ends at once."""
    tracks = song(tmp_path / "one.wav"), song(tmp_path / "two.wav", frames=40_000_000)
    options = ["-n", str(bundle.path), "-o", str(tmp_path / "out"), "--mode", mode]
    command = [sys.executable, "-m", "mrsep_deploy", "run", *options, *map(str, tracks)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    second = tmp_path / "out" / bundle.manifest.name / "two"
    deadline = time.monotonic() + 60
    try:
        while not (second.is_dir() and any(part.stat().st_size for part in second.iterdir())):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("interrupted")
    assert written(tmp_path / "out") == [f"{bundle.manifest.name}/one/{name}.wav" for name in sorted(SOURCES)]


def test_tracks_of_one_name_are_kept_apart(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "other").mkdir()
    one, two = tmp_path / "song.wav", tmp_path / "other" / "song.flac"
    song(one)
    song(two)
    assert Result(one, two, "-n", bundle.path, "-o", tmp_path / "out").code == DONE
    folders = {str(Path(name).parent) for name in written(tmp_path / "out")}
    assert folders == {f"tiny/{tmp_path.name}/song", "tiny/other/song"}


def test_a_name_of_dots_stays_inside_the_models_folder(tmp_path: Path, bundle: Bundle) -> None:
    song(tmp_path / "song.wav")
    (tmp_path / "song.wav").rename(tmp_path / "...wav")
    assert Result(tmp_path / "...wav", "-n", bundle.path, "-o", tmp_path / "out").code == DONE
    model = bundle.manifest.name
    assert {Path(name).parts[0] for name in written(tmp_path / "out")} == {model}
    assert {len(Path(name).parts) for name in written(tmp_path / "out")} == {3}


def test_a_song_that_fails_leaves_no_folder(tmp_path: Path, bundle: Bundle) -> None:
    broken = tmp_path / "broken.wav"
    song(broken, subtype="FLOAT")
    data = bytearray(broken.read_bytes())
    data[-8:-4] = np.float32(np.nan).tobytes()
    broken.write_bytes(data)
    assert Result(broken, "-n", bundle.path, "-o", tmp_path / "out").code == FAILED
    assert not list((tmp_path / "out").rglob("broken"))
