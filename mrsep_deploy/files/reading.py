"""Small files that users write: read up to a limit, and never waited for."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Mapping

from mrsep_deploy.files.open_folder import kind_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_start(path: str | os.PathLike[str], limit: int) -> bytes:
    """Returns the bytes of a file; of one of more than ``limit`` bytes, the first ``limit + 1``.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which could be waited for without end.
    """
    with open(path, "rb", opener=_opened_at_once) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {kind_of(mode)}, expected a regular file", str(path))
        return file.read(limit + 1)


def _opened_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def toml(data: bytes) -> Mapping[str, object]:
    """Returns the values of a TOML text.

    Raises:
        ValueError, RecursionError: it is none, or is no UTF-8.
    """
    return tomllib.loads(data.decode())
