"""A folder that stays open: what is made in it stays in it, whatever becomes of its name, and no link leads out.

The first folder is one that a user named; it may be a link. Below it, every folder is opened by its name in the
one above, and a link is refused: another user who can write there could otherwise choose what file is overwritten.
Where the system has no calls relative to an open folder (Windows), names are looked at before they are used.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from mrsep_deploy.errors import OutputError

RELATIVE = {os.open, os.mkdir, os.rename, os.unlink, os.rmdir, os.stat} <= os.supports_dir_fd
"""Whether this system has calls relative to an open folder."""

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its other end


class OpenFolder:
    """A folder to make, replace and remove files in.

    Args:
        path: the folder.
        root: the folder at or above it that the user named; ``path`` itself if None. What lies between is
            opened folder by folder.
        make: make folders that are missing.

    Raises:
        OutputError: a folder between ``root`` and ``path`` is a link.
        OSError: a folder is missing, or no folder, or it cannot be made.
    """

    def __init__(self, path: Path, root: Path | None = None, make: bool = True) -> None:
        root = path if root is None else root
        self.path = root
        between = path.relative_to(root).parts
        if ".." in between:
            raise OutputError(f"{path} leads out of the output folder {root}", "Choose other names")
        self._descriptor: int | None = None
        self._closer: Callable[[], object] = lambda: None
        try:
            if make and not os.path.exists(root):
                root.mkdir(parents=True, exist_ok=True)
            self._enter(root, root, _FOLDER)
            for number, name in enumerate(between, 1):
                self._descend(root.joinpath(*between[:number]), name, make)
        except BaseException:
            self.close()
            raise

    def _enter(self, path: Path, name: str | Path, flags: int) -> None:
        """Holds a folder open, which has this name in the one before; says what it is if it is no folder."""
        if RELATIVE:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
            self._closer()
            self._descriptor = descriptor
            self._closer = weakref.finalize(self, os.close, descriptor)
        else:
            os.scandir(path).close()
        self.path = path

    def _descend(self, path: Path, name: str, make: bool) -> None:
        if make and self.mode(name) is None:
            with contextlib.suppress(FileExistsError):  # another run was faster
                os.mkdir(name if RELATIVE else path, dir_fd=self._descriptor)
        try:
            if not RELATIVE and self._is_link(name):
                raise NotADirectoryError(path)
            self._enter(path, name, _FOLDER | _NO_LINK)
        except OSError as error:
            if self._is_link(name):
                raise OutputError(
                    f"{path} is a link, expected a folder: files never leave the output folder",
                    "Remove the link, or choose the folder that it leads to with -o",
                ) from error
            raise

    def _is_link(self, name: str) -> bool:
        mode = self.mode(name)
        # Windows' links to folders are known from Python 3.12
        junction = getattr(os.path, "isjunction", lambda _: False)
        return mode is not None and (
            stat.S_ISLNK(mode) or (not RELATIVE and bool(junction(self.path / name)))
        )

    def _named(self, name: str) -> str | Path:
        if PurePath(name).name != name:
            raise ValueError(f"{name!r} is no name of a file")
        return name if RELATIVE else self.path / name

    def opener(self, path: str | os.PathLike[str], flags: int) -> int:
        """For ``open(folder.path / name, ..., opener=folder.opener)``: never through a link, never a pipe.

        Raises:
            OutputError: the name is a link, a pipe or another file that is none.
        """
        name = PurePath(path).name
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        mode = self.mode(name)
        if mode is not None and not stat.S_ISREG(mode):
            raise _no_file(self.path / name, mode)
        descriptor = os.open(self._named(name), flags | _NO_LINK | _NO_WAIT, 0o666, dir_fd=self._descriptor)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):  # it took the place in between
            os.close(descriptor)
            raise _no_file(self.path / name, mode)
        return descriptor

    def mode(self, name: str) -> int | None:
        """What a name is, links not followed; None if there is nothing.

        Raises:
            OSError: it cannot be known.
        """
        try:
            return os.stat(self._named(name), dir_fd=self._descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None

    def replace(self, name: str, other: str) -> None:
        """Give a file the other name; what had that name, a link too, is gone."""
        folder = self._descriptor
        os.replace(self._named(name), self._named(other), src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, name: str) -> None:
        """Remove a file, or a link itself."""
        os.unlink(self._named(name), dir_fd=self._descriptor)

    def rmdir(self, name: str) -> None:
        """Remove an empty folder."""
        os.rmdir(self._named(name), dir_fd=self._descriptor)

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """The regular files in it, links not followed."""
        if not RELATIVE:
            names = os.listdir(self.path)
        else:
            readable = os.open(".", os.O_RDONLY, dir_fd=self._descriptor)
            try:
                names = os.listdir(readable)
            finally:
                os.close(readable)
        for name in names:
            with contextlib.suppress(OSError):
                found = os.stat(self._named(name), dir_fd=self._descriptor, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield name, found

    def close(self) -> None:
        """A second call does nothing."""
        self._closer()
        self._descriptor = None

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kind_of(mode: int) -> str:
    """Returns in words what is no regular file, by its mode."""
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a directory"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a pipe or a device")


def _no_file(path: Path, mode: int) -> OutputError:
    return OutputError(
        f"{path} is {kind_of(mode)}, expected a regular file", "Remove it, or choose another folder"
    )
