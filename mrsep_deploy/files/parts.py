"""Files and folders that appear whole or not at all.

Everything is written beside its place, forced to the disk, and renamed: a reader sees the old or the new, a crash
leaves the old. What is not finished is called ``.NAME.PROCESS.RANDOM.part``; ``abandoned`` knows what a killed
process has left of it. (Stems have a writer of their own, ``audio.write``, which encodes on closing.)
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mrsep_deploy.errors import OutputError
from mrsep_deploy.files.abandoned import SHORT
from mrsep_deploy.files.open_folder import OpenFolder, kind_of

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Numbers of the errors of a disk without room."""


def part_of(path: Path, suffix: str = "part") -> Path:
    """Returns the place of a file or folder until it is whole: hidden, named after the process that writes it."""
    return path.with_name(f".{path.name[:SHORT]}.{os.getpid()}.{secrets.token_hex(4)}.{suffix}")


def output_error(error: OSError, path: Path, needed: int | None = None, advice: str = "") -> OutputError:
    """Returns an error of writing ``path`` as one that says what to do.

    Args:
        needed: bytes that the file takes at least, where that is known.
        advice: added to it: how to choose another place, where the path is not the user's own.
    """
    reason = error.strerror or str(error)
    message, fix = f"{path} cannot be written: {reason}", "Choose another place."
    if error.errno in FULL:
        fix = "Free some space, or choose a place on another disk."
        if needed is not None:
            message = f"no space left for {path}: it needs at least {needed} bytes"
            with suppress(OSError):
                message += f", {shutil.disk_usage(path.parent).free} are free"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "Change the permissions, or choose another place."
        if needed is not None:
            message = f"{path} may not be written by this user ({reason})"
    return OutputError(message, f"{fix} {advice}")


@contextmanager
def explained(path: Path, advice: str = "") -> Iterator[None]:
    """Raises an ``OSError`` of the block as ``output_error``."""
    try:
        yield
    except OSError as error:
        raise output_error(error, path, advice=advice) from error


def open_place(path: Path, root: Path | None = None) -> OpenFolder:
    """Makes the folder that a file goes to, and holds it open; a link with the file's name will be replaced.

    Args:
        path: of the file.
        root: the folder at or above it that the user named; see ``OpenFolder``.

    Raises:
        OutputError: ``path`` is no place for a file, or a folder below ``root`` is a link.
        OSError: a folder cannot be made or opened.
    """
    other = "Choose another output path"
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} holds a NUL character", other)
    if not path.name:
        raise OutputError(f"{path} is a directory, expected a place for a file", other)
    folder = OpenFolder(path.parent, root)
    try:
        # Asked of the final name too: it may be too long where the temporary one is not.
        mode = folder.mode(path.name)
        if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise OutputError(f"{path} is {kind_of(mode)}, expected a place for a file", other)
    except BaseException:
        folder.close()
        raise
    return folder


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write; it gets its name when the block ends, replacing what had it.

    Raises:
        OutputError: it cannot be written; the old file is untouched and nothing is left behind.
    """
    part = part_of(path)
    with explained(path):
        try:
            with open(part, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync_folder(path.parent)


def require_writable(path: Path) -> None:
    """Finds out early whether ``new_file`` can write there: makes an empty file beside it, and removes it.

    Raises:
        OutputError: it cannot.
    """
    part = part_of(path)
    with explained(path):
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long, where the temporary one is not
        open(part, "xb").close()
        part.unlink()


def write_file(path: Path, data: bytes) -> None:
    """Writes a file whose bytes are there already, as ``new_file`` does."""
    with new_file(path) as file:
        file.write(data)


def make_folder(path: Path, advice: str = "") -> Path:
    """Makes a folder and its parents where they are missing, and returns it."""
    with explained(path, advice):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def new_folder(path: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Writes a folder of files beside its place; it moves there when the block ends.

    The block may look at the new folder and raise, and then nothing has changed. A folder that had the
    name before is moved aside first, back if the new one cannot take its place, and deleted last.

    Raises:
        OutputError: it cannot be written, or the old folder cannot be deleted (the message says which).
    """
    part = part_of(path)
    old: Path | None = None
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
            for name, data in files.items():
                with open(part / name, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            sync_folder(part)
            yield part
            if path.exists():
                old = part_of(path, "old")
                os.rename(path, old)
            try:
                os.rename(part, path)
            except BaseException:
                if old is not None:
                    os.rename(old, path)
                raise
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync_folder(path.parent)
    try:
        if old is not None:
            shutil.rmtree(old)
    except OSError as error:
        message = f"{path} is written, but what it replaced could not be deleted: {error.strerror or error}"
        raise OutputError(message, f"Delete {old} yourself.") from error


def sync_folder(path: Path) -> None:
    """Forces a folder's entries to the disk. Windows has no call for it and orders them itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
