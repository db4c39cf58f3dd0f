"""Who ran when: stages on streams, for pictures and for finding where the time goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mrsep_deploy.devices.interface import Device, Event, Stream
from mrsep_deploy.schedule import Step


@dataclass(frozen=True)
class TraceEvent:
    """One run of one stage. Times are seconds since the trace's first segment was submitted."""

    segment: int
    stage: str
    branch: str
    stream: str
    start: float
    end: float


class Trace:
    """Collects runs; on CUDA from timing events that cost no synchronization while running."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._spans: list[tuple[int, Step, float, float]] = []
        self._pending: list[tuple[int, Step, Event, Event]] = []
        self._origin: float | None = None
        self._origin_event: Event | None = None

    def begin(self, segment: int) -> None:
        """A segment is submitted; the first one starts the clock."""
        if self._origin is None:
            self._origin = time.perf_counter()

    @contextlib.contextmanager
    def span(self, segment: int, step: Step, stream: Stream) -> Iterator[None]:
        """Around one stage's run, on the stream it runs on."""
        if self._device.kind == "cpu":
            start = time.perf_counter()
            yield
            with self._lock:
                self._spans.append((segment, step, start, time.perf_counter()))
            return
        before, after = self._device.event(), self._device.event()
        if self._origin_event is None:
            self._origin_event = before
        stream.record(before)
        yield
        stream.record(after)
        self._pending.append((segment, step, before, after))

    def events(self) -> list[TraceEvent]:
        """All runs so far, by start; call it when the segments of interest have been collected."""
        found: list[TraceEvent] = []
        origin = self._origin or 0.0
        with self._lock:
            for segment, step, start, end in self._spans:
                found.append(_event(segment, step, start - origin, end - origin))
        for segment, step, before, after in self._pending:
            assert self._origin_event is not None
            after.synchronize()
            start = before.seconds_since(self._origin_event)
            found.append(_event(segment, step, start, start + after.seconds_since(before)))
        return sorted(found, key=lambda e: e.start)

    def clear(self) -> None:
        """Forget everything; the next segment starts the clock anew."""
        with self._lock:
            self._spans.clear()
        self._pending.clear()
        self._origin = None
        self._origin_event = None


def _event(segment: int, step: Step, start: float, end: float) -> TraceEvent:
    return TraceEvent(segment, step.stage.name, step.stage.branch, step.stream, start, end)
