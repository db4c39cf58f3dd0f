"""Nothing is left out without a word: what is empty, unreadable, missing or a stem of an earlier run is said."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from bundles import SOURCES
from runs import run, song, stems, written

from mrsep_deploy.errors import DONE, FAILED, PARTIAL, USAGE
from mrsep_deploy.songs.journal import NAME
from mrsep_deploy.songs.tracks import find_tracks

_home, bundle = runs._home, runs.bundle
pytestmark = pytest.mark.usefixtures("bundle")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a song that this user may not look into; for root the system is told to say so."""
    folder = song("music/locked/b.wav").parent
    scandir = os.scandir

    def refusing(path: str | int) -> object:
        if not isinstance(path, int) and os.fspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    folder.chmod(0)
    yield folder
    folder.chmod(0o755)


@posix
@pytest.mark.parametrize("given", [["-r", "music"], ["music/**/*.wav"], ["-r", "music", "--json"]])
def test_a_folder_that_cannot_be_read(locked: Path, given: list[str]) -> None:
    song("music/a.wav")
    done = run(*given)
    assert done.code == PARTIAL, done.err
    reason = f"the folder {locked} cannot be read: Permission denied. Change its permissions"
    if "--json" in given:
        ended = [json.loads(line) for line in done.out.splitlines()]
        assert any(reason in str(each.get("error")) for each in ended)
    else:
        assert done.err.count(reason) == 1
    assert len(written("separated")) == len(SOURCES)


@posix
def test_only_a_folder_that_cannot_be_read(locked: Path) -> None:
    for given in (["-r", "music"], [str(locked)]):
        done = run(*given)
        assert (done.code, "cannot be read: Permission denied" in done.err) == (USAGE, True)


@pytest.mark.parametrize("form", [[], ["--json"], ["--dry-run"]])
def test_an_empty_argument_does_not_end_the_run(form: list[str]) -> None:
    song("a.wav")
    Path("empty").mkdir()
    done = run("empty", "a.wav", "*.flac", "--summary", "summary.json", *form)
    assert done.code == PARTIAL, done.err
    if form == ["--dry-run"]:
        assert len(done.out.splitlines()) == len(SOURCES)
    else:
        assert written("separated/tiny") == stems("a")
        told = {each["track"]: each for each in json.loads(Path("summary.json").read_text())["tracks"]}
        assert {name: each["status"] for name, each in told.items()} == {
            "a.wav": "done",
            "empty": "failed",
            "*.flac": "failed",
        }
        assert "holds no audio files" in told["empty"]["error"]
        assert "no file matches *.flac" in told["*.flac"]["error"]
    if form != ["--json"]:
        assert "mrsep-deploy: empty: empty holds no audio files. Name another folder" in done.err
        assert "no file matches *.flac" in done.err


def test_nothing_at_all_is_wrong_usage() -> None:
    Path("empty").mkdir()
    done = run("empty", "*.flac")
    assert done.code == USAGE
    assert done.err.count("\n") == 1
    assert "empty holds no audio files; no file matches *.flac" in done.err


def test_a_dry_run_says_what_is_missing() -> None:
    song("a.wav")
    Path("cut.wav").touch()
    done = run("a.wav", "missing.wav", "cut.wav", "--dry-run")
    assert done.code == PARTIAL
    assert len(done.out.splitlines()) == len(SOURCES)
    assert "mrsep-deploy: missing.wav: missing.wav does not exist. Check the path" in done.err
    assert "cut.wav is empty" in done.err
    assert run("missing.wav", "--dry-run").code == FAILED
    told = [json.loads(line) for line in run("missing.wav", "a.wav", "--dry-run", "--json").out.splitlines()]
    assert [each["event"] for each in told] == ["would fail", "would write"]
    assert run("a.wav", "--dry-run").code == DONE


def counted(*given: str) -> tuple[set[str], str]:
    """Songs that a run would separate, and what it says besides."""
    done = run(*given, "--dry-run", "--json")
    return {json.loads(line)["track"] for line in done.out.splitlines()}, done.err


@pytest.mark.parametrize("template", [[], ["--filename", "{track}.{stem}.{model}.{ext}"]])
@pytest.mark.parametrize("out", ["separated", "stems", "."])
def test_stems_of_an_earlier_run_are_no_songs(out: str, template: list[str]) -> None:
    """One song too, whose run used to write no journal; with stems in any folder, and into any other."""
    song("one.wav")
    song("album/two.wav")
    assert run("one.wav", "-o", out, *template).code == DONE
    for target in ("separated", "stems", "elsewhere", "."):
        songs, said = counted("-r", ".", "-o", target)
        assert songs == {"one.wav", "album/two.wav"}, target
        assert said.count(f"left out {len(SOURCES)} audio files in ") == 1, said
        assert ("stems go there" in said) or ("its journal names them as stems of earlier runs" in said)
    songs, said = counted("**/*.wav", "-o", "elsewhere")
    assert songs == {"one.wav", "album/two.wav"}
    assert "left out" not in run("-r", ".", "-o", "elsewhere", "-q", "--dry-run").err


def test_stems_that_are_named_are_songs() -> None:
    """A stem can be separated further: by its name, or by a pattern in the folder of stems."""
    song("one.wav")
    assert run("one.wav").code == DONE
    some = f"separated/tiny/one/{SOURCES[0]}.wav"
    assert counted(some)[0] == {some}
    assert counted(f"separated/tiny/*/{SOURCES[0]}.wav", "-o", "further")[0] == {some}
    assert counted("separated/tiny/one", "-o", "further")[0] == {
        f"separated/tiny/one/{s}.wav" for s in SOURCES
    }
    done = run("-r", "separated", "-o", "further")
    assert done.code == USAGE
    assert f"left out {len(SOURCES)} audio files in separated/tiny" in done.err


def test_an_output_folder_that_holds_the_songs_hides_none() -> None:
    song("music/deep/a.wav")
    song("music/b.wav")
    for out in ("music", ".", "music/deep/stems"):
        assert counted("-r", "music", "-o", out)[0] == {"music/b.wav", "music/deep/a.wav"}


@posix
def test_a_journal_that_is_no_file_hides_nothing() -> None:
    song("music/a.wav")
    os.mkfifo(Path("music", NAME))
    assert counted("-r", "music")[0] == {"music/a.wav"}


def test_a_journal_of_anything_hides_nothing_else() -> None:
    song("music/a.wav")
    for text in (
        '{"track": "x", "outputs": ["a.wav"]}\n',
        "[]",
        '{"track": "x", "outputs": {"../a.wav": 1}}\n',
    ):
        Path("music", NAME).write_text(text)
        assert [track.name for track in find_tracks(["music"])] == ["a"]
    shutil.rmtree("music")


def test_a_run_to_stdout_names_what_is_empty() -> None:
    song("a.wav")
    Path("empty").mkdir()
    done = run("a.wav", "empty", "-o", "-", "--stems", SOURCES[0])
    assert (done.code, "empty holds no audio files" in done.err) == (USAGE, True)


def test_a_name_that_no_file_can_have() -> None:
    """A shell cannot pass one, a program can."""
    song("a.wav")
    for given in ("a\0b.wav", "a\0*.wav"):
        done = run("a.wav", given)
        assert (done.code, "holds a NUL character" in done.err) == (USAGE, True)
