"""The files of a bundle: a folder, or one ``.zip`` of it.

Reading an archive distrusts every byte, and writing one gives the same bytes twice. Nothing is unpacked by name:
members are read into memory one at a time, only those the manifest lists, never more than it says. The folder may be
zipped with or without its own name in front.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mrsep_deploy.bundle.manifest_check import FIX, MANIFEST_FILE
from mrsep_deploy.errors import BundleError
from mrsep_deploy.files.parts import new_file
from mrsep_deploy.files.strict_json import shown

MAX_MEMBERS = 1024
MAX_RATIO = 100  # weights hardly compress; deflate can reach a thousand
FREE_BYTES = 64 * 2**20

_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that zip can say; the true time would change the bytes
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError, IndexError, KeyError),
)


class Files(ABC):
    """The files of a bundle by their plain names."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file. Raises ``BundleError`` if there is none or it must not be read."""

    def read(self, name: str, limit: int) -> bytes:
        """A whole file. Raises ``BundleError`` for one of more than ``limit`` bytes, too."""
        size = self.size(name)
        if size > limit:
            raise BundleError(f"{name} has {size} bytes, expected at most {limit}", FIX)
        return self._start(name, size + 1)

    @abstractmethod
    def _start(self, name: str, length: int) -> bytes:
        """Up to ``length`` bytes of a file."""


class Folder(Files):
    """The files of a folder. Links may point within it, never out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def size(self, name: str) -> int:
        with self._readable(name):
            path = self.root / name
            if not path.resolve(strict=True).is_relative_to(self.root.resolve(strict=True)):
                raise BundleError(f"{name} is a link that leaves the bundle", FIX)
            found = path.stat()
            # opening a pipe would wait for ever
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{name} is not a regular file", FIX)
            return found.st_size

    def _start(self, name: str, length: int) -> bytes:
        with self._readable(name), open(self.root / name, "rb") as file:
            return file.read(length)

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise BundleError(f"{name} is missing", FIX) from error
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            fix = "Check its permissions and the disk."
            raise BundleError(f"{name} cannot be read: {error}", fix) from error


class Archive(Files):
    """The members of a zip; sizes are what it declares, and reading verifies their checksums.

    Raises:
        BundleError: not a zip, or one with a member that no honest bundle has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _undamaged(path.name), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = path.stat().st_size
        _check_members(members)
        total = sum(member.file_size for member in members)
        if total > max(FREE_BYTES, MAX_RATIO * size):
            raise BundleError(
                f"the archive claims to unpack {size} bytes to {total}, which no bundle does", FIX
            )
        prefix = _prefix([member.filename for member in members])
        self._members = {
            member.filename[len(prefix) :]: member
            for member in members
            if member.filename.startswith(prefix) and not member.is_dir()
        }

    def size(self, name: str) -> int:
        if name not in self._members:
            raise BundleError(f"{name} is missing from the archive", FIX)
        return self._members[name].file_size

    def _start(self, name: str, length: int) -> bytes:
        with (
            _undamaged(name),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._members[name]) as member,
        ):
            return member.read(length)


def write_zip(path: Path, files: Iterable[tuple[str, bytes]], compress: bool = False) -> None:
    """A zip of these members in this order, stored: equal members give equal archives.

    ``compress`` deflates them: smaller, but the bytes depend on the version of zlib.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with new_file(path) as file, zipfile.ZipFile(file, "w", method, compresslevel=9) as archive:
        for name, data in files:
            member = zipfile.ZipInfo(name, _EPOCH)
            member.compress_type = method
            member.create_system = 3  # Unix, on whatever system: it is what external_attr is read by
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(member, data)


@contextmanager
def _undamaged(name: str) -> Iterator[None]:
    """``zipfile`` has many ways to say that an archive is broken; here it is one."""
    try:
        yield
    except _DAMAGE as error:
        text = " ".join(str(error).split())  # it shows whole names, of up to 65,535 bytes
        brief = text if len(text) <= 120 else text[:117] + "..."
        raise BundleError(f"{name} is damaged or not a zip: {brief}", FIX) from error


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise BundleError(f"the archive has {len(members)} members, expected at most {MAX_MEMBERS}", FIX)
    seen: set[str] = set()
    for member in members:
        reason = _objection(member)
        if reason:
            raise BundleError(f"the archive's member {shown(member.orig_filename)} {reason}", FIX)
        # two names that one file system takes for the same would let one hide the other
        if member.filename.lower() in seen:
            raise BundleError(f"the archive has {shown(member.filename)} twice", FIX)
        seen.add(member.filename.lower())


def _objection(member: zipfile.ZipInfo) -> str:
    """What is wrong with a member, or nothing."""
    # zipfile cuts filename at a NUL; orig_filename is what stands in the archive
    name = member.orig_filename
    if any(ord(character) < 32 or character in "\\:" for character in name):
        return "has a name with control characters, a backslash or a colon"
    if not name or name.startswith("/") or ".." in name.split("/"):
        return "has a name that leaves the bundle"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, expected a regular file"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted, expected an archive without a password"
    if member.compress_type not in _READABLE:
        return f"has compression method {member.compress_type}, expected stored or deflate"
    return ""


def _prefix(names: list[str]) -> str:
    """The folder within the archive that is the bundle: the top, or the one folder with a manifest."""
    if MANIFEST_FILE in names:
        return ""
    found = [name for name in names if name.count("/") == 1 and name.endswith("/" + MANIFEST_FILE)]
    if len(found) != 1:
        what = f"{len(found)} folders with one" if found else "none"
        raise BundleError(f"the archive has {what}, expected a {MANIFEST_FILE}", FIX)
    return found[0][: -len(MANIFEST_FILE)]
