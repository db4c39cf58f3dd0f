"""What is done already: one line a song, in the output folder, written when all its files are on the disk.

A song is done if the journal says so, the song is the same file, the settings are the same, and every output
is there in its whole length. Anything else is done again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from mrsep_deploy.errors import OutputError
from mrsep_deploy.files.open_folder import OpenFolder
from mrsep_deploy.files.parts import explained

NAME = ".mrsep-deploy-journal.jsonl"
MAX_LINE = 1 << 16


class Line(msgspec.Struct):
    """A song that is done.

    Attributes:
        settings: digest of what decided its outputs.
        track: absolute path of its file.
        state: of that file: its size, and the time of its last change in ns.
        outputs: sizes of its outputs, by their paths from the journal's folder.
    """

    settings: str
    track: str
    state: list[int] | None
    outputs: dict[str, int | None]


def settings_digest(settings: Mapping[str, object]) -> str:
    """A name for everything that decides what a song's outputs are."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """The journal of one output folder; several runs may write it at the same time.

    Args:
        folder: what all outputs lie below.
        settings: digest of the settings of this run.
        root: the folder at or above it that the user named; ``folder`` itself if None.

    Raises:
        OutputError: the journal is a link, a pipe or another file that is none, or a folder below ``root``
            is a link.
    """

    def __init__(self, folder: Path, settings: str, root: Path | None = None) -> None:
        self.path = folder / NAME
        self._folder = folder
        self._root = root
        self._settings = settings
        self._lock = threading.Lock()
        lines = _lines(folder, root)
        self._done = {line.track: line for line in lines if line.settings == settings}

    def is_done(self, song: Path, outputs: Sequence[Path]) -> bool:
        """Whether nothing is left to do for a song's file."""
        line = self._done.get(os.path.abspath(song))
        if line is None or line.state != _state(song):
            return False
        found = self._sizes(outputs)
        return None not in found.values() and line.outputs == found

    def _sizes(self, outputs: Sequence[Path]) -> dict[str, int | None]:
        return {os.path.relpath(path, self._folder): _size(path) for path in outputs}

    def add(self, song: Path, outputs: Sequence[Path]) -> None:
        """Note that a song is done; its outputs are on the disk.

        Raises:
            OutputError: the journal cannot be written.
        """
        line = Line(self._settings, os.path.abspath(song), _state(song), self._sizes(outputs))
        with self._lock, explained(self.path, "Or run without --resume."):
            with OpenFolder(self._folder, self._root) as folder:
                descriptor = folder.opener(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                # A kill may have left half a line. Each line goes out in one call, so that two runs do not mix.
                size = os.lseek(descriptor, 0, os.SEEK_END)
                os.lseek(descriptor, max(size - 1, 0), os.SEEK_SET)
                start = b"" if os.read(descriptor, 1) in (b"", b"\n") else b"\n"
                text = start + json.dumps(msgspec.to_builtins(line)).encode() + b"\n"
                if os.write(descriptor, text) != len(text):  # the rest of the disk was less than a line
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _lines(folder: Path, root: Path | None) -> Iterator[Line]:
    """Every whole line of a folder's journal; half a line, or one of another program, is passed over."""
    try:
        with (
            OpenFolder(folder, root, make=False) as opened,
            open(folder / NAME, "rb", opener=opened.opener) as file,
        ):
            while data := file.readline(MAX_LINE):
                with contextlib.suppress(ValueError, RecursionError, msgspec.ValidationError):
                    # msgspec's own parser refuses what names that are no Unicode have become in JSON.
                    yield msgspec.convert(json.loads(data), Line)
    except OSError:
        return


def noted_outputs(folder: Path) -> frozenset[str]:
    """Absolute paths of the files that a folder's journal says are stems; none where there is no journal."""
    with contextlib.suppress(OutputError):  # a link or a pipe, which no run has written
        return frozenset(
            os.path.abspath(folder / name) for line in _lines(folder, None) for name in line.outputs
        )
    return frozenset()


def _state(path: Path) -> list[int] | None:
    """Size and time of the last change: what tells a file from another under its name."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return [found.st_size, found.st_mtime_ns]
    return None


def _size(path: Path) -> int | None:
    """Of a regular file; a link is none, where a file was written."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    return None
