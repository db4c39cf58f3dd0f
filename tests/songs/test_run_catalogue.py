"""Many songs in one run, pipes, formats, resuming, and where options may come from: through the command line."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import runs
import soundfile
from bundles import CHANNELS, SAMPLE_RATE, SOURCES, tiny_bundle
from click.testing import CliRunner
from numpy.typing import NDArray

from mrsep_deploy.audio.tags import read_tags
from mrsep_deploy.bundle import Bundle, registry
from mrsep_deploy.commands.main import main
from mrsep_deploy.errors import DONE, FAILED, PARTIAL, USAGE, OutputError
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.songs import journal, loading, pipeline, reporting
from mrsep_deploy.songs.tracks import Track
from mrsep_deploy.songs.writing import SongWriter

Float32 = NDArray[np.float32]


_home, bundle = runs._home, runs.bundle


def notes(frames: int = 3001, rate: int = SAMPLE_RATE, seed: int = 0) -> NDArray[np.float64]:
    time = np.arange(frames) / rate
    noise = 0.05 * np.random.default_rng(seed).standard_normal((frames, 2))
    tones = np.stack([np.sin(600 * (1 + seed) * time), np.sin(900 * time)], axis=1)
    mixed: NDArray[np.float64] = 0.3 * tones + noise
    return mixed


def song(path: Path | str, frames: int = 3001, rate: int = SAMPLE_RATE, seed: int = 0) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"subtype": "FLOAT"} if path.suffix == ".wav" else {}
    soundfile.write(path, notes(frames, rate, seed).astype(np.float32), rate, **how)
    return path


class Result:
    """What came of one call, stdout and stderr apart."""

    def __init__(self, *arguments: str | Path, given: bytes = b"", **environment: str) -> None:
        done = CliRunner().invoke(main, [*map(str, arguments)], input=given, env=environment)
        self.code, self.out, self.err, self.bytes = (
            done.exit_code,
            done.stdout,
            done.stderr,
            done.stdout_bytes,
        )
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.output, done.output
        assert "This is a bug" not in done.output, done.output


def run(*arguments: str | Path, given: bytes = b"", **environment: str) -> Result:
    return Result("run", *arguments, given=given, **environment)


def files(folder: Path, journals: bool = False) -> list[str]:
    """Every file below a folder; journals only where they matter."""
    found = (path for path in folder.rglob("*") if path.is_file() and (journals or path.name != journal.NAME))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def stems(*tracks: str) -> list[str]:
    return sorted(f"{track}/{name}.wav" for track in tracks for name in SOURCES)


def read(path: Path) -> NDArray[np.float64]:
    found: NDArray[np.float64] = soundfile.read(path, always_2d=True)[0].T
    return found


# --- many songs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", ["1", "2", "5"])
def test_a_catalogue_is_each_song_by_itself(tmp_path: Path, bundle: Bundle, jobs: str) -> None:
    """To the byte, whatever was separated before or beside it, long songs among short ones."""
    lengths = [1, 63, 64, 65, 500, 3001, 20_000, 2, 300, 7000]
    for number, frames in enumerate(lengths):
        song(f"music/{number}.wav", frames, seed=number)
    assert run("music", "-o", "together", "-j", jobs).code == DONE
    for number in range(len(lengths)):
        assert run(f"music/{number}.wav", "-o", "alone").code == DONE
    names = stems(*(f"tiny/{number}" for number in range(len(lengths))))
    assert files(tmp_path / "alone") == names
    assert files(tmp_path / "together", journals=True) == sorted([*names, f"tiny/{journal.NAME}"])
    for name in names:
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_song_that_memory_does_not_hold_is_decoded_again(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead of its separation, in several blocks, and to the same bytes."""
    song("s.wav", 200_000)
    assert run("s.wav", "-o", "held").code == DONE
    monkeypatch.setattr(loading, "KEPT_BYTES", 100_000)
    assert run("s.wav", "-o", "again").code == DONE
    for name in stems("tiny/s"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "held" / name).read_bytes()


