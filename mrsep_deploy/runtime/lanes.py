"""Segments side by side, each on its share of the threads.

A stage on many threads waits at the end of every operator for the slowest of them; segments need nothing of
each other. So several schedulers take segments in turn, each with its share of the threads, the same
weights, and buffers of its own: more songs in an hour, for more memory and a later first segment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.errors import UsageError
from mrsep_deploy.runtime.runners import prepare_runners
from mrsep_deploy.runtime.schedule import Mode, make_schedule
from mrsep_deploy.runtime.scheduler import SLOTS, Scheduler, Share, Ticket
from mrsep_deploy.runtime.trace import Trace, TraceEvent


class Lanes:
    """Runs batches of segments as :class:`Scheduler` does, several at a time; for engines on a CPU.

    Args:
        bundle: what to run.
        engine: what runs its graphs.
        lanes: how many segments are computed at once.
        mode: how branches are scheduled within a segment.
        trace: whether to note who ran when.

    Raises:
        EngineError: a stage cannot be prepared.
        UsageError: the engine does not compute on a CPU, or there are more lanes than threads.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, lanes: int, mode: Mode = "sequential", trace: bool = False
    ) -> None:
        check_lanes(engine, lanes)
        self.device = engine.device
        self.mode = mode
        self.capacity = SLOTS * lanes
        self._submitted = 0
        self._closed = False
        threads = engine.options.budget // lanes
        schedule = make_schedule(bundle.manifest, mode)
        with contextlib.ExitStack() as stack:
            shares = prepare_runners(bundle, engine, schedule, mode, threads, stack, lanes)
            self._lanes: list[Scheduler] = []
            for prepared in shares:
                lane = Scheduler(bundle, engine, mode, trace, Share(threads, prepared))
                stack.callback(lane.close)
                self._lanes.append(lane)
            self._cleanup = stack.pop_all()
        self.buffer_bytes = sum(lane.buffer_bytes for lane in self._lanes)
        traces = [lane.trace for lane in self._lanes if lane.trace is not None]
        self.trace = LaneTraces(traces) if traces else None

    def run(self, mix: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Scheduler.run`; one batch alone runs in one lane."""
        return self.result(self.submit(mix))

    def submit(self, mix: NDArray[np.float32]) -> Ticket:
        """Start one batch in the next lane. ``capacity`` may be under way; see :meth:`Scheduler.submit`."""
        number = self._submitted % len(self._lanes)
        with self._all_or_nothing():
            ticket = self._lanes[number].submit(mix)
        self._submitted += 1
        return replace(ticket, lane=number)

    def result(self, ticket: Ticket) -> NDArray[np.float32]:
        """Wait for a batch and give its stems ``[b, S, C, L]``; see :meth:`Scheduler.result`."""
        with self._all_or_nothing():
            return self._lanes[ticket.lane].result(ticket)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A batch that fails takes all that is under way with it, as in one scheduler."""
        try:
            yield
        except UsageError:
            raise
        except BaseException:
            for lane in self._lanes:
                lane.abandon()
            raise

    def close(self) -> None:
        """Stop all lanes; what is under way is lost. Idempotent."""
        if not self._closed:
            self._closed = True
            self._cleanup.close()


class LaneTraces:
    """The traces of all lanes as one: lanes put their streams beside each other."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._traces = traces

    def events(self) -> list[TraceEvent]:
        """All runs so far, by start."""
        origins = [trace.origin for trace in self._traces]
        first = min((origin for origin in origins if origin is not None), default=0.0)
        found: list[TraceEvent] = []
        for lane, (trace, origin) in enumerate(zip(self._traces, origins, strict=True)):
            later = 0.0 if origin is None else origin - first
            for event in trace.events():
                segment = event.segment * len(self._traces) + lane
                start, end = event.start + later, event.end + later
                stream = f"{lane + 1}: {event.stream}"
                found.append(replace(event, segment=segment, stream=stream, start=start, end=end))
        return sorted(found, key=lambda event: event.start)

    def clear(self) -> None:
        """Forget everything."""
        for trace in self._traces:
            trace.clear()


def check_lanes(engine: Engine, lanes: int) -> None:
    """Raise ``UsageError`` unless that many segments can be computed side by side."""
    threads = engine.options.budget
    if engine.device.kind != "cpu":
        raise UsageError(
            f"engine {engine.name} runs on {engine.device.name}, where segments do not run side by side",
            "Leave out --lanes; export with --batch N for several segments in one run.",
        )
    if not 1 <= lanes <= threads:
        raise UsageError(
            f"{lanes} segments side by side were asked for, there are {threads} threads",
            f"Give --lanes 1 to {threads}.",
        )
