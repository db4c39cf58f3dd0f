"""The thread budget on a CPU, shared by stages that run side by side."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Cores:
    """A stage starts when as many cores as it has threads are free.

    Whoever holds cores waits for nothing else, and nobody asks for more than there are: no deadlock.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Hold ``count`` cores, all of them if there are not so many."""
        count = min(count, self._count)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()
