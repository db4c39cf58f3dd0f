"""Stems never leave the output folder: whatever links lie in it, and whenever they are put there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runs
from runs import run, song, written

from mrsep_deploy.audio.compress import flac, mp3, ogg
from mrsep_deploy.audio.encode import WAV_16
from mrsep_deploy.audio.write import AnyEncoding, StemWriter
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import DONE, FAILED, OutputError
from mrsep_deploy.files import open_folder
from mrsep_deploy.files.abandoned import sweep_parts
from mrsep_deploy.files.open_folder import OpenFolder
from mrsep_deploy.songs import journal
from mrsep_deploy.songs.naming import Naming
from mrsep_deploy.songs.stems import Output
from mrsep_deploy.songs.tracks import Track

_home, bundle = runs._home, runs.bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
ENCODINGS = pytest.mark.parametrize(
    "encoding", [WAV_16, flac(), mp3(), ogg()], ids=["wav", "flac", "mp3", "ogg"]
)


@pytest.fixture(params=["relative", "by name"])
def manner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With calls relative to an open folder, and as on systems without them."""
    if request.param == "by name":
        monkeypatch.setattr(open_folder, "RELATIVE", False)
    return str(request.param)


def samples() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full((2, 4000), 0.5, np.float32)


@pytest.mark.usefixtures("manner")
def test_a_link_in_a_stem_s_place_is_replaced(tmp_path: Path, bundle: Bundle) -> None:
    song("s.wav")
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    Path("out/tiny/s").mkdir(parents=True)
    Path("out/tiny/s/drums.wav").symlink_to(victim)
    Path("out/tiny/s/other.wav").symlink_to(tmp_path / "not there yet")
    assert run("s.wav", "-o", "out").code == DONE
    assert victim.read_text() == "precious"
    assert not (tmp_path / "not there yet").exists()
    assert all(path.is_file() and not path.is_symlink() for path in Path("out/tiny/s").iterdir())


@pytest.mark.usefixtures("manner")
@pytest.mark.parametrize("linked", ["out/tiny", "out/tiny/s"])
def test_a_linked_folder_below_the_output_folder_is_refused(
    tmp_path: Path, bundle: Bundle, linked: str
) -> None:
    song("s.wav")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path(linked).parent.mkdir(parents=True)
    Path(linked).symlink_to(elsewhere)
    done = run("s.wav", "-o", "out")
    assert done.code == FAILED
    assert f"{linked} is a link, expected a folder: files never leave the output folder" in done.err
    assert done.err.count(" is a link") == 1
    assert list(elsewhere.iterdir()) == []
    assert run("s.wav", "-o", linked).code == DONE, "the folder that the user names may be a link"
    assert len(written(elsewhere)) == 2


@ENCODINGS
def test_a_folder_exchanged_for_a_link_while_a_stem_is_written(tmp_path: Path, encoding: AnyEncoding) -> None:
    """What is open stays open: the stem goes where its folder has gone, never behind the link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = tmp_path / "out/song/a.wav"
    stem = StemWriter(path, 44100, 2, encoding, root=tmp_path / "out")
    stem.write(samples())
    path.parent.rename(tmp_path / "out/moved")
    path.parent.symlink_to(elsewhere)
    stem.close()
    assert list(elsewhere.iterdir()) == []
    assert [file.name for file in (tmp_path / "out/moved").iterdir()] == ["a.wav"]


@pytest.mark.usefixtures("manner")
def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    """A song without a suffix makes two dots of a template."""
    naming = Naming(tmp_path / "out", "tiny", "wav", "{trackext}.{trackext}./{trackext}.{trackext}./{stem}")
    (path,) = naming.paths(Track(Path("song"), "song"), [Output("drums", (0,))])
    with pytest.raises(OutputError, match="leads out of the output folder"):
        StemWriter(path, 44100, 2, root=naming.root)
    assert list(tmp_path.iterdir()) == []


def linked(path: Path) -> None:
    (path.parent.parent / "victim").write_text("precious\n")
    path.symlink_to("../victim")


@pytest.mark.parametrize("make", [linked, os.mkfifo, os.mkdir], ids=["link", "pipe", "folder"])
@pytest.mark.usefixtures("manner")
def test_a_journal_that_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "song.wav").write_bytes(b"music")
    before = journal.Journal(folder, "settings")
    make(folder / journal.NAME)
    with pytest.raises(OutputError, match="expected a regular file"):
        before.add(tmp_path / "song.wav", [])
    with pytest.raises(OutputError, match="expected a regular file"):
        journal.Journal(folder, "settings")
    if make is linked:
        assert (tmp_path / "victim").read_text() == "precious\n"


def test_a_pipe_as_journal_ends_a_run_in_one_line(tmp_path: Path, bundle: Bundle) -> None:
    song("s.wav")
    Path("separated/tiny").mkdir(parents=True)
    os.mkfifo(Path("separated/tiny", journal.NAME))
    command = [sys.executable, "-m", "mrsep_deploy", "run", "s.wav", "--resume", "--engine", "ort"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, said = started.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        started.send_signal(signal.SIGKILL)
        started.wait()
        raise
    assert started.returncode == FAILED
    assert said.count("\n") == 1, said
    assert f"{journal.NAME} is a pipe or a device, expected a regular file" in said


@pytest.mark.usefixtures("manner")
def test_parts_are_swept_behind_no_link(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = f".b.wav.{dead.pid}.0123abcd.part"
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "out/song").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / name).touch()
    (tmp_path / "out/linked").symlink_to(elsewhere)
    (tmp_path / "out/song" / name).touch()
    os.mkfifo(tmp_path / "out/song" / name.replace("b", "c", 1))
    (tmp_path / "out/song" / name.replace("b", "d", 1)).symlink_to(elsewhere / name)
    root = tmp_path / "out"
    assert sweep_parts([root / "song", root / "linked"], root) == 1
    assert (elsewhere / name).exists()
    assert not (root / "song" / name).exists()


@pytest.mark.usefixtures("manner")
def test_an_open_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OpenFolder(tmp_path / "a/b", tmp_path, make=False)
    with OpenFolder(tmp_path / "a/b", tmp_path) as folder:
        with open(folder.path / "x", "xb", opener=folder.opener) as file:
            file.write(b"1")
        folder.replace("x", "y")
        assert [name for name, _ in folder.files()] == ["y"]
        folder.unlink("y")
        with pytest.raises(ValueError, match="no name of a file"):
            folder.unlink("../b")
    folder.close()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        OpenFolder(tmp_path / "file/b", tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_no_descriptors_are_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for encoding in (WAV_16, flac()):
        with StemWriter(tmp_path / "a/b.wav", 44100, 2, encoding, root=tmp_path) as stem:
            stem.write(samples())
        StemWriter(tmp_path / "a/c.wav", 44100, 2, encoding).abort()
    with pytest.raises(OutputError):
        StemWriter(tmp_path / "a", 44100, 2)
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError):
        StemWriter(tmp_path / "linked/c.wav", 44100, 2, root=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
