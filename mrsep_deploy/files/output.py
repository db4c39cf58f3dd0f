"""Where an output file goes until it is whole, and what to say when it cannot be written."""

from __future__ import annotations

import errno
import importlib
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mrsep_deploy.errors import OutputError
from mrsep_deploy.files.open_folder import OpenFolder

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def open_place(path: Path, root: Path | None = None) -> OpenFolder:
    """The folder that a file goes to, made and held open; a link with the file's name will be replaced.

    Args:
        path: of the file.
        root: the folder at or above it that the user named; see ``OpenFolder``.

    Raises:
        OutputError: ``path`` is no place for a file, or a folder below ``root`` is a link.
        OSError: a folder cannot be made or opened.
    """
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} holds a NUL character", "Choose another output path")
    if not path.name:
        raise OutputError(f"{path} is a directory, expected a place for a file", "Choose another output path")
    folder = OpenFolder(path.parent, root)
    try:
        # Asked of the final name too: it may be too long where the temporary one is not.
        mode = folder.mode(path.name)
        if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise OutputError(f"{path} is {what}, expected a place for a file", "Choose another output path")
    except BaseException:
        folder.close()
        raise
    return folder


def part_name(name: str) -> str:
    """The temporary name of a file: hidden, and with the number of the process that writes it."""
    # 40 characters: a name of the greatest length a file system takes leaves no room for more.
    return f".{name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.part"


def lock(file: IO[bytes]) -> None:
    """Tell other processes that somebody writes this file, until it is closed; nothing where there are no locks."""
    if fcntl is not None:
        with suppress(OSError):  # not every file system has them
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(folder: OpenFolder, name: str) -> bool:
    """Whether another opened file holds a ``lock`` on this one; False where it cannot be known."""
    if fcntl is None:
        return False
    try:
        with open(folder.path / name, "rb", opener=folder.opener) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, OutputError):
        return False
    return False


def explained(error: OSError, path: Path, needed: int) -> OutputError:
    """An error of the disk as one that says what to do; ``needed`` are the bytes the file takes at least."""
    if error.errno in _FULL:
        return OutputError(
            f"no space left for {path}: it needs at least {needed} bytes{_free(path)}",
            "Free some space, or choose an output directory on another disk",
        )
    if error.errno in _FORBIDDEN:
        return OutputError(
            f"{path} may not be written by this user ({error.strerror})",
            "Change the permissions, or choose another output directory",
        )
    return OutputError(f"{path} cannot be written: {error.strerror or error}", "Choose another output path")


def _free(path: Path) -> str:
    try:
        return f", {shutil.disk_usage(path.parent).free} are free"
    except OSError:
        return ""
