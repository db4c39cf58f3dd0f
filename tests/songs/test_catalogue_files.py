"""What is separated and where it goes: files, folders and patterns, names that stay apart and inside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.abandoned import sweep_parts
from mrsep_deploy.songs.journal import NAME, Journal, settings_digest
from mrsep_deploy.songs.naming import Naming, require_distinct
from mrsep_deploy.songs.stems import OtherMethod, Output, choose_outputs
from mrsep_deploy.songs.tracks import Track, find_tracks

SOURCES = ("drums", "bass", "other", "vocals")


@pytest.fixture
def music(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as people have them."""
    folder = tmp_path / "music"
    for name in (
        "b.wav",
        "A.FLAC",
        "cover.jpg",
        "._b.wav",
        "live/b.wav",
        "live/deep/c.mp3",
        ".trash/d.wav",
        "separated/tiny/b/drums.wav",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return folder


def names(tracks: Sequence[Track]) -> list[tuple[str, str]]:
    return [(os.path.relpath(track.path), track.name) for track in tracks]


# --- tracks ------------------------------------------------------------------------------------------------


def test_a_folder_is_the_audio_in_it(music: Path) -> None:
    assert names(find_tracks(["music"])) == [("music/A.FLAC", "A"), ("music/b.wav", "b")]


def test_recursively_without_the_stems_of_an_earlier_run(music: Path) -> None:
    """Folders inside show in the names, so what is called the same stays apart."""
    found = find_tracks(["music"], recursive=True, without=music / "separated")
    assert names(found) == [
        ("music/A.FLAC", "A"),
        ("music/b.wav", "b"),
        ("music/live/b.wav", "live/b"),
        ("music/live/deep/c.mp3", "live/deep/c"),
    ]
    again = find_tracks(["music/separated/tiny/b"], without=music / "separated")
    assert names(again) == [("music/separated/tiny/b/drums.wav", "drums")]


def test_patterns(music: Path) -> None:
    assert names(find_tracks(["music/*.wav"])) == [("music/b.wav", "b")]
    found = find_tracks(["music/**/*.wav"], without=music / "separated")
    assert names(found) == [("music/b.wav", "music/b"), ("music/live/b.wav", "live/b")]
    with pytest.raises(UsageError, match=r"no file matches music/\*\.aac"):
        find_tracks(["music/*.aac"])


def test_a_name_with_the_signs_of_a_pattern_is_a_file(music: Path) -> None:
    (music / "what [live]?.wav").write_bytes(b"x")
    assert names(find_tracks(["music/what [live]?.wav"])) == [("music/what [live]?.wav", "what [live]?")]


def test_a_file_is_taken_once_and_in_order(music: Path) -> None:
    found = find_tracks(["music/live/b.wav", "-", "music", str(music / "b.wav"), "missing.wav"])
    assert [str(track.path) for track in found] == [
        "music/live/b.wav",
        "-",
        "music/A.FLAC",
        "music/b.wav",
        "missing.wav",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [(["music/separated"], "holds no audio files.*--recursive"), (["-", "-"], "named twice")],
)
def test_nothing_to_separate(music: Path, given: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_tracks(given)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["x/s.wav", "y/s.wav"], ["x/s", "y/s"]),
        (["x/s.wav", "x/s.flac"], ["s.wav", "s.flac"]),
        (["x/s.wav", "x/s.flac", "y/s.wav"], ["x/s.wav", "x/s.flac", "y/s.wav"]),
        (["a/x/s.wav", "b/x/s.wav"], ["a/x/s", "b/x/s"]),
        (["x/s.wav", "x/t.wav", "y/s.wav"], ["x/s", "t", "y/s"]),
    ],
)
def test_names_that_are_the_same_get_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [track.name for track in find_tracks(files)] == expected


# --- stems -------------------------------------------------------------------------------------------------


def random_stems() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return random.standard_normal((4, 2, 50), np.float32), random.standard_normal((2, 50), np.float32)


