"""Files and folders that appear whole or not at all.

Everything is written beside its place, forced to the disk, and renamed: a reader sees the old or the
new, a crash leaves the old. (Stems have a writer of their own, which re-encodes on closing.)
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mrsep_deploy.errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def explained(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into an ``OutputError`` that says what to do.

    ``advice`` is added to that: how to choose another place, where the path is not the user's own.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            fix = "Free some space, or choose a place on another disk."
        elif error.errno in _FORBIDDEN:
            fix = "Change the permissions, or choose another place."
        else:
            fix = "Choose another place."
        raise OutputError(f"{path} cannot be written: {reason}", f"{fix} {advice}") from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it gets its name when the block ends, replacing what had it.

    Raises:
        OutputError: it cannot be written; the old file is untouched and nothing is left behind.
    """
    part = _beside(path, "part")
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


def check_place(path: Path) -> None:
    """Find out early whether ``new_file`` can write there: an empty file is made beside it, and removed.

    Raises:
        OutputError: it cannot.
    """
    part = _beside(path, "part")
    with explained(path):
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long, where the temporary one is not
        open(part, "xb").close()
        part.unlink()


def write_file(path: Path, data: bytes) -> None:
    """``new_file`` for bytes that are already there."""
    with new_file(path) as file:
        file.write(data)


def make_folder(path: Path, advice: str = "") -> Path:
    """The folder, created with its parents if need be."""
    with explained(path, advice):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def new_folder(path: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder of files, written beside its place; it moves there when the block ends.

    The block may look at the new folder and raise, and then nothing has changed. A folder that had the
    name before is moved aside first, back if the new one cannot take its place, and deleted last.

    Raises:
        OutputError: it cannot be written, or the old folder cannot be deleted (the message says which).
    """
    part = _beside(path, "part")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fill(part, files)
            yield part
            old = _swap(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync_folder(path.parent)
    if old is not None:
        _delete_old(old, path)


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk. Windows has no call for it and orders them itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, suffix: str) -> Path:
    # 40 characters: a name of the greatest length a file system takes leaves no room for more
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.{suffix}")


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        with open(folder / name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


def _swap(new: Path, place: Path) -> Path | None:
    """Put ``new`` in its place; where the folder that was there is now, if there was one."""
    if not place.exists():
        os.rename(new, place)
        return None
    old = _beside(place, "old")
    os.rename(place, old)
    try:
        os.rename(new, place)
    except BaseException:
        os.rename(old, place)
        raise
    return old


def _delete_old(old: Path, path: Path) -> None:
    try:
        shutil.rmtree(old)
    except OSError as error:
        message = f"{path} is written, but what it replaced could not be deleted: {error.strerror or error}"
        raise OutputError(message, f"Delete {old} yourself.") from error