def test_folders_show_in_the_names(tmp_path: Path, bundle: Bundle) -> None:
    for name in ("music/a.wav", "music/live/a.wav", "music/live/b.flac"):
        song(name)
    assert run("-r", "music", "-o", "music/stems").code == DONE
    expected = [f"tiny/{name}" for name in stems("a", "live/a", "live/b")]
    assert files(tmp_path / "music/stems") == expected
    # A second run does not take the stems for songs.
    assert run("-r", "music", "-o", "music/stems").code == DONE
    assert files(tmp_path / "music/stems") == expected


def test_failing_songs_are_named_and_the_others_done(tmp_path: Path, bundle: Bundle) -> None:
    for name in ("1.wav", "3.wav", "5.wav"):
        song(f"music/{name}")
    (tmp_path / "music/2.wav").write_text("no audio")
    with_nan = notes().astype(np.float32)
    with_nan[1000] = np.nan
    soundfile.write("music/4.wav", with_nan, SAMPLE_RATE, subtype="FLOAT")
    done = run("music", "--summary", "summary.json")
    assert done.code == PARTIAL
    assert "2 of 5 failed: music/2.wav, music/4.wav" in done.err
    assert "music/4.wav: music/4.wav holds NaN or infinity at 0.125 s" in done.err
    assert files(tmp_path / "separated/tiny") == stems("1", "3", "5")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["done"], summary["failed"], summary["skipped"]) == (3, 2, 0)
    assert summary["seconds"] == pytest.approx(3 * 3001 / SAMPLE_RATE, abs=0.01)
    told = {Path(each["track"]).name: each["status"] for each in summary["tracks"]}
    assert told == {"1.wav": "done", "2.wav": "failed", "3.wav": "done", "4.wav": "failed", "5.wav": "done"}
    assert "no audio" not in json.dumps(summary)