def test_outputs_by_name() -> None:
    assert [output.name for output in choose_outputs(SOURCES)] == list(SOURCES)
    assert [output.name for output in choose_outputs(SOURCES, ["vocals", "bass"])] == ["bass", "vocals"]
    two = {m: [o.name for o in choose_outputs(SOURCES, (), "bass", m)] for m in get_args(OtherMethod)}
    assert two == {"add": ["bass", "no_bass"], "minus": ["bass", "minus_bass"], "none": ["bass"]}
    only = choose_outputs(SOURCES, ["no_bass"], "bass")
    assert [output.name for output in only] == ["no_bass"]


def test_outputs_are_what_their_names_say() -> None:
    stems, mix = random_stems()
    for index, output in enumerate(choose_outputs(SOURCES)):
        np.testing.assert_array_equal(output.make(stems, None), stems[index])
    added = choose_outputs(SOURCES, (), "bass", "add")[1].make(stems, None)
    np.testing.assert_allclose(added, stems.sum(axis=0) - stems[1], atol=1e-5)
    np.testing.assert_array_equal(
        choose_outputs(SOURCES, (), "bass", "minus")[1].make(stems, mix), mix - stems[1]
    )


@pytest.mark.parametrize(("stems", "two"), [(["voice"], None), (["drums"], "bass"), ([], "voice")])
def test_a_stem_there_is_not(stems: list[str], two: str | None) -> None:
    with pytest.raises(UsageError, match=r"there is no stem .*(drums|bass)"):
        choose_outputs(SOURCES, stems, two)


# --- naming ------------------------------------------------------------------------------------------------

TRACK = Track(Path("/music/Für Elise.m4a"), "Für Elise")
DRUMS = Output("drums", (0,))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{track}/{stem}.{ext}", "out/tiny/Für Elise/drums.wav"),
        ("{track} - {stem}.{ext}", "out/tiny/Für Elise - drums.wav"),
        ("{stem}/{track}.{trackext}.{ext}", "out/tiny/drums/Für Elise.m4a.wav"),
        ("{track}/{model} {stem}.{ext}", "out/Für Elise/tiny drums.wav"),
        ("{{{stem}}}.{ext}", "out/tiny/{drums}.wav"),
    ],
)
def test_templates(template: str, expected: str) -> None:
    assert Naming(Path("out"), "tiny", "wav", template).paths(TRACK, [DRUMS]) == [Path(expected)]


@pytest.mark.parametrize(
    "template",
    [
        *("{title}.{ext}", "{track.parent}/{stem}", "{track!r}", "{track:>200}", "{stem[0]}", "{}", "{0}"),
        *("/tmp/{stem}", "../{stem}", "a/../../{stem}", "{stem}/", "", "{stem", "stem}"),
    ],
)
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(UsageError, match="template"):
        Naming(Path("out"), "tiny", "wav", template)


@given(st.text(max_size=40))
def test_no_template_leads_out_of_the_folder(template: str) -> None:
    try:
        naming = Naming(Path("out"), "tiny", "wav", template)
    except UsageError:
        return
    path = os.path.normpath(naming.paths(TRACK, [DRUMS])[0])
    assert path.startswith("out" + os.sep) or "\0" in template


def test_files_that_would_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracks, outputs = find_tracks(["a.wav", "b.wav"]), choose_outputs(SOURCES)
    for template, message in (
        ("{track}.{ext}", "several stems of a.wav"),
        ("{stem}.{ext}", "a.wav and b.wav would be written to"),
        ("same", "would be written to"),
    ):
        with pytest.raises(UsageError, match=message):
            require_distinct(Naming(Path("out"), "tiny", "wav", template), tracks, outputs)


def test_a_song_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracks = find_tracks(["tiny/a.wav"])
    with pytest.raises(UsageError, match="one of the songs"):
        require_distinct(Naming(Path(), "tiny", "wav", "a.{ext}"), tracks, choose_outputs(SOURCES, ["drums"]))


