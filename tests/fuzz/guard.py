"""What a reader may do while it reads a file of a stranger, and what is told on when it does something else.

Python says before it opens a file, starts a program, connects somewhere, imports a module or runs text as code (its
audit events). While a case is read, whatever is not reading in the case's own folder is noted down. Native libraries
do not report what they do; of these, what they may open is limited by the options they are given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEVER = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile"),
    *("subprocess.Popen", "pty.spawn", "socket.", "urllib.", "ftplib.", "pickle.find_class", "ctypes.dlopen"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown"),
    *("os.truncate", "os.utime", "os.putenv", "os.setxattr", "shutil.", "tempfile."),
)
_TEXT = ("<string>", "<stdin>", "<fuzz>")
_OF_ANNOTATIONS = ("typing", "annotationlib")
"""Modules that evaluate the annotations of classes when their types are first asked for; no file's text gets there."""


class Guard:
    """Notes what happens while it watches.

    Args:
        folder: what a reader may read; it is never to change anything, not even there.
    """

    def __init__(self, folder: Path) -> None:
        self.noted: list[str] = []
        self._folder = os.path.realpath(folder) + os.sep
        self._known = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
        self._watching = False
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For one case; what was noted before is forgotten."""
        self.noted.clear()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "exec" and sys._getframe(1).f_globals.get("__name__") in _OF_ANNOTATIONS:
            return
        if self._watching and self._is_wrong(event, arguments):
            self.noted.append(f"{event} {ascii(arguments)[:200]}")

    def _is_wrong(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            return self._is_wrong_to_open(path, flags if isinstance(flags, int) else 0)
        if event == "import":
            return str(arguments[0]).partition(".")[0] not in self._known
        if event == "exec":
            return getattr(arguments[0], "co_filename", _TEXT[0]) in _TEXT
        return event.startswith(_NEVER)

    def _is_wrong_to_open(self, path: object, flags: int) -> bool:
        if flags & _WRITING:
            return True
        if isinstance(path, int):
            return False
        place = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        # a standard module that only an error needs is imported then
        return not place.startswith(self._folder) and not place.endswith((".py", ".pyc", ".so", os.sep))
