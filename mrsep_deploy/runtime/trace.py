"""Which stage ran when and on which stream: for pictures, and for finding where the time goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mrsep_deploy.devices.interface import Device, Event, Stream
from mrsep_deploy.runtime.schedule import Step

LIMIT = 256
"""Segments a trace keeps, the first ones: a song of hours must not fill the memory with them."""


@dataclass(frozen=True)
class TraceEvent:
    """One run of one stage. Times are seconds since the trace's first segment was submitted."""

    segment: int
    stage: str
    branch: str
    stream: str
    start: float
    end: float


@dataclass(frozen=True)
class _Timers:
    """The events around one stage in one slot; every segment in that slot records them anew."""

    step: Step
    label: str
    before: Event
    after: Event


class Trace:
    """Collects the runs of segments that were collected themselves.

    On a CPU a stage takes its own times. On CUDA timed events do, which need no synchronization while
    running and work inside a captured graph too; they are read when their segment is over.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._found: list[TraceEvent] = []
        self._timers: dict[tuple[int, str], _Timers] = {}
        self._origin: float | None = None
        self._origin_event: Event | None = None
        self._first = self._end = 0

    def begin(self, segment: int, stream: Stream) -> None:
        """A segment is submitted; the first one starts the clock, on CUDA on ``stream``, where it begins."""
        if self._origin is None:
            self._origin = time.perf_counter()
            self._first, self._end = segment, segment + LIMIT
            if self._device.kind == "cuda":
                self._origin_event = self._origin_event or self._device.event(timed=True)
                stream.record(self._origin_event)

    @contextlib.contextmanager
    def span(self, segment: int, slot: int, step: Step, label: str, stream: Stream) -> Iterator[None]:
        """Note one stage's run, around which this is; ``label`` is put before the stream's name."""
        if self._device.kind == "cpu":
            start = time.perf_counter()
            yield
            self._add(segment, step, label, start, time.perf_counter(), self._origin or 0.0)
            return
        place = (slot, step.stage.name)
        if place not in self._timers:
            before, after = (self._device.event(timed=True) for _ in range(2))
            self._timers[place] = _Timers(step, label, before, after)
        timers = self._timers[place]
        stream.record(timers.before)
        yield
        stream.record(timers.after)

    def finished(self, segment: int, slot: int) -> None:
        """A segment is over: read its timers, before the next one in its slot takes them."""
        if (
            self._origin_event is None or segment < self._first
        ):  # it was under way before the clock was started
            return
        for timers in (found for (used, _), found in self._timers.items() if used == slot):
            start = timers.before.seconds_since(self._origin_event)
            end = start + timers.after.seconds_since(timers.before)
            self._add(segment, timers.step, timers.label, start, end, 0.0)

    def _add(self, segment: int, step: Step, label: str, start: float, end: float, origin: float) -> None:
        if segment >= self._end:
            return
        stage, stream = step.stage, f"{label}{step.stream}"
        event = TraceEvent(segment, stage.name, stage.branch, stream, start - origin, end - origin)
        with self._lock:
            self._found.append(event)

    def events(self) -> list[TraceEvent]:
        """All runs so far, by start; call it when the segments of interest have been collected."""
        with self._lock:
            return sorted(self._found, key=lambda e: e.start)

    def clear(self) -> None:
        """Forget everything; the next segment starts the clock anew."""
        with self._lock:
            self._found.clear()
        self._origin = None

    def close(self) -> None:
        """Let the timers go; what was found stays. Idempotent."""
        for timers in self._timers.values():
            timers.before.close()
            timers.after.close()
        self._timers.clear()
        if self._origin_event is not None:
            self._origin_event.close()
            self._origin_event = None