# --- journal -----------------------------------------------------------------------------------------------


@pytest.fixture
def done(tmp_path: Path) -> tuple[Track, list[Path]]:
    """A song and its outputs."""
    (tmp_path / "song.wav").write_bytes(b"music")
    outputs = [tmp_path / "out" / f"{name}.wav" for name in ("a", "b")]
    outputs[0].parent.mkdir()
    for path in outputs:
        path.write_bytes(b"stem")
    return Track(tmp_path / "song.wav", "song"), outputs


def test_what_is_noted_is_done(tmp_path: Path, done: tuple[Track, list[Path]]) -> None:
    track, outputs = done
    journal = Journal(tmp_path / "out", "settings")
    assert not journal.is_done(track.path, outputs)
    journal.add(track.path, outputs)
    assert Journal(tmp_path / "out", "settings").is_done(track.path, outputs)
    assert not Journal(tmp_path / "out", "others").is_done(track.path, outputs)
    assert not Journal(tmp_path / "out", "settings").is_done(track.path, outputs[:1])


@pytest.mark.parametrize("what", ["song", "missing stem", "short stem", "missing song"])
def test_what_has_changed_is_not_done(tmp_path: Path, done: tuple[Track, list[Path]], what: str) -> None:
    track, outputs = done
    Journal(tmp_path / "out", "s").add(track.path, outputs)
    if what == "song":
        os.utime(track.path, (1, 1))
    elif what == "missing song":
        track.path.unlink()
    elif what == "missing stem":
        outputs[1].unlink()
    else:
        outputs[1].write_bytes(b"ste")
    assert not Journal(tmp_path / "out", "s").is_done(track.path, outputs)


def test_half_a_line_spoils_nothing(tmp_path: Path, done: tuple[Track, list[Path]]) -> None:
    """A kill may leave half a line at the end; what is written next is whole again."""
    track, outputs = done
    path = tmp_path / "out" / NAME
    Journal(tmp_path / "out", "s").add(track.path, outputs)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        # Of the last line only its end of line is missing: it says all it has to.
        assert Journal(tmp_path / "out", "s").is_done(track.path, outputs) == (cut == len(whole) - 1)
        Journal(tmp_path / "out", "s").add(track.path, outputs)
        assert Journal(tmp_path / "out", "s").is_done(track.path, outputs)


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_a_journal_of_anything_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("journal")
    (folder / NAME).write_bytes(
        b"\n".join([*lines, b'{"track": 1}', b"[]", b"[" * 100_000, b'{"track": "a"}'])
    )
    assert not Journal(folder, "s").is_done(folder / "a", [])


def test_two_runs_write_one_journal(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from mrsep_deploy.songs.journal import Journal
folder = Path(sys.argv[1])
journal = Journal(folder, "s")
for number in range(100):
    song = folder / f"{sys.argv[2]}{number}.wav"
    song.write_bytes(b"x")
    journal.add(song, [song])
"""
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "ab"]
    assert [run.wait(60) for run in runs] == [0, 0]
    journal = Journal(tmp_path, "s")
    for name in "ab":
        for number in range(100):
            song = tmp_path / f"{name}{number}.wav"
            assert journal.is_done(song, [song])


def test_settings_have_one_name_whatever_their_order() -> None:
    assert settings_digest({"a": 1, "b": None}) == settings_digest({"b": None, "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})


@pytest.mark.skipif(os.name == "nt", reason="there, asking whether a process lives would end it")
def test_parts_of_dead_processes_are_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [
        f".drums.wav.{dead.pid}.0123abcd.part",
        f".x.{dead.pid}.part",
        "drums.part",
        f".a.{os.getpid()}.0123abcd.part",
    ]
    for name in left:
        (tmp_path / name).write_bytes(b"x")
    assert sweep_parts([tmp_path, tmp_path / "nowhere"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left[1:])
