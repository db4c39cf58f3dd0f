"""What was asked for, as a list of files: files as they are, folders and patterns as what they hold."""

from __future__ import annotations

import functools
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mrsep_deploy.errors import MrsepError, UsageError
from mrsep_deploy.songs.journal import noted_outputs

AUDIO_SUFFIXES = {
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf"),
    *(".w64", ".rf64", ".au", ".m4a", ".aac", ".wma", ".alac", ".ape", ".wv"),
}
"""What is taken out of a folder. A file that is named is tried whatever it is called."""

MAX_PARENTS = 8
STDIN = Path("-")


@dataclass(frozen=True)
class Track:
    """One song to separate.

    Attributes:
        path: the file, or ``-`` for what comes through stdin.
        name: what its outputs are called by: the file's name without suffix, below the folder that was asked for
            (``live/song``); parts are separated by ``/``.
        problem: why there is no song: ``path`` is a folder that cannot be read, or one or a pattern without audio.
    """

    path: Path
    name: str
    problem: MrsepError | None = field(default=None, compare=False)

    @property
    def is_stdin(self) -> bool:
        return self.path == STDIN

    @property
    def extension(self) -> str:
        """Of the file, without the dot."""
        return "wav" if self.is_stdin else self.path.suffix.lstrip(".")


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
    for folder, files in search.left_out.items():
        count = f"{len(files)} audio file{'s' * (len(files) > 1)}"
        why = "stems go there" if folder == without else "its journal names them as stems of earlier runs"
        say(f"left out {count} in {folder}: {why}")
    problems = [track.problem for track in found.values() if track.problem is not None]
    if len(problems) == len(found):
        raise UsageError("; ".join(problem.message for problem in problems), problems[0].fix)
    return _kept_apart(list(found.values()))


class _Search:
    """How folders and patterns are looked through.

    Attributes:
        left_out: files that are stems of earlier runs, by the folder that says so.
    """

    def __init__(self, recursive: bool, without: Path | None) -> None:
        self.recursive = recursive
        self.left_out: dict[Path, set[str]] = {}
        self._without = without
        self._noted = functools.cache(noted_outputs)

    def output_folder(self, top: Path) -> Path | None:
        """The folder that stems go to, unless ``top``, which was named, lies in it."""
        return None if _is_inside(top, self._without) else self._without

    def is_stem(self, file: Path, top: Path, named: bool) -> bool:
        """Whether a file below ``top`` is a stem of an earlier run, which is then noted.

        Args:
            named: the user has named ``top`` to have what is in it, even if it has a journal.
        """
        place = os.path.abspath(file)
        output = self.output_folder(top)
        if output is not None and _is_inside(file, output):
            self.left_out.setdefault(output, set()).add(place)
            return True
        for folder in file.parents:
            if folder == top and named:
                return False
            if place in self._noted(folder):
                self.left_out.setdefault(folder, set()).add(place)
                return True
            if folder == top:
                return False
        return False


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
    found = glob.glob(pattern, recursive=True)
    matches = [Path(match) for match in sorted(found, key=lambda match: (match.count(os.sep), match))]
    # ** goes through links to folders, in a loop of them as often as the system lets it
    places = {os.path.realpath(match): match for match in reversed(matches)}
    files = [
        file for file in places.values() if file.is_file() and not search.is_stem(file, top, named=plain > 0)
    ]
    unreadable = list(_unreadable(parts, plain))
    yield from unreadable
    if not files and not unreadable:
        yield _problem(
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


def _in_folder(folder: Path, search: _Search) -> Iterator[Track]:
    errors: list[OSError] = []
    files = []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if search.recursive and not name.startswith(".")]
        for file in (Path(place, name) for name in names):
            # hidden files are what systems leave beside the real ones, as ._song.mp3
            audio = not file.name.startswith(".") and file.suffix.lower() in AUDIO_SUFFIXES
            if audio and not search.is_stem(file, folder, named=False):
                files.append(file)
    output = search.output_folder(folder)
    unreadable = [error for error in errors if not _is_inside(Path(error.filename), output)]
    yield from (_not_read(error.filename, error) for error in unreadable)
    if not files and not unreadable:
        deeper = "" if search.recursive else "; --recursive looks in its folders too"
        yield _problem(
            str(folder), f"{folder} holds no audio files", f"Name another folder, or files{deeper}."
        )
    for file in sorted(files):
        below = file.relative_to(folder).parent
        yield Track(file, (below / _stem(file)).as_posix())


def _problem(argument: str, message: str, fix: str) -> Track:
    return Track(Path(argument), argument, UsageError(message, fix))


def _not_read(folder: str, error: OSError) -> Track:
    reason = error.strerror or error
    return _problem(
        folder, f"the folder {folder} cannot be read: {reason}", "Change its permissions, or leave it out"
    )


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
        for count, suffix in ((parents, False), (parents - 1, True), (parents, True)):
            names = [_with_parents(track, count, suffix) for track in group]
            if len({same_place(name) for name in names}) == len(names):
                return names
    raise UsageError(
        f"{group[0].path} and {group[1].path} would be written to the same place",
        "Rename one, or separate it in a run of its own with -o DIR.",
    )


def _with_parents(track: Track, count: int, suffix: bool) -> str:
    """A track's name with ``count`` of the folders above it, and with its suffix or without."""
    if track.is_stdin:
        return "stdin"
    folders = Path(os.path.abspath(track.path)).parent.parts[1:]
    name = track.path.name if suffix else _stem(track.path)
    return "/".join((*(folders[-count:] if count else ()), name))
