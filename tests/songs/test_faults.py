"""What goes wrong around a run: disks, names, links, signals, other runs. No half files, no lost work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from bundles import SAMPLE_RATE, SOURCES
from runs import NOWHERE, PROGRAM, process, run, song, stems, written

from mrsep_deploy.audio.write import StemWriter
from mrsep_deploy.bundle import Bundle, write_archive
from mrsep_deploy.commands import run as run_module
from mrsep_deploy.devices.interface import Tensors
from mrsep_deploy.engines.onnxruntime import OrtRunner
from mrsep_deploy.errors import DONE, FAILED, PARTIAL, USAGE, DeviceLostError, OutputError
from mrsep_deploy.files import abandoned
from mrsep_deploy.files.abandoned import sweep_parts
from mrsep_deploy.songs import journal, writing
from mrsep_deploy.songs.writing import SongWriter

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
_home, bundle, no_engine = runs._home, runs.bundle, runs.no_engine
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux")


# --- being ended -------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_ended_in_the_middle(tmp_path: Path, bundle: Bundle, name: str, code: int) -> None:
    """Finished songs stay, parts go, the summary is written and says so."""
    song("one.wav")
    song("two.wav", 5_000_000)
    song("three.wav")
    command = [*PROGRAM, "run", "one.wav", "two.wav", "three.wav", "--json", "--summary", "summary.json"]
    second = tmp_path / "separated/tiny/two"
    with open("told", "w+") as told:
        started = subprocess.Popen(command, stdout=told, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not (second.is_dir() and any(part.stat().st_size > 200_000 for part in second.iterdir())):
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started.send_signal(getattr(signal, name))
        _, errors = started.communicate(timeout=120)
    assert started.returncode == code
    assert "Traceback" not in errors
    assert written("separated/tiny") == stems("one")
    assert not second.exists()
    summary = json.loads(Path("summary.json").read_text())
    assert summary["interrupted"] is True
    assert {each["track"]: each["status"] for each in summary["tracks"]} == {
        "one.wav": "done",
        "two.wav": "unfinished",
        "three.wav": "unfinished",
    }
    last = json.loads(Path("told").read_text().splitlines()[-1])
    assert (last["event"], last["done"], last["unfinished"]) == ("summary", 1, 2)


def test_ended_while_the_engine_starts(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_separator", opened)
    song("s.wav")
    song("missing.wav").unlink()
    assert run("missing.wav", "--summary", "summary.json").code == FAILED
    assert run("s.wav", "--summary", "summary.json").code == 130
    summary = json.loads(Path("summary.json").read_text())
    assert (summary["interrupted"], summary["unfinished"]) == (True, 1)


def test_a_gpu_that_is_lost_ends_the_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has all its stems is written and noted down, the others are not tried; a later run goes on from there."""
    names = [song(f"{number}.wav", seed=number).name for number in range(12)]
    runs, real = 0, OrtRunner.__call__

    def run_or_lose(self: OrtRunner, tensors: Tensors) -> None:
        nonlocal runs
        runs += 1
        if runs > 500:
            raise DeviceLostError("CUDA failed: an illegal memory access was encountered", "Start it again")
        real(self, tensors)

    monkeypatch.setattr(OrtRunner, "__call__", run_or_lose)
    lost = run(*names, "--summary", "summary.json")
    assert lost.code == FAILED
    assert "an illegal memory access was encountered. Start it again" in lost.err
    assert runs < 510, "a thousand songs would be read, to fail"
    summary = json.loads(Path("summary.json").read_text())
    done = [each["track"] for each in summary["tracks"] if each["status"] == "done"]
    assert 0 < len(done) == 12 - summary["unfinished"]
    assert written("separated/tiny") == stems(*(Path(name).stem for name in done))
    monkeypatch.setattr(OrtRunner, "__call__", real)
    rest = run(*names, "--resume")
    assert rest.code == DONE
    assert rest.err.count("done already") + rest.out.count("done already") == len(done)


# --- songs that are none -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("bundle", "no_engine")
def test_a_missing_file_is_said_before_anything_starts() -> None:
    done = run("nosuch.wav", "--summary", "summary.json")
    assert done.code == FAILED
    assert done.out == ""
    assert done.err == "mrsep-deploy: error: nosuch.wav does not exist. Check the path\n"
    assert json.loads(Path("summary.json").read_text())["tracks"][0]["status"] == "failed"


@pytest.mark.usefixtures("bundle", "no_engine")
def test_several_missing_files() -> None:
    done = run("a.wav", "b.wav", "--json")
    assert done.code == FAILED
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [each["event"] for each in told] == ["begin", "ended", "ended", "summary"]
    assert told[0]["engine"] is None
    assert "2 of 2 failed" in run("a.wav", "b.wav").err


