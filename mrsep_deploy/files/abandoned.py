"""Part files that killed processes have left: told from those that are being written, and deleted.

A process that writes a part file holds a lock on it. Before the file is locked, the number in its name tells whether
its process still runs. (Numbers alone would not do: a container has its own, and the system gives them out again.)
"""

from __future__ import annotations

import glob
import importlib
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mrsep_deploy.errors import OutputError
from mrsep_deploy.files.open_folder import OpenFolder

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

SHORT = 40
"""Characters of a name that its part's name begins with: one of the greatest length would leave no room for more."""
SETTLED = 60.0
"""Seconds after which a file that is not locked is abandoned, even if a process has its number."""
_PART = re.compile(r"\..{1,40}\.([0-9]{1,10})\.[0-9a-f]{8}\.part", re.DOTALL)
"""A name that ``parts.part_of`` gives."""


def lock(file: IO[bytes]) -> None:
    """Tells other processes that this file is being written, until it is closed; nothing where there are no locks."""
    if fcntl is not None:
        with suppress(OSError):  # not every file system has them
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(folder: OpenFolder, name: str) -> bool:
    """Returns whether another opened file holds a ``lock`` on this one; False where it cannot be known."""
    if fcntl is None:
        return False
    try:
        with open(folder.path / name, "rb", opener=folder.opener) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, OutputError):
        pass
    return False


def sweep_parts(folders: Iterable[Path], root: Path | None = None) -> int:
    """Deletes the part files in these folders that no process writes any more, and returns how many there were.

    Folders that lie behind a link below ``root``, the output folder, are left alone.
    """
    swept = 0
    for folder in folders:
        with suppress(OSError, OutputError), OpenFolder(folder, root, make=False) as opened:
            for name, status in opened.files():
                found = _PART.fullmatch(name)
                if found is None or is_locked(opened, name):
                    continue
                if not _is_alive(int(found[1])) or time.time() - status.st_mtime > SETTLED:
                    with suppress(OSError):
                        opened.unlink(name)
                        swept += 1
    return swept


def sweep_part_folders(place: Path) -> None:
    """Deletes what processes that have ended have left of making a folder at ``place`` (``parts.new_folder``)."""
    for found in place.parent.glob(f"{glob.escape(f'.{place.name[:SHORT]}')}.*.part"):
        part = _PART.fullmatch(found.name)
        if part is not None and found.is_dir() and not found.is_symlink() and not _is_alive(int(part[1])):
            shutil.rmtree(found, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return True  # there, asking would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