@pytest.mark.parametrize("where", ["write", "flush", "finish"])
def test_a_song_that_cannot_be_written_is_one_failure(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whatever step fails: its parts go, the songs around it are whole."""
    for number in range(4):
        song(f"music/{number}.wav", 2000)
    original = getattr(SongWriter, where)

    def failing(self: SongWriter, *arguments: Any) -> Any:
        if self.paths[0].parent.name == "2":
            raise OutputError("the disk is gone")
        return original(self, *arguments)

    monkeypatch.setattr(SongWriter, where, failing)
    done = run("music")
    assert done.code == PARTIAL
    assert "music/2.wav: the disk is gone" in done.err
    assert files(tmp_path / "separated/tiny") == stems("0", "1", "3")
    assert not (tmp_path / "separated/tiny/2").exists()


# --- resuming ----------------------------------------------------------------------------------------------


def test_resume_does_what_is_left_and_no_more(tmp_path: Path, bundle: Bundle) -> None:
    for number in range(5):
        song(f"music/{number}.wav", seed=number)
    out = tmp_path / "separated/tiny"
    assert run("music").code == DONE
    times = {name: (out / name).stat().st_mtime_ns for name in stems(*"01234")}
    (out / "1/drums.wav").unlink()
    (out / "2/other.wav").write_bytes((out / "2/other.wav").read_bytes()[:-7])
    song("music/3.wav", seed=33)
    plan = run("music", "--resume", "--dry-run").out.splitlines()
    assert [line.endswith("done already") for line in plan] == [True] * 2 + [False] * 6 + [True] * 2
    done = run("music", "--resume", "--json")
    ended = [json.loads(line) for line in done.out.splitlines() if '"ended"' in line]
    assert {Path(e["track"]).stem: e["status"] for e in ended} == {
        **dict.fromkeys("04", "skipped"),
        **dict.fromkeys("123", "done"),
    }
    redone = {name for name, before in times.items() if (out / name).stat().st_mtime_ns != before}
    assert redone == set(stems(*"123"))
    assert "3 skipped" in run("music/0.wav", "music/1.wav", "music/4.wav", "--resume").err


@pytest.mark.parametrize(
    "option",
    [["--overlap", "0.5"], ["--int24"], ["--shifts", "1"], ["--sample-rate", "model"], ["--no-tags"]],
)
def test_resume_with_other_settings_is_another_run(tmp_path: Path, bundle: Bundle, option: list[str]) -> None:
    song("a.wav")
    song("b.wav")
    assert run("a.wav", "b.wav").code == DONE
    assert "2 done" in run("a.wav", "b.wav", "--resume", *option).err


def test_resume_without_anything_to_resume(tmp_path: Path, bundle: Bundle) -> None:
    song("a.wav")
    assert run("a.wav", "--resume").code == DONE
    assert "done already" in run("a.wav", "--resume").out


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_killed_and_resumed(tmp_path: Path, bundle: Bundle) -> None:
    """At random moments, as often as it takes: what a killed run has noted down is whole and not done again."""
    engine = ("--engine", "ort", "--threads", "1")
    for number in range(12):
        song(f"music/{number:02}.wav", 3000, seed=number)
    assert run("music", "-o", "expected", *engine).code == DONE
    command = [sys.executable, "-m", "mrsep_deploy", "run", "music", "--resume", "--json", "-o", "out"]
    command += engine
    random, noted = np.random.default_rng(0), []
    for attempt in range(20):
        with open("told", "w+") as told:
            process = subprocess.Popen(command, stdout=told)
            while process.poll() is None and not Path("told").stat().st_size:
                time.sleep(0.01)  # until it has begun
            try:
                process.wait(random.uniform(0.0, 0.2 + attempt / 3))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        book = tmp_path / "out/tiny" / journal.NAME
        noted.append(len(book.read_text().splitlines()) if book.exists() else 0)
    else:
        pytest.fail("it never came to an end")
    assert len(noted) > 1
    assert noted == sorted(noted)
    assert files(tmp_path / "out") == files(tmp_path / "expected")
    for name in files(tmp_path / "out"):
        if journal.NAME not in name:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    lines = (tmp_path / "out/tiny" / journal.NAME).read_text().splitlines()
    whole = [json.loads(line)["track"] for line in lines if line.endswith("}")]
    assert len(whole) == len(set(whole)) == 12


# --- stems and formats -------------------------------------------------------------------------------------


def test_chosen_stems(tmp_path: Path, bundle: Bundle) -> None:
    track = song("s.wav")
    assert run(track, "--stems", "other").code == DONE
    assert files(tmp_path / "separated") == ["tiny/s/other.wav"]
    assert run(track, "--two-stems", "drums", "-o", "two", "--float32", "--clip-mode", "none").code == DONE
    assert files(tmp_path / "two") == ["tiny/s/drums.wav", "tiny/s/no_drums.wav"]
    minus = ("--two-stems", "drums", "--other-method", "minus", "--float32", "--clip-mode", "none")
    assert run(track, *minus, "-o", "minus").code == DONE
    assert files(tmp_path / "minus") == ["tiny/s/drums.wav", "tiny/s/minus_drums.wav"]
    drums, rest = (read(tmp_path / "minus/tiny/s" / name) for name in ("drums.wav", "minus_drums.wav"))
    np.testing.assert_allclose(drums + rest, read(track), atol=1e-6)


@pytest.mark.parametrize("length", [1, 50, 64, 3001])
def test_minus_with_shifts_and_another_rate(tmp_path: Path, bundle: Bundle, length: int) -> None:
    """The mix is taken where the stem is, whatever happens on the way: the two add up to the song."""
    track = song("s.wav", length)
    options = ("--two-stems", "drums", "--other-method", "minus", "--float32", "--clip-mode", "none")
    assert run(track, *options, "--shifts", "3", "--overlap", "0.6").code == DONE
    folder = tmp_path / "separated/tiny/s"
    np.testing.assert_allclose(
        read(folder / "drums.wav") + read(folder / "minus_drums.wav"), read(track), atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "suffix", "subtype"),
    [
        (["--flac"], "flac", "PCM_16"),
        (["--flac", "--int24"], "flac", "PCM_24"),
        (["--ogg"], "ogg", "VORBIS"),
        (["--mp3", "--mp3-bitrate", "64"], "mp3", "MPEG_LAYER_III"),
        (["--int24"], "wav", "PCM_24"),
    ],
)
def test_formats(tmp_path: Path, bundle: Bundle, options: list[str], suffix: str, subtype: str) -> None:
    track = song("s.wav", 20_000)
    assert run(track, *options).code == DONE
    assert files(tmp_path / "separated") == sorted(f"tiny/s/{name}.{suffix}" for name in SOURCES)
    for name in SOURCES:
        info = soundfile.info(tmp_path / f"separated/tiny/s/{name}.{suffix}")
        assert (info.subtype, info.frames, info.samplerate) == (subtype, 20_000, SAMPLE_RATE)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44100, 48000, 11025, 96000])
def test_the_song_s_own_rate_and_length(tmp_path: Path, bundle: Bundle, rate: int) -> None:
    for frames in (1, 777, 30_001):
        track = song(f"{frames}.wav", frames, rate)
        assert run(track).code == DONE
        for name in SOURCES:
            info = soundfile.info(tmp_path / f"separated/tiny/{frames}/{name}.wav")
            assert (info.frames, info.samplerate) == (frames, rate)
    assert run(track, "--sample-rate", "22050", "-o", "other").code == DONE
    info = soundfile.info(tmp_path / "other/tiny/30001/drums.wav")
    assert info.samplerate == 22050
    assert abs(info.frames - 30_001 * 22050 / rate) <= 2


def test_tags_are_carried_over(tmp_path: Path, bundle: Bundle) -> None:
    with soundfile.SoundFile("s.flac", "w", SAMPLE_RATE, 2) as file:
        file.title, file.artist = "Ode", "L. v. B."
        file.write(notes())
    assert run("s.flac", "--flac").code == DONE
    assert run("s.flac", "--flac", "--no-tags", "-o", "bare").code == DONE
    assert read_tags(tmp_path / "separated/tiny/s/drums.flac") == {"title": "Ode", "artist": "L. v. B."}
    assert read_tags(tmp_path / "bare/tiny/s/drums.flac") == {}


def test_shifts_are_reproducible(tmp_path: Path, bundle: Bundle) -> None:
    """The same seed, the same bytes, alone or among others; another seed, other ones."""
    song("a.wav", 5000, seed=1)
    song("b.wav", 5000, seed=2)
    found = {}
    for name, options in {
        "one": ["b.wav", "--seed", "3"],
        "again": ["a.wav", "b.wav", "--seed", "3"],
        "other": ["b.wav", "--seed", "4"],
    }.items():
        assert run(*options, "--shifts", "2", "-o", name, "--float32").code == DONE
        found[name] = read(tmp_path / name / "tiny/b/drums.wav")
    np.testing.assert_array_equal(found["one"], found["again"])
    assert np.abs(found["one"] - found["other"]).max() > 1e-5


# --- pipes -------------------------------------------------------------------------------------------------


def wav_bytes(frames: int = 3001) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, notes(frames).astype(np.float32), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_through_pipes(tmp_path: Path, bundle: Bundle) -> None:
    """One stem, the same as in a file; nothing but it on stdout."""
    song("s.wav")
    assert run("s.wav").code == DONE
    expected = (tmp_path / "separated/tiny/s/other.wav").read_bytes()
    for options in (["--stems", "other"], ["--two-stems", "other"]):
        done = run("-", "-o", "-", *options, given=wav_bytes())
        assert done.code == DONE
        assert done.bytes == expected
        assert "x realtime" in done.err
    assert run("s.wav", "-q", "-o", "-", "--stems", "other").bytes == expected
    raw = run("s.wav", "-q", "-o", "-", "--stems", "other", "--raw").bytes
    assert raw == expected[80 : 80 + len(raw)]
    assert len(raw) == 3001 * 2 * 2
    assert run("-", given=wav_bytes()).code == DONE
    assert (tmp_path / "separated/tiny/stdin/other.wav").read_bytes() == expected


@pytest.mark.parametrize(("form", "dtype"), [("f32le", "<f4"), ("s16le", "<i2")])
def test_raw_samples_in(tmp_path: Path, bundle: Bundle, form: str, dtype: str) -> None:
    samples = notes()
    given = (samples if dtype == "<f4" else np.round(samples * 32768)).astype(dtype)
    options = ("-q", "-o", "-", "--stems", "drums", "--float32", "--raw")
    done = run("-", *options, "--stdin-raw", f"{SAMPLE_RATE}:2:{form}", given=given.tobytes())
    assert done.code == DONE
    found = np.frombuffer(done.bytes, "<f4").reshape(-1, 2)
    soundfile.write("s.wav", given, SAMPLE_RATE, subtype="FLOAT" if dtype == "<f4" else "PCM_16")
    expected = run("s.wav", *options).bytes
    np.testing.assert_array_equal(found, np.frombuffer(expected, "<f4").reshape(-1, 2))


def test_a_real_pipe(tmp_path: Path, bundle: Bundle) -> None:
    command = [sys.executable, "-m", "mrsep_deploy", "run", "-", "-q", "-o", "-", "--stems", "drums"]
    done = subprocess.run(command, input=wav_bytes(), capture_output=True, check=True)
    assert soundfile.info(io.BytesIO(done.stdout)).frames == 3001
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (b"", [], "stdin is empty"),
        (b"hello world", [], "libsndfile"),
        (b"12345", ["--stdin-raw", "8000:2:s16le"], "stdin has 5 bytes, no whole number of frames"),
    ],
)
def test_nonsense_through_a_pipe(
    tmp_path: Path, bundle: Bundle, given: bytes, options: list[str], message: str
) -> None:
    done = run("-", "-q", *options, given=given)
    assert done.code == FAILED
    assert message in done.err
    assert len(done.err.splitlines()) == 1


# --- for programs, and before the fact ---------------------------------------------------------------------


def test_json_lines(tmp_path: Path, bundle: Bundle) -> None:
    for name in "ab":
        song(f"{name}.wav", 30_000)
    done = run("a.wav", "b.wav", "--json")
    assert done.code == DONE
    assert done.err == ""
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [each["event"] for each in told if each["event"] != "progress"] == [
        "begin",
        "ended",
        "ended",
        "summary",
    ]
    licence = {"terms": "not stated", "source": "", "commercial": False}
    begin = {"event": "begin", "model": "tiny", "licence": licence, "engine": "", "tracks": 2}
    assert told[0] | {"engine": ""} == begin
    for name in ("a.wav", "b.wav"):
        progress = [each["done"] for each in told if each["event"] == "progress" and each["track"] == name]
        assert progress == sorted(progress)
        assert progress[-1] == pytest.approx(30_000 / SAMPLE_RATE)
        assert len(progress) < 110
    assert told[-1]["done"] == 2


def test_a_failure_for_programs(tmp_path: Path, bundle: Bundle) -> None:
    song("a.wav")
    done = run("a.wav", "missing.wav", "--json")
    told = [json.loads(line) for line in done.out.splitlines()]
    failed = [each for each in told if each.get("status") == "failed"]
    assert done.code == PARTIAL
    assert "missing.wav does not exist" in failed[0]["error"]
    assert done.err == ""


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_dry_run_writes_nothing(tmp_path: Path, bundle: Bundle, form: list[str]) -> None:
    song("music/a.wav")
    before = files(tmp_path, journals=True)
    done = run("music", "--dry-run", "--two-stems", "drums", "--flac", *form)
    assert done.code == DONE
    assert "separated/tiny/a/no_drums.flac" in done.out
    assert files(tmp_path, journals=True) == before


# --- settings ----------------------------------------------------------------------------------------------


def test_command_line_before_environment_before_file(tmp_path: Path, bundle: Bundle) -> None:
    song("s.wav")
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home/config.toml").write_text(
        '[run]\nout = "from-file"\nflac = true\nstems = ["drums"]\nclip-mode = "clamp"\nshifts = 1\n'
    )
    assert run("s.wav").code == DONE
    assert files(tmp_path / "from-file") == ["tiny/s/drums.flac"]
    assert run("s.wav", MRSEP_DEPLOY_RUN_OUT="from-environment", MRSEP_DEPLOY_RUN_STEMS="other").code == DONE
    assert files(tmp_path / "from-environment") == ["tiny/s/other.flac"]
    assert run("s.wav", "-o", "given", "--ogg", MRSEP_DEPLOY_RUN_OUT="from-environment").code == DONE
    assert files(tmp_path / "given") == ["tiny/s/drums.ogg"]


def test_another_settings_file(tmp_path: Path, bundle: Bundle) -> None:
    song("s.wav")
    (tmp_path / "mine.toml").write_text('[run]\nout = "mine"\n')
    assert Result("--config", tmp_path / "mine.toml", "run", "s.wav").code == DONE
    assert run("s.wav", "--stems", "drums", MRSEP_DEPLOY_CONFIG=str(tmp_path / "mine.toml")).code == DONE
    assert files(tmp_path / "mine") == stems("tiny/s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nloud = 1\n", "sets 'loud' in .run., which is no option of run"),
        ("[walk]\nout = 1\n", "has 'walk', expected sections"),
        ("out = 1\n", "has 'out', expected sections"),
        ("[run]\nflac = 'yes'\n", "expected true or false"),
        ("[run]\nout = {a = 1}\n", "expected a value"),
        ("[run\n", "are not TOML"),
        ("\xff", "are not TOML"),
        ("[run]\nclip-mode = 'loud'\n", "loud"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, bundle: Bundle, text: str, message: str) -> None:
    song("s.wav")
    (tmp_path / "mine.toml").write_bytes(text.encode("latin-1"))
    done = Result("--config", tmp_path / "mine.toml", "run", "s.wav")
    assert done.code == USAGE
    assert re.search(message, done.err), done.err


def test_a_settings_file_there_is_not(tmp_path: Path, bundle: Bundle) -> None:
    done = Result("--config", tmp_path / "nowhere.toml", "models")
    assert done.code == USAGE
    assert "nowhere.toml cannot be read" in done.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path: Path, bundle: Bundle, shell: str) -> None:
    done = Result("completion", shell)
    if shell == "bash" and done.code == USAGE:
        pytest.skip("this bash is too old")
    assert done.code == DONE
    assert "_MRSEP_DEPLOY_COMPLETE" in done.out
    environment = {
        "_MRSEP_DEPLOY_COMPLETE": "zsh_complete",
        "COMP_WORDS": "mrsep-deploy run -n ",
        "COMP_CWORD": "3",
    }
    asked = subprocess.run(
        [sys.executable, "-c", "from mrsep_deploy.commands.main import main; main(prog_name='mrsep-deploy')"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "tiny" in asked.stdout


# --- how fast


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_bar_shows_the_speed_of_its_own_song_from_its_own_begin(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    """By a clock on which a millisecond passes whenever it is asked."""
    clock = itertools.count()
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=lambda: next(clock) / 1000))
    shown: dict[str, list[tuple[float, float]]] = {}

    class Watched(reporting.Bars):
        def progress(self, track: Track, done: int, *more: Any) -> None:
            super().progress(track, done, *more)
            speed = float(self._bars.tasks[1].fields["speed"].split()[0])
            shown.setdefault(track.path.name, []).append((done / SAMPLE_RATE, speed))

    monkeypatch.setattr(reporting, "Bars", Watched)
    for name in ("a.wav", "b.wav", "c.wav"):
        song(name, frames=1000)
    assert run("a.wav", "b.wav", "c.wav", "-j", jobs).code == DONE
    assert list(shown) == ["a.wav", "b.wav", "c.wav"]
    for told in shown.values():
        assert len(told) > 3
        ticks = [seconds / speed * 1000 for seconds, speed in told]
        # The clock is asked at a song's begin and whenever it comes further; by a song that begins meanwhile, too.
        assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(ticks))
        assert 0.9 < ticks[0] < 9


# --- which model, and why


def test_the_first_line_says_which_model_and_why(tmp_path: Path, bundle: Bundle) -> None:
    song("s.wav")
    assert run("s.wav").err.startswith("tiny, exported last (drums, other; licence not stated) on ")
    registry.use("tiny")
    registry.register(tiny_bundle(tmp_path / "bundles", "later"))
    assert run("s.wav").err.startswith(
        "tiny, the default, chosen with models use (drums, other; licence not stated) on "
    )
    assert run("s.wav", "-n", "later").err.startswith("later (drums, other; licence not stated) on ")
    assert run("s.wav", "-n", bundle.path).err.startswith("tiny (drums, other; licence not stated) on ")
    for option in ("--quiet", "--json"):
        assert run("s.wav", option).err == ""


# --- wrong usage -------------------------------------------------------------------------------------------


@pytest.fixture
def two_songs(bundle: Bundle) -> None:
    song("s.wav")
    song("t.wav")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s.wav", "--flac", "--mp3"], "--flac and --mp3 exclude each other"),
        (["s.wav", "--flac", "--float32"], "FLAC holds 16 or 24 bits"),
        (["s.wav", "--mp3", "--int24"], "--int24 is not for --mp3"),
        (["s.wav", "--mp3", "--mp3-bitrate", "100"], "100 is none of 64, 80"),
        (["s.wav", "--stems", "voice"], "there is no stem voice. There are drums, other"),
        (["s.wav", "--stems", "drums,,other"], "is no list"),
        (["s.wav", "--two-stems", "voice"], "there is no stem voice. The model has drums, other"),
        (["s.wav", "-o", "-"], "stdout takes one stem, there are 2: drums, other"),
        (["s.wav", "t.wav", "-o", "-", "--stems", "drums"], "stdout takes one song, there are 2"),
        (["s.wav", "-o", "-", "--stems", "drums", "--json"], "--json would write too"),
        (["s.wav", "--no-split"], "graphs have one length"),
        (["s.wav", "--segment", "10"], "segment is 10 s; give more than 0 and at most 0.008"),
        (["s.wav", "--segment", "0"], "segment is 0 s; give more than 0 and at most 0.008"),
        (["s.wav", "--segment", "nan"], "segment is nan s; give more than 0 and at most 0.008"),
        (["s.wav", "--shifts", "-1"], "shifts"),
        (["s.wav", "--sample-rate", "fast"], "input, model or 1000"),
        (["s.wav", "--filename", "{song}"], "has {song}"),
        (["s.wav", "--filename", "{track}.{ext}"], "several stems of s.wav"),
        (["s.wav", "-d", "mps"], "there is no device 'mps'. Choose cpu, cuda"),
        (["s.wav", "-d", "cuda", "--engine", "ort"], "engine ort does not run on cuda"),
        (["s.wav", "-d", "cpu", "--engine", "trt"], "engine trt does not run on cpu"),
        (["-", "--stdin-raw", "44100:2"], "RATE:CHANNELS"),
        (["nothing/*.wav"], "no file matches"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(tmp_path: Path, two_songs: None, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.code == USAGE
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "separated").exists()


def test_a_segment_shorter_than_the_bundle_s(tmp_path: Path, bundle: Bundle) -> None:
    """48 of 64 samples: what is filled up is silence, and what comes out is as long as the song."""
    song("s.wav")
    assert run("s.wav", "--segment", "0.006", "--float32").code == DONE
    with Separator(bundle, segment=0.006) as separator:
        assert separator.segment_samples == 48
        assert separator.stride == 36
        expected = separator.separate(notes().astype(np.float32).T)
    for name in SOURCES:
        found = read(tmp_path / f"separated/tiny/s/{name}.wav")
        np.testing.assert_allclose(found, expected[name], atol=1e-6)
        assert found.shape == (CHANNELS, 3001)


def test_memory_holds_few_songs(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, at most as many are loaded as jobs allow ahead and behind."""
    alive = most = 0
    load = pipeline.load

    def counted(*arguments: Any) -> Any:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        loaded = load(*arguments)
        close = loaded.close

        def closed() -> None:
            nonlocal alive
            alive -= 1
            close()

        loaded.close = closed  # type: ignore[method-assign]
        return loaded

    monkeypatch.setattr(pipeline, "load", counted)
    for number in range(30):
        song(f"music/{number}.wav", 500)
    assert run("music", "-j", "3").code == DONE
    assert alive == 0
    assert most <= 3 + 2
