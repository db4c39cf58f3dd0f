"""What was asked for, as a list of files: files as they are, folders and patterns as what they hold."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mrsep_deploy.errors import UsageError
from mrsep_deploy.songs.journal import noted_outputs
from mrsep_deploy.songs.track import STDIN, Track

AUDIO_SUFFIXES = frozenset(
    {
        *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf"),
        *(".w64", ".rf64", ".au", ".m4a", ".aac", ".wma", ".alac", ".ape", ".wv"),
    }
)
"""What is taken out of a folder. A file that is named is tried whatever it is called."""

MAX_PARENTS = 8


def find_tracks(
    given: Sequence[str],
    recursive: bool = False,
    without: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Track]:
    """Every file that was asked for, once, in order, each with a name of its own.

    Stems of earlier runs are left out of folders, and of patterns that do not name their folder: what lies in
    ``without``, and what a journal on the way to it names. A folder or a pattern without audio, and a folder that
    cannot be read, is a track with a ``problem``.

    Args:
        given: files, folders, patterns such as ``music/**/*.flac``, ``-`` for stdin.
        recursive: take what is in the folders of folders too.
        without: the folder that stems go to; what is named in it is taken.
        say: told what was left out, a line a reason.

    Raises:
        UsageError: there is no audio at all, stdin is named twice, a name holds NUL, or names cannot be kept apart.
    """
    found: dict[str, Track] = {}
    search = _Search(recursive, without)
    for argument in given:
        for track in _expanded(argument, search):
            if track.is_stdin and "-" in found:
                raise UsageError("stdin (-) is named twice", "It can be read once.")
            found.setdefault("-" if track.is_stdin else os.path.abspath(track.path), track)
    for line in search.left_out():
        say(line)
    problems = [track.problem for track in found.values() if track.problem is not None]
    if len(problems) == len(found):
        raise UsageError("; ".join(problem.message for problem in problems), problems[0].fix)
    return _kept_apart(list(found.values()))


class _Search:
    """How folders and patterns are looked through, and what was left out of them."""

    def __init__(self, recursive: bool, without: Path | None) -> None:
        self.recursive = recursive
        self._without = without
        self._noted: dict[Path, frozenset[str]] = {}
        self._skipped: dict[Path, set[str]] = {}

    def output_folder(self, top: Path) -> Path | None:
        """The folder that stems go to, unless ``top``, which was named, lies in it."""
        return None if _is_inside(top, self._without) else self._without

    def is_stem(self, file: Path, top: Path, named: bool) -> bool:
        """Whether a file below ``top`` is a stem of an earlier run, which is then counted.

        Args:
            named: the user has named ``top`` to have what is in it, even if it has a journal.
        """
        output = self.output_folder(top)
        if output is not None and _is_inside(file, output):
            self._skipped.setdefault(output, set()).add(os.path.abspath(file))
            return True
        for folder in file.parents:
            if folder == top and named:
                return False
            if folder not in self._noted:
                self._noted[folder] = noted_outputs(folder)
            if os.path.abspath(file) in self._noted[folder]:
                self._skipped.setdefault(folder, set()).add(os.path.abspath(file))
                return True
            if folder == top:
                return False
        return False

    def left_out(self) -> Iterator[str]:
        """A line for every folder whose files were left out."""
        for folder, files in self._skipped.items():
            count = f"{len(files)} audio file{'s' * (len(files) > 1)}"
            why = (
                "stems go there"
                if folder == self._without
                else "its journal names them as stems of earlier runs"
            )
            yield f"left out {count} in {folder}: {why}"


def _expanded(argument: str, search: _Search) -> Iterator[Track]:
    if argument == "-":
        yield Track(STDIN, "stdin")
        return
    if "\0" in argument:
        raise UsageError(f"{argument!r} holds a NUL character, which no name can", "Check the name.")
    path = Path(argument)
    if os.path.isdir(path):
        yield from _in_folder(path, search)
    elif not os.path.lexists(path) and glob.has_magic(argument):
        yield from _matching(argument, search)
    else:
        yield Track(path, _stem(path))


def _matching(pattern: str, search: _Search) -> Iterator[Track]:
    parts = Path(pattern).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    top = Path(*parts[:plain])
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True), key=_depth_first)]
    # ** goes through links to folders, in a loop of them as often as the system lets it
    places = {os.path.realpath(match): match for match in reversed(matches)}
    files = [
        file for file in places.values() if file.is_file() and not search.is_stem(file, top, named=plain > 0)
    ]
    unreadable = list(_unreadable(parts, plain))
    yield from unreadable
    if not files and not unreadable:
        yield _without_audio(
            pattern, f"no file matches {pattern}", "Check the pattern; quotes keep it from the shell."
        )
    yield from (Track(file, _stem(file)) for file in sorted(files))


def _unreadable(parts: Sequence[str], plain: int) -> Iterator[Track]:
    """Folders that a pattern leads into, and that cannot be read: ``glob`` says nothing of them."""
    seen = set()
    for count in range(max(plain, 1), len(parts)):
        for match in glob.glob(os.path.join(*parts[:count]), recursive=True):
            place = os.path.realpath(match)
            if place not in seen and os.path.isdir(match):
                seen.add(place)
                try:
                    os.scandir(match).close()
                except OSError as error:
                    yield _not_read(match, error)


def _depth_first(path: str) -> tuple[int, str]:
    return path.count(os.sep), path


def _in_folder(folder: Path, search: _Search) -> Iterator[Track]:
    errors: list[OSError] = []
    files = [
        file for file in _files_of(folder, search, errors) if not search.is_stem(file, folder, named=False)
    ]
    output = search.output_folder(folder)
    unreadable = [
        _not_read(error.filename, error) for error in errors if not _is_inside(Path(error.filename), output)
    ]
    yield from unreadable
    if not files and not unreadable:
        deeper = "" if search.recursive else "; --recursive looks in its folders too"
        yield _without_audio(
            str(folder), f"{folder} holds no audio files", f"Name another folder, or files{deeper}."
        )
    for file in sorted(files):
        below = file.relative_to(folder).parent
        yield Track(file, (below / _stem(file)).as_posix())


def _files_of(folder: Path, search: _Search, errors: list[OSError]) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if search.recursive and not name.startswith(".")]
        for name in files:
            # hidden files are what systems leave beside the real ones, as ._song.mp3
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(place, name)


def _without_audio(argument: str, message: str, fix: str) -> Track:
    return Track(Path(argument), argument, UsageError(message, fix))


def _not_read(folder: str, error: OSError) -> Track:
    problem = UsageError(
        f"the folder {folder} cannot be read: {error.strerror or error}",
        "Change its permissions, or leave it out",
    )
    return Track(Path(folder), folder, problem)


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
        if track.problem is None:
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
