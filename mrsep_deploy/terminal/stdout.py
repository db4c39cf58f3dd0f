"""Standard output whose failures are an ``OutputError``, wherever in the program something is printed."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING

from mrsep_deploy.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def _explained(error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no space left" if full else error.strerror or str(error)
    return OutputError(f"stdout cannot be written: {reason}", "Free some space" if full else "")


class _Stdout(FileIO):
    """The file behind ``sys.stdout``. After its first error it swallows what is still buffered."""

    broken = False

    def write(self, data: ReadableBuffer) -> int:
        size = memoryview(data).nbytes
        if self.broken or not size:  # click writes nothing to find out whether it may write bytes
            return size
        try:
            return super().write(data) or 0
        except OSError as error:
            self.broken = True
            if isinstance(error, BrokenPipeError):
                raise  # the reader has closed the pipe
            raise _explained(error) from error


@contextmanager
def explained_stdout() -> Iterator[None]:
    """Let what is printed in the block fail with an ``OutputError``; nothing where stdout is no file or pipe."""
    before = sys.stdout
    buffer = getattr(before, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # python -u has no buffer between
    if not isinstance(before, TextIOWrapper) or type(raw) is not FileIO:
        yield
        return
    before.flush()
    mine = _Stdout(raw.fileno(), "wb", closefd=False)
    sys.stdout = after = TextIOWrapper(
        mine if buffer is raw else BufferedWriter(mine),  # as python -u has it
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
    try:
        yield
    finally:
        after.flush()
        sys.stdout = before
