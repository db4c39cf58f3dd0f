"""Running segments: stages enqueued on streams, over buffers planned once.

    ticket = scheduler.submit(mix)      # returns at once; up to ``slots`` may be under way
    stems = scheduler.result(ticket)    # waits

Inside a segment the host neither waits nor allocates. Between two segments it is the body that is
exclusive: heads and tails (spectrograms, inverses, copies) have buffers for every slot and overlap
with the body of the neighbouring segment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import MIX, STEMS
from mrsep_deploy.devices.interface import Event, Stream, TensorView
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.errors import EngineError, UsageError
from mrsep_deploy.runtime.cores import Cores
from mrsep_deploy.runtime.runners import Prepared, named, prepare_runners
from mrsep_deploy.runtime.schedule import HEAD, MAIN, TAIL, Mode, Step, make_schedule
from mrsep_deploy.runtime.slots import Buffers, Slot
from mrsep_deploy.runtime.trace import Trace

SLOTS = 2
"""Segments under way at once: one computing, one being prepared or written out."""


@dataclass(frozen=True)
class Ticket:
    """A submitted batch: which slot it runs in, how many segments it has, its place in the sequence, its lane."""

    slot: int
    count: int
    number: int
    lane: int = 0


@dataclass(frozen=True)
class Share:
    """What one of several schedulers side by side has: CPU threads, and runners by the names of their stages."""

    threads: int
    prepared: Mapping[str, Prepared]


class Scheduler:
    """Prepares every stage of a bundle on an engine and runs batches of segments through them.

    Args:
        bundle: what to run.
        engine: what runs its graphs, and on which device.
        mode: ``sequential``, ``concurrent`` or, on CUDA, ``graph``; the results are identical.
        trace: whether to note who ran when.
        share: for one of several schedulers side by side, its threads and runners, which are not its to close.

    Raises:
        EngineError: a stage cannot be prepared.
        UsageError: the mode does not exist on the engine's device.
    """

    capacity = SLOTS
    """Batches that may be under way at once."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        mode: Mode = "sequential",
        trace: bool = False,
        share: Share | None = None,
    ) -> None:
        self.device = engine.device
        if mode == "graph" and not self.device.captures:
            raise UsageError(
                f"engine {engine.name} runs on {self.device.name}, which has no graphs to capture",
                "Choose --mode sequential or concurrent; graphs need a GPU through cuda-python, not pycuda.",
            )
        if mode == "graph" and engine.uncapturable:
            raise UsageError(
                f"runs of engine {engine.name} cannot be captured in a CUDA graph: {engine.uncapturable}",
                "Choose --mode sequential or concurrent, or --engine trt.",
            )
        self.manifest = bundle.manifest
        self.mode = mode
        self.schedule = make_schedule(self.manifest, mode)
        self._submitted = 0
        self._live_from = 0
        self._closed = False
        with contextlib.ExitStack() as stack:
            # Closed in reverse: streams come to an end before what their work uses goes.
            budget = share.threads if share else engine.options.budget
            self._prepared: Mapping[str, Prepared] = (
                share.prepared
                if share
                else prepare_runners(bundle, engine, self.schedule, mode, budget, stack)[0]
            )
            # Kernels of a GPU are not the processor's work: there enqueueing takes no cores.
            self._cores = Cores(budget) if self.device.kind == "cpu" else None
            buffers = Buffers(self.device, self.manifest, self.schedule, stack)
            self._slots = buffers.slots(SLOTS)
            self.buffer_bytes = buffers.total_bytes
            self.trace = Trace(self.device) if trace else None
            if self.trace is not None:
                stack.callback(self.trace.close)
            recorded = [step.stage.name for step in self.schedule.steps if step.records]
            self._events = {name: self._event(stack) for name in recorded}
            self._joins = {name: self._event(stack) for name in self.schedule.streams if name != MAIN}
            self._begun, self._copied, self._body_done = (self._event(stack) for _ in range(3))
            self._streams = {name: self._stream(name, stack) for name in self.schedule.streams}
            if share is None:
                # A session that was made for a stream still uses it when it goes.
                stack.callback(self._close_runners)
            self._cleanup = stack.pop_all()
        self._main = self._streams[MAIN]
        self._first = self._streams.get(HEAD, self._main)
        self._last = self._streams.get(TAIL, self._main)
        body = {step.stream for step in self.schedule.steps if step.part == "body"} - {MAIN}
        self._body = {name: self._streams[name] for name in self.schedule.streams if name in body}

    # --- preparation

    def _stream(self, name: str, stack: contextlib.ExitStack) -> Stream:
        stream = self.device.stream(name)
        stack.callback(stream.close)
        return stream

    def _event(self, stack: contextlib.ExitStack) -> Event:
        event = self.device.event()
        stack.callback(event.close)
        return event

    # --- running

    def run(self, mix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Separate one batch of segments ``[b, C, L]``, ``b`` at most the bundle's batch.

        Returns:
            Stems ``[b, S, C, L]``; a view that the next call but one overwrites.
        """
        return self.result(self.submit(mix))

    def submit(self, mix: NDArray[np.float32]) -> Ticket:
        """Start one batch. ``SLOTS`` may be under way; an older one that was never collected is lost.

        Raises:
            UsageError: the segments are not ``[b, C, L]``, ``b`` from 1 to the bundle's batch.
            EngineError: the batch that had the slot before has failed, and nobody has asked for it.
        """
        self._check_mix(mix)
        slot = self._slots[self._submitted % SLOTS]
        self._settle(slot)
        count = len(mix)
        slot.mix[:count] = mix
        slot.mix[count:] = 0
        slot.number, slot.under_way, slot.error = self._submitted, True, None
        self._submitted += 1
        try:
            self._start(slot)
        except Exception as error:
            # On CUDA stages are called here, to enqueue: what they raise is the batch's result all the same.
            slot.error = error
            self._rest()
        except BaseException:
            self.abandon()
            raise
        return Ticket(slot.index, count, slot.number)

    def result(self, ticket: Ticket) -> NDArray[np.float32]:
        """Wait for a batch and give its stems ``[b, S, C, L]``; a view into its slot.

        Raises:
            EngineError: a stage failed; the message names it. All that was under way is lost.
            UsageError: the batch was lost, or its slot has been given to a later one.
        """
        self._check_open()
        slot = self._slots[ticket.slot]
        if slot.number != ticket.number:
            raise UsageError(
                "the batch's slot has been given to a later one, or it was lost with one that failed",
                "Collect results in order, and submit again after a failure.",
            )
        self._settle(slot)
        stems: NDArray[np.float32] = slot.stems[: ticket.count]
        return stems

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this Separator is closed", "Make another one.")

    def _check_mix(self, mix: NDArray[np.float32]) -> None:
        self._check_open()
        batch, *rest = self.manifest.tensor(MIX).shape
        if mix.ndim != 3 or not 1 <= len(mix) <= batch or list(mix.shape[1:]) != rest:
            raise UsageError(
                f"the segments have the shape {list(mix.shape)}, expected [b, {rest[0]}, {rest[1]}] "
                f"with b from 1 to {batch}"
            )

    def _settle(self, slot: Slot) -> None:
        """Wait for the batch in a slot, if there is one; its failure ends all that is under way."""
        if not slot.under_way:
            return
        try:
            if slot.error is not None:
                raise slot.error
            slot.done.synchronize()
            if self.trace is not None:
                self.trace.finished(slot.number, slot.index)
        except BaseException:
            self.abandon()
            raise
        slot.under_way = False

    def abandon(self) -> None:
        """End all that is under way, which is lost: stages that have not begun are left out, the others awaited."""
        self._live_from = self._submitted
        for slot in self._slots:
            slot.number, slot.under_way, slot.error = -1, False, None
        self._rest()

    def _rest(self) -> None:
        """Come to rest after a failure; the event that crosses segments must not carry it into the next."""
        try:
            self._drain()
        finally:
            with contextlib.suppress(EngineError):  # a lost GPU says so at the next call
                self._main.record(self._body_done)

    def _close_runners(self) -> None:
        for prepared in self._prepared.values():
            prepared.runner.close()

    def _drain(self) -> None:
        """Let every stream come to rest and forget its error."""
        interrupts = [error for stream in self._streams.values() if (error := _rested(stream))]
        if interrupts:
            raise interrupts[0]

    def _start(self, slot: Slot) -> None:
        if self.trace is not None:
            self.trace.begin(slot.number, self._main)
        if self.mode == "graph":
            self._launch(slot)
            self._main.record(slot.done)
        else:
            self._pipeline(slot)
            self._last.record(slot.done)

    def _launch(self, slot: Slot) -> None:
        if slot.graph is None:
            # Engines set themselves up at their first run, which must not be captured.
            self._fork_and_join(slot)
            self._main.synchronize()
            slot.graph = self.device.capture(self._main, lambda: self._fork_and_join(slot))
            self._cleanup.callback(slot.graph.close)
        slot.graph.launch(self._main)

    def _fork_and_join(self, slot: Slot) -> None:
        """One segment that begins and ends on ``main``, as a capture demands."""
        others = {name: stream for name, stream in self._streams.items() if name != MAIN}
        self._main.record(self._begun)
        for stream in others.values():
            stream.wait(self._begun)
        self._enqueue(slot)
        self._join(others, self._main)

    def _pipeline(self, slot: Slot) -> None:
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

    def _join(self, streams: dict[str, Stream], into: Stream) -> None:
        for name, stream in streams.items():
            stream.record(self._joins[name])
            into.wait(self._joins[name])

    def _enqueue(self, slot: Slot) -> None:
        """Put the steps of one segment on their streams, between copy-in and copy-out."""
        self._copy(slot.tensors[MIX], slot.mix, self._first)
        self._first.record(self._copied)
        for step in self.schedule.steps:
            stream = self._streams[step.stream]
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
        prepared = self._prepared[step.stage.name]
        tensors, number = slot.tensors, slot.number

        def run() -> None:
            if number < self._live_from:
                return
            with contextlib.ExitStack() as around:
                around.enter_context(named(step.stage))
                if self._cores is not None:
                    around.enter_context(self._cores.taken(prepared.threads))
                if self.trace is not None:
                    around.enter_context(self.trace.span(number, slot.index, step, stream))
                prepared.runner(tensors, tensors, stream)

        return run

    def close(self) -> None:
        """Stop the streams and let go of runners and memory; what is under way is lost. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._live_from = self._submitted
        try:
            self._drain()
        finally:
            self._cleanup.close()
            # Tensors are views that keep their memory alive.
            self._slots, self._prepared = [], {}


def _rested(stream: Stream) -> KeyboardInterrupt | None:
    """Wait for a stream. Its own error is known to whoever asks; an interruption is given back."""
    try:
        stream.synchronize()
    except KeyboardInterrupt as interrupt:
        return interrupt
    except (Exception, SystemExit):
        return None
    return None
