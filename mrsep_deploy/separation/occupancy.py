"""One user at a time: a separator's streams and buffers belong to one song's thread, in the process that made them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from mrsep_deploy.errors import UsageError

_first_process: list[int] = []
"""The process in which music was separated first, if any has been: an inherited list tells a fork from it."""


class Occupancy:
    """Says whether a separator is at work, and where.

    Raises:
        UsageError: this process was forked from one that had made a separator. Threads of ONNX Runtime, OpenVINO and
            PyTorch do not survive a fork, and locks that they held stay locked: what uses them would hang.
    """

    def __init__(self) -> None:
        if not _first_process:
            _first_process.append(os.getpid())
        _require_first_process()
        self._lock = threading.Lock()
        self._owner = 0
        self.closed = False

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Be at work until the block ends.

        Raises:
            UsageError: the separator is at work already, closed, or was made before a fork.
        """
        _require_first_process()
        if self.closed:
            raise UsageError("this Separator is closed", "Make another one.")
        if not self._lock.acquire(blocking=False):
            if self._owner == threading.get_ident():
                raise UsageError(
                    "this Separator is at work on another song",
                    "Finish that song, or close its generator, first.",
                )
            raise UsageError("this Separator is at work in another thread", "Give each thread its own.")
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = 0
            self._lock.release()


def _require_first_process() -> None:
    if os.getpid() != _first_process[0]:
        raise UsageError(
            f"process {os.getpid()} was forked from process {_first_process[0]}, which had made a Separator before",
            'Make the first Separator after the fork, or start processes with multiprocessing\'s "spawn".',
        )
