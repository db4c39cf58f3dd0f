"""The thread budget on a CPU, shared by stages that run side by side."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Cores:
    """A stage starts when as many cores as it has threads are free, and those that came before it have.

    First come, first served: otherwise a stage that needs every core would wait as long as small ones
    of other segments keep coming. Whoever holds cores waits for nothing else, and nobody gets more than
    there are: no deadlock.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Hold ``count`` cores, all of them if there are not so many."""
        count = min(count, self._count)
        place = object()
        with self._changed:
            self._queue.append(place)
            self._changed.wait_for(lambda: self._queue[0] is place and self._free >= count)
            self._queue.popleft()
            self._free -= count
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()