@pytest.mark.usefixtures("bundle")
def test_a_failing_song_leaves_no_blank_lines() -> None:
    Path("bad.wav").write_text("no audio at all")
    done = run("bad.wav")
    assert done.code == FAILED
    assert all(line.strip() for line in (done.out + done.err).splitlines()), done.err


@pytest.mark.usefixtures("bundle")
def test_names_say_nothing_about_what_is_in_a_file() -> None:
    song("music/a.wav").rename("music/wav-called.mp3")
    song("music/b.flac").rename("music/flac-called.wav")
    song("music/whole.wav", 20_000)
    for name, source in (("cut.wav", "music/whole.wav"), ("cut.flac", "music/flac-called.wav")):
        data = Path(source).read_bytes()
        Path("music", name).write_bytes(data[: len(data) // 2])
    Path("music/text.wav").write_text("a text")
    Path("music/empty.flac").touch()
    Path("music/folder.wav").mkdir()
    done = run("music", "--summary", "summary.json")
    assert done.code == PARTIAL
    told = {
        Path(each["track"]).name: each["status"]
        for each in json.loads(Path("summary.json").read_text())["tracks"]
    }
    assert told == {
        **dict.fromkeys(("wav-called.mp3", "flac-called.wav", "whole.wav"), "done"),
        **dict.fromkeys(("cut.wav", "cut.flac", "text.wav", "empty.flac"), "failed"),
    }


# --- disks -------------------------------------------------------------------------------------------------


@posix
def test_a_file_that_may_not_grow(tmp_path: Path, bundle: Bundle) -> None:
    """As on a disk that is full: the song that does not fit fails and leaves nothing, the others are whole."""
    import resource

    song("music/a.wav", 2000, 1)
    song("music/b.wav", 200_000, 2)
    song("music/c.wav", 2000, 3)
    limit = 100_000
    done = process(
        "music",
        "--summary",
        "summary.json",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == PARTIAL
    assert written("separated/tiny") == stems("a", "c")
    assert "music/b.wav" in done.stderr
    assert "cannot be written" in done.stderr


@posix
def test_a_pipe_that_does_not_fit(tmp_path: Path, bundle: Bundle) -> None:
    import resource

    with open(song("s.wav", 200_000), "rb") as file:
        done = process(
            "-",
            stdin=file,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )
    assert done.returncode == FAILED
    assert "stdin.wav cannot be written: File too large" in done.stderr
    assert not Path("separated").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 kB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@linux
@pytest.mark.parametrize("form", ["--float32", "--flac", "--mp3", "--ogg"])
def test_a_full_disk(small_disk: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """It fills while songs are separated: what had looked free before has been taken by somebody else."""
    song("music/a.wav", 2000, 1)
    song("music/b.wav", 300_000, 2)
    song("music/c.wav", 2000, 3)
    with monkeypatch.context() as changed:
        changed.setattr(writing, "_free_bytes", lambda folder: None)
        done = run("music", "-o", small_disk, form)
    assert done.code == PARTIAL
    assert "music/b.wav: no space left for" in done.err
    tracks = {name.split("/")[1] for name in written(small_disk)}
    assert tracks == {"a", "c"}
    assert not any(name.endswith(".part") for name in written(small_disk))
    assert "the stems need" in run("music/b.wav", "-o", small_disk, form).err


@linux
def test_a_full_stdout(bundle: Bundle) -> None:
    song("s.wav")
    with open("/dev/full", "wb") as full:
        done = process(
            "s.wav", "-o", "-", "--stems", "drums", stdout=full, stderr=subprocess.PIPE, capture_output=False
        )
    assert done.returncode == FAILED
    assert "stdout cannot be written: no space left" in done.stderr


def test_a_journal_that_does_not_fit(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line is no line: the song counts as failed, is done again, and the next line stands by itself."""
    for name in "abc":
        song(f"music/{name}.wav")
    write, calls = os.write, []

    def half(descriptor: int, data: bytes) -> int:
        calls.append(data)
        return write(descriptor, data[: len(data) // 2] if len(calls) == 2 else data)

    with monkeypatch.context() as changed:
        changed.setattr(journal.os, "write", half)
        done = run("music", "-j", "1")
    assert done.code == PARTIAL
    assert "No space left on device" in done.err
    assert "1 done, 2 skipped" in run("music", "--resume").err


def test_the_output_folder_vanishes(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcde":
        song(f"music/{name}.wav")
    flush = SongWriter.flush

    def vanishing(self: SongWriter) -> None:
        if self.paths[0].parent.name == "c":
            shutil.rmtree(tmp_path / "separated")
        flush(self)

    with monkeypatch.context() as changed:
        changed.setattr(SongWriter, "flush", vanishing)
        done = run("music", "-j", "1")
    assert done.code == PARTIAL
    assert "music/c.wav" in done.err
    assert {"d", "e"} <= {Path(name).parts[0] for name in written("separated/tiny")}
    assert "3 done, 2 skipped" in run("music", "--resume").err


# --- names and links ---------------------------------------------------------------------------------------


NAMES = [
    *("песня ♫ 歌.wav", "-i.wav", " spaces .wav", "a;b&c$(d).wav", "100%.wav", "{track}.wav", "[x].wav"),
    *("x" * 251 + ".wav", "é" * 125 + ".wav", "e\u0301.wav", "\u202etxt.wav"),
]


@posix
def test_odd_names(tmp_path: Path, bundle: Bundle) -> None:
    names = [*NAMES, "new\nline.wav", "\x1b[31mred.wav", "tab\t.wav", os.fsdecode(b"latin-\xe9.wav")]
    try:
        for number, name in enumerate(names):
            song("music/plain.wav", seed=number).rename(Path("music", name))
    except OSError:
        pytest.skip("this file system has other names")
    done = run("music", "--summary", "summary.json", "--json")
    assert done.code == DONE, done.err
    assert len(written("separated/tiny")) == len(SOURCES) * len(names)
    told = [json.loads(line) for line in done.out.splitlines()]
    assert {Path(each["track"]).name for each in told if each["event"] == "ended"} == set(names)
    assert json.loads(Path("summary.json").read_text())["done"] == len(names)
    again = run("music", "--resume")
    assert f"{len(names)} skipped" in again.err
    assert r"\x1b[31mred" in again.out
    assert not {"\x1b", "\n\n", "\u202e"} & set(again.out)


def test_a_name_that_becomes_too_long(bundle: Bundle) -> None:
    song("x" * 240 + ".wav")
    song("short.wav")
    done = run("short.wav", "x" * 240 + ".wav", "--filename", "{track} of {model} as {stem}.{ext}")
    assert done.code == PARTIAL
    assert "File name too long" in done.err
    assert len(written("separated")) == len(SOURCES)


@posix
def test_links(tmp_path: Path, bundle: Bundle) -> None:
    song("elsewhere/real.wav")
    Path("music/deep").mkdir(parents=True)
    song("music/a.wav")
    song("music/deep/b.wav")
    Path("music/link.wav").symlink_to(tmp_path / "elsewhere/real.wav")
    Path("music/self.wav").symlink_to("self.wav")
    Path("music/dangling.wav").symlink_to("nothing.wav")
    Path("music/deep/up").symlink_to("..")
    Path("music/round").symlink_to("round")
    done = run("-r", "music", "-o", "one", "--summary", "summary.json")
    assert done.code == PARTIAL
    told = {each["track"]: each["status"] for each in json.loads(Path("summary.json").read_text())["tracks"]}
    assert told == {
        **dict.fromkeys(("music/a.wav", "music/link.wav", "music/deep/b.wav"), "done"),
        **dict.fromkeys(("music/self.wav", "music/dangling.wav"), "failed"),
    }
    plan = run("music/**/[ab].wav", "--dry-run").out.splitlines()
    assert len(plan) == 2 * len(SOURCES), "a loop of folders gives every file once"


@posix
def test_stems_never_go_through_a_link_to_a_song(tmp_path: Path, bundle: Bundle) -> None:
    track = song("music/a.wav")
    before = track.read_bytes()
    Path("out/tiny/a").mkdir(parents=True)
    Path("out/tiny/a/drums.wav").symlink_to(track.resolve())
    done = run("music", "-o", "out")
    assert done.code == USAGE
    assert "is one of the songs to separate" in done.err
    Path("to-music").symlink_to("music")
    assert run("music", "-o", "to-music", "--filename", "{track}.{ext}", "--stems", "drums").code == DONE
    assert written("music") == ["a.wav", "tiny/a.wav"]
    assert track.read_bytes() == before


@posix
def test_an_output_folder_that_is_a_loop(bundle: Bundle) -> None:
    song("s.wav")
    Path("loop").symlink_to("loop")
    done = run("s.wav", "-o", "loop")
    assert done.code == FAILED
    assert "loop" in done.err
    Path("file").touch()
    assert "file" in run("s.wav", "-o", "file").err


# --- other runs --------------------------------------------------------------------------------------------


def test_two_runs_into_one_folder(tmp_path: Path, bundle: Bundle) -> None:
    """Each song is done by one or both, and whole; neither takes the other's parts for garbage."""
    for number in range(8):
        song(f"music/{number}.wav", 3000, number)
    assert run("music", "-o", "expected").code == DONE
    command = [*PROGRAM, "run", "music", "-o", "out", "--resume", "--engine", "ort", "--threads", "1"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate(timeout=120)[1] for each in both]
    assert [each.returncode for each in both] == [DONE, DONE], said
    assert written("out") == written("expected")
    for name in written("out"):
        assert Path("out", name).read_bytes() == Path("expected", name).read_bytes()
    assert "8 skipped" in run("music", "-o", "out", "--resume").err


@posix
def test_only_what_nobody_writes_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    writer = StemWriter(tmp_path / "a.wav", SAMPLE_RATE, 2)
    left = tmp_path / f".b.wav.{dead.pid}.0123abcd.part"
    kept = tmp_path / f".c.wav.{dead.pid}.0123abcd.part"
    old = tmp_path / f".d.wav.{os.getpid()}.0123abcd.part"  # the number has been given out again
    for path in (left, kept, old):
        path.touch()
    os.utime(old, (0, 0))
    with open(kept, "rb") as file:  # as another machine's, or another container's
        abandoned.lock(file)
        assert sweep_parts([tmp_path]) == 2
    assert sorted(path.name for path in tmp_path.glob(".*.part")) == sorted(
        [kept.name, writer._parts[0].name]
    )
    writer.abort()
    assert sweep_parts([tmp_path]) == 1


# --- homes and caches --------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    "environment",
    [{"MRSEP_DEPLOY_HOME": NOWHERE}, {"HOME": NOWHERE}, {"HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE}],
    ids=["read-only", "no home", "no cache"],
)
def test_without_a_place_for_caches(
    tmp_path: Path, bundle: Bundle, form: str, environment: dict[str, str]
) -> None:
    """A bundle given by its path needs none, neither home nor cache: an archive is unpacked for this run alone."""
    song("s.wav")
    path = bundle.path if form == "folder" else write_archive(bundle, "tiny.zip")
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "MRSEP_DEPLOY_HOME")}
    done = process("s.wav", "-n", str(path), "-o", "out", env={**kept, **environment})
    assert done.returncode == DONE, done.stderr
    assert written("out/tiny") == stems("s")
    assert "telemetry" not in done.stderr


@posix
def test_a_name_without_a_home(bundle: Bundle) -> None:
    song("s.wav")
    done = process("s.wav", "-n", "tiny", env={**os.environ, "MRSEP_DEPLOY_HOME": NOWHERE})
    assert done.returncode == FAILED
    assert len(done.stderr.splitlines()) == 1
    assert "registry.json cannot be read" in done.stderr


# --- what is on the disk when --------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(
    "form", [[], ["--int24"], ["--float32", "--clip-mode", "none"], ["--flac"], ["--mp3"]]
)
def test_files_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    """The samples, then the name, then the folders' entries, then the journal's line."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_replace(source: Any, target: Any, **folders: int) -> None:
        folder = os.readlink(f"/proc/self/fd/{folders['src_dir_fd']}")
        events.append(("name", f"{folder}/{source} {folder}/{target}"))
        replace(source, target, **folders)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    song("music/live/a.wav")
    song("music/live/b.wav")
    assert run("-r", "music", *form, "-j", "1").code == DONE
    out = tmp_path / "separated/tiny"
    names = [text.split(" ") for kind, text in events if kind == "name"]
    assert len(names) == 2 * len(SOURCES)
    for part, target in names:
        at = events.index(("name", f"{part} {target}"))
        assert ("sync", part) in events[:at], "its samples first"
        folder = events.index(("sync", str(Path(target).parent)), at)
        assert folder > at
        book = events.index(("sync", str(out / journal.NAME)), folder)
        assert book > folder
        made = [Path(target).parent.parent, out, tmp_path / "separated", tmp_path]
        assert {("sync", str(each)) for each in made} <= set(events[:book]), "and the folders that were made"


def test_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime reports its use to its makers unless it is told not to before it is imported."""
    program = "import mrsep_deploy, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in ((None, "1"), ("0", "0")):
        if given is None:
            monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        else:
            monkeypatch.setenv("ORT_DISABLE_TELEMETRY", given)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_a_summary_that_cannot_be_written(bundle: Bundle) -> None:
    song("s.wav")
    done = run("s.wav", "--summary", "nowhere/summary.json")
    assert done.code == FAILED
    assert "nowhere/summary.json cannot be written" in done.err
    assert not Path("separated").exists(), "it is found before anything is separated"


def test_an_error_of_the_disk_says_what_to_do(tmp_path: Path) -> None:
    writer = StemWriter(tmp_path / "gone/a.wav", SAMPLE_RATE, 2)
    writer.write(np.zeros((2, 100), np.float32))
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"cannot be written: No such file.* Choose another place"):
        writer.close()
