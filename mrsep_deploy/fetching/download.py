"""A published file on this disk: found in the cache, or got from its address or from a mirror, and verified.

    CACHE/downloads/MODEL/FILE          whole, and of the hash that the list of published models gives
    CACHE/downloads/MODEL/FILE.part     what has come of it so far

A file has its name only after its hash was compared, so whatever ends a download leaves a part or nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from mrsep_deploy.bundle.published import PublishedFile
from mrsep_deploy.errors import FetchError, OutputError, UsageError
from mrsep_deploy.fetching.transfer import (
    CHUNK,
    Tell,
    discard,
    receive,
    require_requests,
    shown,
    size_of,
)
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import explained, make_folder, sync_folder

Progress = Callable[[str, int, int], None]
"""Called with what happens now, how many bytes of all files are there and how many there are."""


def check_mirror(mirror: str | None) -> None:
    """Raise ``UsageError`` if a mirror is neither an address nor a folder, ``FetchError`` if the extra is missing."""
    if mirror is not None and not _is_address(mirror) and not os.path.isdir(mirror):
        raise UsageError(
            f"--from {mirror} is neither an address (http:// or https://) nor a folder that exists",
            "Give one that has the files by their names.",
        )
    if mirror is None or _is_address(mirror):
        require_requests()


@contextmanager
def alone(model: str) -> Iterator[None]:
    """Holds what keeps other processes from fetching a published model meanwhile.

    Raises:
        OutputError: another one is fetching it, or the folder cannot be written.
    """
    folder = make_folder(paths.cache_dir("downloads") / model, paths.SET_HOME)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0)
    with explained(folder, paths.SET_HOME):
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"another process is fetching {model} into {folder}", "Wait for it to end, and try again."
            ) from error
    try:
        yield
    finally:
        lock.release()


def download(
    model: str, files: Sequence[PublishedFile], mirror: str | None, progress: Progress
) -> tuple[Path, ...]:
    """Returns where the files of a published model lie on this disk, got if they are not there yet, and verified.

    Whoever calls it is :func:`alone`.

    Args:
        model: its name, for the folder.
        mirror: an address or a folder that has the files by their names; None for their published addresses.

    Raises:
        FetchError: a file cannot be had, or is another than the published one.
        OutputError: one cannot be written, or the disk has no room for all.
        UsageError: as ``check_mirror``.
    """
    check_mirror(mirror)
    folder = make_folder(paths.cache_dir("downloads") / model, paths.SET_HOME)
    total, done, found = sum(file.bytes for file in files), 0, []
    missing = [file for file in files if not _is_there(folder / file.name, file)]
    _require_space(folder, missing)
    for file in files:

        def tell(count: int, before: int = done, name: str = file.name) -> None:
            progress(name, before + count, total)

        if file in missing:
            _get(file, folder / file.name, mirror, tell)
        done += file.bytes
        tell(file.bytes)
        found.append(folder / file.name)
    return tuple(found)


def _require_space(folder: Path, missing: Sequence[PublishedFile]) -> None:
    """Refuse at once what would fill the disk later."""
    needed = sum(file.bytes - min(size_of(_part(folder / file.name)), file.bytes) for file in missing)
    with explained(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the download needs {needed / 1e6:,.0f} MB, {folder} has {free / 1e6:,.0f} MB free",
            f"Free some space. {paths.SET_HOME}",
        )


def _get(file: PublishedFile, target: Path, mirror: str | None, tell: Tell) -> None:
    part, went_on = _part(target), False
    if mirror is not None and not _is_address(mirror):
        origin = os.path.join(mirror, file.name)
        _copy(Path(origin), part, file.bytes, tell)
    else:
        origin = file.address if mirror is None else f"{mirror.rstrip('/')}/{file.name}"
        went_on = size_of(part) > 0
        receive(origin, part, file.bytes, tell)
    found = _hash(part)
    if found != file.sha256 and went_on:  # what was there already may have been damaged: all of it again
        part.unlink()
        receive(origin, part, file.bytes, tell)
        found = _hash(part)
    if found != file.sha256:
        part.unlink()
        raise FetchError(
            f"{shown(origin)} has sha256 {found[:16]}…, expected {file.sha256[:16]}…: it is damaged or another file",
            "Nothing of it was kept or run. Try again; if it stays so, do not use what is there.",
        )
    with explained(target):
        os.replace(part, target)
        sync_folder(target.parent)


def _copy(source: Path, part: Path, size: int, tell: Tell) -> None:
    done = 0
    try:
        with _read(source) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise FetchError(
                    f"{source} has {found} bytes, expected {size}: it is damaged or another file",
                    "Put the published file there.",
                )
            with explained(part), open(part, "wb") as copy:
                while chunk := _chunk(file, source):
                    copy.write(chunk)
                    done += len(chunk)
                    tell(done)
                copy.flush()
                os.fsync(copy.fileno())
    except OutputError:
        discard(part)
        raise


def _read(source: Path) -> BinaryIO:
    try:
        return open(source, "rb")
    except OSError as error:
        raise _unreadable(source, error) from error


def _chunk(file: BinaryIO, source: Path) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: OSError) -> FetchError:
    return FetchError(
        f"{source} cannot be read: {error.strerror or error}", "Put the file there, under this name."
    )


def _is_there(target: Path, file: PublishedFile) -> bool:
    return size_of(target) == file.bytes and _hash(target) == file.sha256


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with explained(path), open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _is_address(mirror: str) -> bool:
    return mirror.lower().startswith(("http://", "https://"))
