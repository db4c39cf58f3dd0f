"""One segment after another on one set of streams, with the body of each exclusive.

Heads and tails (spectrograms, inverses, copies) have buffers for every slot and overlap with the body of the
neighbouring segment. Inside a segment the host neither waits nor allocates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from mrsep_deploy.bundle.manifest import MIX, STEMS
from mrsep_deploy.devices.interface import Device, Event, Stream, TensorView
from mrsep_deploy.errors import EngineError
from mrsep_deploy.runtime.memory import Slot
from mrsep_deploy.runtime.runners import Cores, Prepared, named, rest
from mrsep_deploy.runtime.schedule import HEAD, MAIN, TAIL, Schedule, Step
from mrsep_deploy.runtime.trace import Trace


class Pipeline:
    """Enqueues the stages of segments on streams.

    Args:
        streams: by the schedule's names; closed by the caller.
        runners: by the names of their stages, once for all slots or once for each; closed by the caller.
        cores: what stages of all its streams share, on a CPU; None on a GPU, where enqueueing takes no cores.
        trace: where runs are noted; None for nowhere.
        label: put before the names of streams in the trace.
        stack: closes events and captured graphs.
    """

    def __init__(
        self,
        device: Device,
        schedule: Schedule,
        streams: Mapping[str, Stream],
        runners: Sequence[Mapping[str, Prepared]],
        cores: Cores | None,
        trace: Trace | None,
        label: str,
        stack: contextlib.ExitStack,
    ) -> None:
        self.device, self.schedule, self.streams = device, schedule, streams
        self._runners, self._cores, self._trace, self._label = runners, cores, trace, label
        self._stack = stack.enter_context(contextlib.ExitStack())

        def event() -> Event:
            return self._stack.enter_context(contextlib.closing(device.event()))

        self._events = {step.stage.name: event() for step in schedule.steps if step.records}
        self._joins = {name: event() for name in schedule.streams if name != MAIN}
        self._begun, self._copied, self._body_done = event(), event(), event()
        self._main = streams[MAIN]
        self._first = streams.get(HEAD, self._main)
        self._last = streams.get(TAIL, self._main)
        body = {step.stream for step in schedule.steps if step.part == "body"} - {MAIN}
        self._body = {name: streams[name] for name in schedule.streams if name in body}

    def start(self, slot: Slot) -> None:
        """Enqueue the segment whose mix is in a slot; ``slot.done`` is recorded at its end."""
        if self._trace is not None:
            # On the stream that begins the segment: another may still be busy with the one before.
            self._trace.begin(slot.number, self._main if self.schedule.mode == "graph" else self._first)
        if self.schedule.mode == "graph":
            self._launch(slot)
            self._main.record(slot.done)
        else:
            self._pipelined(slot)
            self._last.record(slot.done)

    def rest(self) -> None:
        """Wait until all streams are at rest; their errors are forgotten, an interruption is raised.

        The event that crosses segments must not carry a failure into the next.

        Raises:
            DeviceLostError: there is no next.
        """
        try:
            self.drain()
        finally:
            self._main.record(self._body_done)

    def drain(self) -> None:
        """Wait until all streams are at rest; their errors are forgotten, an interruption is raised."""
        with contextlib.ExitStack() as every:
            for stream in self.streams.values():
                every.callback(rest, stream)

    def _launch(self, slot: Slot) -> None:
        if slot.graph is None:
            # Engines set themselves up at their first run, which must not be captured.
            self._fork_and_join(slot)
            self._main.synchronize()
            for name, each in self._runners[slot.index % len(self._runners)].items():
                if why := each.runner.uncapturable():
                    raise EngineError(
                        f"stage {name} cannot be captured in a CUDA graph: {why}",
                        "Choose --mode sequential or concurrent.",
                    )
            slot.graph = self.device.capture(self._main, lambda: self._fork_and_join(slot))
            self._stack.callback(slot.graph.close)
        slot.graph.launch(self._main)

    def _fork_and_join(self, slot: Slot) -> None:
        """One segment that begins and ends on ``main``, as a capture demands."""
        others = {name: stream for name, stream in self.streams.items() if name != MAIN}
        self._main.record(self._begun)
        for stream in others.values():
            stream.wait(self._begun)
        self._enqueue(slot)
        self._join(others, self._main)

    def _pipelined(self, slot: Slot) -> None:
        """One segment whose body waits for the body before it; head and tail run beside other bodies."""
        for stream in self._body.values():
            stream.wait(self._body_done)
        self._enqueue(slot)
        self._join(self._body, self._main)
        self._main.record(self._body_done)
        if self._last is not self._main:
            # The slot is given away when the last stream is done: nothing else may be left to use it.
            self._last.wait(self._body_done)
        if self._first is not self._main:
            self._join({HEAD: self._first}, self._last)

    def _join(self, streams: Mapping[str, Stream], into: Stream) -> None:
        for name, stream in streams.items():
            stream.record(self._joins[name])
            into.wait(self._joins[name])

    def _enqueue(self, slot: Slot) -> None:
        """Put the steps of one segment on their streams, between copy-in and copy-out."""
        self._copy(slot.tensors[MIX], slot.mix, self._first)
        self._first.record(self._copied)
        for step in self.schedule.steps:
            stream = self.streams[step.stream]
            if MIX in step.stage.inputs and stream is not self._first:
                stream.wait(self._copied)
            for name in step.waits:
                stream.wait(self._events[name])
            stream.enqueue(self._work(step, slot, stream))
            if step.records:
                stream.record(self._events[step.stage.name])
        self._copy(slot.stems, slot.tensors[STEMS], self._last)

    def _copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        if target is not source:
            self.device.copy(target, source, stream)

    def _work(self, step: Step, slot: Slot, stream: Stream) -> Callable[[], None]:
        runners = self._runners[slot.index % len(self._runners)]
        prepared, number = runners[step.stage.name], slot.number

        def run() -> None:
            if slot.number != number:  # it was abandoned
                return
            with contextlib.ExitStack() as around:
                around.enter_context(named(step.stage))
                if self._cores is not None:
                    around.enter_context(self._cores.taken(prepared.threads))
                if self._trace is not None:
                    around.enter_context(self._trace.span(number, slot.index, step, self._label, stream))
                prepared.runner(slot.tensors)

        return run
