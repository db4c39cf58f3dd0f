"""The two containers that ``torch.save`` writes: a zip archive, and before torch 1.6 a row of pickles.

    zip       NAME/data.pkl        the pickle; storages are named in it by KEY
              NAME/data/KEY        the bytes of a storage
              NAME/byteorder       "little" or "big"; absent from old files, which are little

    legacy    pickles of: a magic number, the format version (1001), a dict with "little_endian",
              the object, the list of storage keys; then for each key the count of elements (int64)
              and their bytes

Members of the archive are stored, never compressed, and never add up to more than the file: so the size of
the file bounds the memory that reading it takes, and a zip bomb has nothing to expand.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Collection, Iterator
from functools import partial
from io import BufferedReader, RawIOBase
from typing import IO

import numpy as np

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.allowed import RESAVE, StorageRef
from mrsep_deploy.export.checkpoint.files import AGAIN, damage
from mrsep_deploy.export.checkpoint.storages import DTYPES, Package, read_state
from mrsep_deploy.export.checkpoint.unpickler import MAX_BYTES, Unpickled, unpickle
from mrsep_deploy.export.checkpoint.values import shown

MAX_DIRECTORY = 4 * 2**20  # bytes of the archive's table of contents: some forty thousand members
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
_CHUNK = 2**20
# What zipfile and struct raise over a damaged archive.
_DAMAGE = (
    *(zipfile.BadZipFile, struct.error, NotImplementedError, RuntimeError),
    *(ValueError, OverflowError, EOFError, OSError),
)


def read_zip(file: BufferedReader, file_bytes: int, classes: Collection[str]) -> Package:
    """Read a package from an archive; ``file`` has to stay open as long as storages are read.

    Raises:
        CheckpointError: damaged, truncated, compressed, or not an archive of a package.
        UnsafeCheckpointError: its pickle asks for code.
    """
    with damage("the archive is truncated or damaged, or not a torch package", _DAMAGE):
        archive = zipfile.ZipFile(_Sparing(file, file_bytes))
    members, top = _members(archive, file_bytes)
    if f"{top}constants.pkl" in members or any(name.startswith(f"{top}code/") for name in members):
        raise CheckpointError("the file is a TorchScript archive, expected a trained package", RESAVE)
    if f"{top}data.pkl" not in members:
        raise CheckpointError(f"the archive has no {shown(top)}data.pkl, not a torch package", RESAVE)
    pickle = members[f"{top}data.pkl"]
    if pickle.file_size > MAX_BYTES:
        raise CheckpointError(f"the pickle has {pickle.file_size:,} bytes, expected at most {MAX_BYTES:,}")
    order = _byte_order(archive, members.get(f"{top}byteorder"))

    def read(storage: StorageRef) -> bytearray:
        member = members.get(f"{top}data/{storage.key}")
        if member is None:
            raise CheckpointError(f"the archive lacks the storage {shown(storage.key)}", AGAIN)
        if member.file_size != _length(storage):
            raise CheckpointError(
                f"the storage {shown(storage.key)} has {member.file_size:,} bytes, expected "
                f"{_length(storage):,} ({storage.numel:,} of {storage.dtype})",
                AGAIN,
            )
        return _in_order(_contents(archive, member), storage, order)

    value = unpickle(bytes(_contents(archive, pickle)), classes).value
    return Package(value, partial(read_state, read=read, file_bytes=file_bytes))


def read_legacy(file: BufferedReader, file_bytes: int, classes: Collection[str]) -> Package:
    """Read a package that ``torch.save`` wrote before 1.6 (or with its zip format switched off).

    Raises:
        CheckpointError: damaged, truncated, or a pickle that is no package.
        UnsafeCheckpointError: one of its pickles asks for code.
    """
    pickles = _pickles(file, classes)
    if next(pickles).value != LEGACY_MAGIC:
        raise CheckpointError("the file is a pickle, but not one that torch.save wrote", RESAVE)
    version, system = next(pickles).value, next(pickles).value
    if version != LEGACY_VERSION or not isinstance(system, dict):
        raise CheckpointError(f"the file has no torch format version {LEGACY_VERSION}: it is damaged", AGAIN)
    package, keys = next(pickles), next(pickles).value
    places = _places(file, file_bytes, keys, package.storages)
    order = "little" if system.get("little_endian", True) else "big"

    def read(storage: StorageRef) -> bytearray:
        if storage.key not in places:
            raise CheckpointError(f"the file lacks the storage {shown(storage.key)}: it is damaged", AGAIN)
        file.seek(places[storage.key])
        return _in_order(_fill(file, _length(storage)), storage, order)

    return Package(package.value, partial(read_state, read=read, file_bytes=file_bytes))


class _Sparing(RawIOBase):
    """A file that ``zipfile`` may read, but not more than ``MAX_DIRECTORY`` bytes at once.

    ``zipfile`` takes the length of the table of contents from the file, reads it whole and makes an object of
    every entry, some ten times as large, before the caller sees any of it.
    """

    def __init__(self, file: BufferedReader, file_bytes: int) -> None:
        self.file = file
        self.file_bytes = file_bytes

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = max(self.file_bytes - self.file.tell(), 0)
        if size > MAX_DIRECTORY:
            raise CheckpointError(f"the archive lists {size:,} bytes of members, more than any package")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _members(archive: zipfile.ZipFile, file_bytes: int) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The archive's members by name, and the folder all of them lie in, with a slash at its end."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(
                f"the member {shown(name)} is compressed; torch.save never does that", RESAVE
            )
        if member.flag_bits & 1:
            raise CheckpointError(f"the member {shown(name)} is encrypted", RESAVE)
        if "\\" in name or not all(part not in ("", ".", "..") for part in name.split("/")):
            raise CheckpointError(f"the member {shown(name)} has a path that torch.save never writes", RESAVE)
        if name in members:
            raise CheckpointError(f"the member {shown(name)} is in the archive twice", RESAVE)
        members[name] = member
    if sum(member.file_size for member in members.values()) > file_bytes:
        raise CheckpointError("the members of the archive are larger than the file: they overlap", AGAIN)
    top = next(iter(members), "").partition("/")[0] + "/"
    for name in members:
        if not name.startswith(top):
            raise CheckpointError(f"the member {shown(name)} is outside of {shown(top)}", RESAVE)
    return members, top


def _byte_order(archive: zipfile.ZipFile, member: zipfile.ZipInfo | None) -> str:
    if member is None:
        return "little"
    order = bytes(_contents(archive, member)) if member.file_size <= 16 else b"something long"
    if order not in (b"little", b"big"):
        raise CheckpointError(f"the byte order is {shown(order)}, expected little or big", AGAIN)
    return order.decode()


def _contents(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    """The bytes of a member, their checksum verified."""
    with damage(f"the member {shown(member.filename)} is damaged", _DAMAGE), archive.open(member) as source:
        contents = _fill(source, member.file_size)
        source.read(1)  # the checksum is compared at the end of the member
        return contents


def _fill(source: BufferedReader | IO[bytes], length: int) -> bytearray:
    """The next ``length`` bytes, without a second copy of them in memory."""
    contents = bytearray(length)
    view = memoryview(contents)
    done = 0
    while done < length:
        got = source.readinto(view[done : done + _CHUNK])  # type: ignore[union-attr]
        if not got:
            raise CheckpointError(f"the file ends {length - done:,} bytes too early", AGAIN)
        done += got
    return contents


def _length(storage: StorageRef) -> int:
    return storage.numel * DTYPES[storage.dtype].itemsize


def _in_order(contents: bytearray, storage: StorageRef, order: str) -> bytearray:
    width = DTYPES[storage.dtype].itemsize
    if order != sys.byteorder and width > 1:
        np.frombuffer(contents, dtype=f"u{width}").byteswap(inplace=True)
    return contents


def _pickles(file: BufferedReader, classes: Collection[str]) -> Iterator[Unpickled]:
    """The pickles in a row from the start of ``file``, which is left at the end of the last one taken."""
    position = 0
    while True:
        file.seek(position)
        pickled = unpickle(file.read(MAX_BYTES + 1), classes)
        position += pickled.length
        file.seek(position)
        yield pickled


def _places(
    file: BufferedReader, file_bytes: int, keys: object, storages: dict[str, StorageRef]
) -> dict[str, int]:
    """Where the bytes of each storage start: from the position of ``file`` on, in the order of ``keys``."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("the file has no list of storages: it is damaged", AGAIN)
    places: dict[str, int] = {}
    position = file.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in places:
            raise CheckpointError(f"the storage {shown(key)} is listed twice or never declared", AGAIN)
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or int.from_bytes(head, "little", signed=True) != storage.numel:
            raise CheckpointError(f"the storage {shown(key)} lacks its {storage.numel:,} elements", AGAIN)
        places[key] = position + 8
        position += 8 + _length(storage)
        if position > file_bytes:
            raise CheckpointError(f"the file ends within the storage {shown(key)}: it is truncated", AGAIN)
    return places
