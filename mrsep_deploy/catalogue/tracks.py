"""What was asked for, as a list of files: files as they are, folders and patterns as what they hold."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mrsep_deploy.errors import UsageError

AUDIO_SUFFIXES = frozenset(
    {
        *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf"),
        *(".w64", ".rf64", ".au", ".m4a", ".aac", ".wma", ".alac", ".ape", ".wv"),
    }
)
"""What is taken out of a folder. A file that is named is tried whatever it is called."""

STDIN = Path("-")
MAX_PARENTS = 8


@dataclass(frozen=True)
class Track:
    """One song to separate.

    Attributes:
        path: the file, or ``-`` for what comes through stdin.
        name: what its outputs are called by: the file's name without suffix, below the folder that was asked for
            (``live/song``); parts are separated by ``/``.
    """

    path: Path
    name: str

    @property
    def is_stdin(self) -> bool:
        return self.path == STDIN

    @property
    def extension(self) -> str:
        """Of the file, without the dot."""
        return "wav" if self.is_stdin else self.path.suffix.lstrip(".")


def find_tracks(given: Sequence[str], recursive: bool = False, without: Path | None = None) -> list[Track]:
    """Every file that was asked for, once, in order, each with a name of its own.

    Args:
        given: files, folders, patterns such as ``music/**/*.flac``, ``-`` for stdin.
        recursive: take what is in the folders of folders too.
        without: a folder to leave out wherever it turns up: the one that stems go to.

    Raises:
        UsageError: a folder or a pattern holds no audio, stdin is named twice, or names cannot be kept apart.
    """
    found: dict[str, Track] = {}
    for argument in given:
        for track in _expanded(argument, recursive, without):
            if track.is_stdin and "-" in found:
                raise UsageError("stdin (-) is named twice", "It can be read once.")
            found.setdefault("-" if track.is_stdin else os.path.abspath(track.path), track)
    return _kept_apart(list(found.values()))


def _expanded(argument: str, recursive: bool, without: Path | None) -> Iterator[Track]:
    if argument == "-":
        yield Track(STDIN, "stdin")
        return
    path = Path(argument)
    if os.path.isdir(path):
        yield from _in_folder(path, recursive, without)
    elif not os.path.lexists(path) and glob.has_magic(argument):
        matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True), key=_depth_first)]
        # ** goes through links to folders, in a loop of them as often as the system lets it
        places = {os.path.realpath(match): match for match in reversed(matches)}
        files = [match for match in places.values() if match.is_file() and not _is_inside(match, without)]
        files.sort()
        if not files:
            raise UsageError(
                f"no file matches {argument}", "Check the pattern; quotes keep it from the shell."
            )
        yield from (Track(file, _stem(file)) for file in files)
    else:
        yield Track(path, _stem(path))


def _depth_first(path: str) -> tuple[int, str]:
    return path.count(os.sep), path


def _in_folder(folder: Path, recursive: bool, without: Path | None) -> Iterator[Track]:
    files = sorted(_files_of(folder, recursive, without))
    if not files:
        deeper = "" if recursive else "; --recursive looks in its folders too"
        raise UsageError(f"{folder} holds no audio files", f"Name another folder, or files{deeper}.")
    for file in files:
        below = file.relative_to(folder).parent
        yield Track(file, (below / _stem(file)).as_posix())


def _files_of(folder: Path, recursive: bool, without: Path | None) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if recursive and not name.startswith(".") and not _is_inside(Path(place, name), without)
        ]
        for name in files:
            # hidden files are what systems leave beside the real ones, as ._song.mp3
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(place, name)


def _is_inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _stem(path: Path) -> str:
    """The file's name without suffix. ``...wav`` has the stem ``..``, which must not lead out of a folder."""
    return path.stem if path.stem.strip(".") else path.name.replace(".", "_")


def same_place(path: str) -> str:
    """A key that is equal for names that are one file here."""
    return os.path.normcase(path).casefold() if sys.platform in ("win32", "darwin") else path


def _kept_apart(tracks: list[Track]) -> list[Track]:
    """Tracks whose names are the same get longer ones: with the folder they lie in, or with their suffix."""
    groups: dict[str, list[Track]] = {}
    for track in tracks:
        groups.setdefault(same_place(track.name), []).append(track)
    renamed = {
        track: name
        for group in groups.values()
        if len(group) > 1
        for track, name in zip(group, _longer_names(group), strict=True)
    }
    return [replace(track, name=renamed.get(track, track.name)) for track in tracks]


def _longer_names(group: list[Track]) -> list[str]:
    for parents in range(1, MAX_PARENTS):
        ways: tuple[Callable[[Track], str], ...] = (
            lambda track, n=parents: _with_parents(track, n, _stem(track.path)),  # type: ignore[misc]
            lambda track, n=parents - 1: _with_parents(track, n, track.path.name),  # type: ignore[misc]
            lambda track, n=parents: _with_parents(track, n, track.path.name),  # type: ignore[misc]
        )
        for way in ways:
            names = [way(track) for track in group]
            if len({same_place(name) for name in names}) == len(names):
                return names
    raise UsageError(
        f"{group[0].path} and {group[1].path} would be written to the same place",
        "Rename one, or separate it in a run of its own with -o DIR.",
    )


def _with_parents(track: Track, count: int, name: str) -> str:
    if track.is_stdin:
        return "stdin"
    folders = Path(os.path.abspath(track.path)).parent.parts[1:]
    return "/".join((*(folders[-count:] if count else ()), name))
