"""Opening a file that a user names, and what is often found under a checkpoint's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.values import shown

AGAIN = "download or copy it again"
_CHUNK = 2**20


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put the file's name in front of the message of a ``CheckpointError``.

    Raises:
        CheckpointError: it does not exist.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "Check the path") from error
    except (OSError, ValueError):
        pass  # ``opened`` says more
    try:
        yield
    except CheckpointError as error:
        error.message = f"{path.name or path}: {error.message}"
        error.args = (error.message,)
        raise


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """The file, open for reading; whatever the system has against it is a ``CheckpointError``."""
    try:
        if path.is_dir():
            raise CheckpointError("this is a folder, expected a file", "name the file in it")
        if path.exists() and not path.is_file():
            raise CheckpointError("this is a device or a pipe, expected a file", "name a regular file")
        file = path.open("rb")
    except PermissionError as error:
        raise CheckpointError("the file may not be read by this user", "change its permissions") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the file cannot be opened ({shown(error)})", "check the path") from error
    with file:
        try:
            yield file
        except OSError as error:
            raise CheckpointError(f"the file cannot be read ({shown(error)})", "check the disk") from error


@contextmanager
def damage(what: str, errors: tuple[type[Exception], ...], limit: int = 100) -> Iterator[None]:
    """Map the errors of a library about a damaged file; ``limit`` is how much of its message is shown."""
    try:
        yield
    except errors as error:
        raise CheckpointError(f"{what} ({shown(error, limit)})", AGAIN) from error


def sha256(file: BufferedReader) -> str:
    """The sha256 of the whole file, 64 hexadecimal digits; the file is at its start afterwards."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


def refuse_other_files(head: bytes) -> None:
    """Raise for a file that starts like something that only has a checkpoint's name."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise CheckpointError("the file is empty", AGAIN)
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError("this is a git-lfs pointer, not the file it stands for", "run: git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            "this is a web page (HTML), expected a checkpoint: the download got an error or login page",
            "download the file itself",
        )
    if text.startswith((b"models:", b"weights:", b"segment:")):
        raise CheckpointError("this is a bag of models, expected a single checkpoint", "read it as a bag")
