"""Reading the files of a bundle that is a folder, and what any place with files must offer."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mrsep_deploy.bundle.manifest_check import FIX
from mrsep_deploy.errors import BundleError


class Files(Protocol):
    """The files of a bundle by their plain names."""

    def size(self, name: str) -> int:
        """Bytes of a file. Raises ``BundleError`` if there is none or it must not be read."""

    def read(self, name: str, limit: int) -> bytes:
        """A whole file. Raises ``BundleError`` for one of more than ``limit`` bytes, too."""


class Folder:
    """The files of a folder. Links may point within it, never out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def size(self, name: str) -> int:
        with _readable(name):
            path = self.root / name
            if not path.resolve(strict=True).is_relative_to(self.root.resolve(strict=True)):
                raise BundleError(f"{name} is a link that leaves the bundle", FIX)
            found = path.stat()
            # opening a pipe would wait for ever
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{name} is not a regular file", FIX)
            return found.st_size

    def read(self, name: str, limit: int) -> bytes:
        size = self.size(name)
        if size > limit:
            raise BundleError(f"{name} has {size} bytes, expected at most {limit}", FIX)
        with _readable(name), open(self.root / name, "rb") as file:
            return file.read(limit + 1)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BundleError(f"{name} is missing", FIX) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleError(f"{name} cannot be read: {error}", "Check its permissions and the disk.") from error
