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

from ..errors import OutputError

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def prepare_target(path: Path) -> Path:
    """The place the file will really be at, its directory made. Raises OSError or OutputError."""
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} holds a NUL character", "Choose another output path")
    target = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        # Asked of the final name too: it may be too long where the temporary one is not.
        mode = os.stat(target).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise OutputError(f"{path} is {what}, expected a place for a file", "Choose another output path")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def part_name(name: str) -> str:
    """The temporary name of a file: hidden, and with the number of the process that writes it."""
    # 40 characters: a name of the greatest length a file system takes leaves no room for more.
    return f".{name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.part"


def lock(file: IO[bytes]) -> None:
    """Tell other processes that somebody writes this file, until it is closed; nothing where there are no locks."""
    if fcntl is not None:
        with suppress(OSError):  # not every file system has them
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Whether another opened file holds a ``lock`` on it; False where it cannot be known."""
    if fcntl is None:
        return False
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
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
