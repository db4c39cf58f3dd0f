"""Running segments: stages enqueued on streams, over buffers planned once.

    ticket = scheduler.submit(mix)      # returns at once; up to ``slots`` may be under way
    stems = scheduler.result(ticket)    # waits

Inside a segment the host neither waits nor allocates. Between two segments it is the body that is
exclusive: heads and tails (spectrograms, inverses, copies) have buffers for every slot and overlap
with the body of the neighbouring segment.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.buffers import BufferPlan, plan_buffers
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.devices.interface import Event, Graph, Memory, Stream, TensorView
from mrsep_deploy.engines.contract import Engine, Runner
from mrsep_deploy.errors import UsageError
from mrsep_deploy.host import host_runner
from mrsep_deploy.machine import cpu_budget
from mrsep_deploy.manifest import MIX, STEMS, Stage, TensorSpec
from mrsep_deploy.schedule import MAIN, Mode, Schedule, Step, make_schedule
from mrsep_deploy.trace import Trace

SLOTS = 2
"""Segments under way at once: one computing, one being prepared or written out."""


@dataclass(frozen=True)
class Ticket:
    """A submitted batch: which slot it runs in, how many segments it has, its place in the sequence."""

    slot: int
    count: int
    number: int


class _Slot:
    """What one segment under way has for itself."""

    def __init__(self, memory: Memory, tensors: dict[str, TensorView], host: dict[str, NDArray[Any]]) -> None:
        self.memory = memory
        self.tensors = tensors
        self.mix, self.stems = host[MIX], host[STEMS]
        self.number = -1
        self.graph: Graph | None = None


class Scheduler:
    """Prepares every stage of a bundle on an engine and runs batches of segments through them.

    Args:
        bundle: what to run.
        engine: what runs its graphs, and on which device.
        mode: ``sequential``, ``concurrent`` or, on CUDA, ``graph``; the results are identical.
        trace: whether to note who ran when.

    Raises:
        EngineError: a stage cannot be prepared.
        UsageError: the mode does not exist on the engine's device.
    """

    def __init__(self, bundle: Bundle, engine: Engine, mode: Mode = "sequential", trace: bool = False) -> None:
        self.device = engine.device
        if mode == "graph" and not self.device.captures:
            raise UsageError(
                f"engine {engine.name} runs on {self.device.name}, which has no graphs to capture",
                "Choose --mode sequential or concurrent.",
            )
        self.manifest = bundle.manifest
        self.mode = mode
        self.schedule = make_schedule(self.manifest, mode)
        self.trace = Trace(self.device) if trace else None
        self._submitted = 0
        with contextlib.ExitStack() as stack:
            self._streams = {name: self._stream(name, stack) for name in self.schedule.streams}
            self._runners = self._prepare(bundle, engine, stack)
            self._allocate(stack)
            self._cleanup = stack.pop_all()
        self._events = {step.stage.name: self.device.event() for step in self.schedule.steps if step.records}
        self._first = self._streams[self.schedule.steps[0].stream]
        self._last = self._streams[self.schedule.steps[-1].stream]
        self._begun, self._body_done = self.device.event(), self.device.event()
        self._done = [self.device.event() for _ in range(SLOTS)]
        self._joins = {name: self.device.event() for name in self.schedule.streams if name != MAIN}

    # --- preparation

    def _stream(self, name: str, stack: contextlib.ExitStack) -> Stream:
        stream = self.device.stream(name)
        stack.callback(stream.close)
        return stream

    def _prepare(self, bundle: Bundle, engine: Engine, stack: contextlib.ExitStack) -> dict[str, Runner]:
        budget = engine.options.threads or cpu_budget()
        side_by_side = len({s.stream for s in self.schedule.steps if s.part == "body" and not s.exclusive})
        share = max(1, budget // max(side_by_side, 1))
        self._cores = _Cores(budget)
        self._threads: dict[str, int] = {}
        runners: dict[str, Runner] = {}
        for step in self.schedule.steps:
            stage = step.stage
            threads = budget if step.exclusive or self.mode == "sequential" else share
            if step.part != "body" and self.mode != "sequential":
                threads = 1
            self._threads[stage.name] = threads
            if stage.kind == "graph" or engine.graph_transforms:
                runners[stage.name] = engine.prepare(bundle, stage, threads)
            else:
                runners[stage.name] = host_runner(stage, self.manifest.branches, threads)
            stack.callback(runners[stage.name].close)
        return runners

    def _allocate(self, stack: contextlib.ExitStack) -> None:
        schedule = self.schedule
        shared = [t for t in self.manifest.tensors if t.name not in schedule.slot_tensors]
        owned = [t for t in self.manifest.tensors if t.name in schedule.slot_tensors]
        self._body, body = self._block(shared, stack)
        self._slots = []
        for _ in range(SLOTS):
            memory, tensors = self._block(owned, stack)
            host = {name: self._host_side(self.manifest.tensor(name), tensors) for name in (MIX, STEMS)}
            self._slots.append(_Slot(memory, {**body, **tensors}, host))

    def _block(
        self, tensors: list[TensorSpec], stack: contextlib.ExitStack
    ) -> tuple[Memory, dict[str, TensorView]]:
        plan: BufferPlan = plan_buffers(self.manifest.stages, tensors, self.schedule.before)
        memory = self.device.allocate(plan.total_bytes)
        stack.callback(memory.close)
        return memory, {t.name: memory.tensor(plan.offsets[t.name], t.shape, t.dtype) for t in tensors}

    def _host_side(self, spec: TensorSpec, tensors: dict[str, TensorView]) -> NDArray[Any]:
        """Where the host writes the mix and reads the stems: on a CPU the tensor itself."""
        tensor = tensors[spec.name]
        return tensor if isinstance(tensor, np.ndarray) else self.device.pinned(spec.shape, spec.dtype)

    @property
    def buffer_bytes(self) -> int:
        """Memory of all tensors that pass between stages, every slot's included."""
        return self._body.size + sum(slot.memory.size for slot in self._slots)

    # --- running

    def run(self, mix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Separate one batch of segments ``[b, C, L]``, ``b`` at most the bundle's batch.

        Returns:
            Stems ``[b, S, C, L]``; a view that the next call but one overwrites.
        """
        return self.result(self.submit(mix))

    def submit(self, mix: NDArray[np.float32]) -> Ticket:
        """Start one batch; ``SLOTS`` may be under way, the one before those must have been collected.

        Raises:
            UsageError: the segments are not ``[b, C, L]``, ``b`` at most the bundle's batch.
            EngineError: the batch that had the slot before has failed, and nobody has asked for it.
        """
        batch, *rest = self.manifest.tensor(MIX).shape
        if mix.ndim != 3 or len(mix) > batch or list(mix.shape[1:]) != rest:
            raise UsageError(
                f"the segments have the shape {list(mix.shape)}, expected [b, {rest[0]}, {rest[1]}] "
                f"with b up to {batch}"
            )
        number = self._submitted
        slot = self._slots[number % SLOTS]
        self._settle(number % SLOTS)
        count = len(mix)
        slot.mix[:count] = mix
        slot.mix[count:] = 0
        slot.number = number
        self._submitted += 1
        if self.trace is not None:
            self.trace.begin(number)
        if self.mode == "graph":
            self._launch(slot)
            self._streams[MAIN].record(self._done[number % SLOTS])
        else:
            self._pipeline(slot)
            self._last.record(self._done[number % SLOTS])
        return Ticket(number % SLOTS, count, number)

    def result(self, ticket: Ticket) -> NDArray[np.float32]:
        """Wait for a batch and give its stems ``[b, S, C, L]``; a view into its slot.

        Raises:
            EngineError: a stage failed; the message names it.
        """
        slot = self._slots[ticket.slot]
        if slot.number != ticket.number:
            raise UsageError(
                "the batch's slot has been given to a later one, or it was lost with one that failed",
                "Collect results in order, and submit again after a failure.",
            )
        self._settle(ticket.slot)
        stems: NDArray[np.float32] = slot.stems[: ticket.count]
        return stems

    def _settle(self, slot: int) -> None:
        """Wait for the batch in a slot, if there is one; its failure ends all that is under way."""
        if self._slots[slot].number < 0:
            return
        try:
            self._done[slot].synchronize()
        except BaseException:
            self._drain()
            for lost in self._slots:
                lost.number = -1
            # Events keep the failure they passed on; the next batch starts with fresh ones.
            self._body_done = self.device.event()
            self._done = [self.device.event() for _ in range(SLOTS)]
            raise

    def _drain(self) -> None:
        """After a failure: let every stream come to rest and forget the error."""
        for stream in self._streams.values():
            with contextlib.suppress(Exception, KeyboardInterrupt):
                stream.synchronize()

    def _launch(self, slot: _Slot) -> None:
        main = self._streams[MAIN]
        if slot.graph is None:
            # Engines set themselves up at their first run, which must not be captured.
            self._fork_and_join(slot)
            main.synchronize()
            slot.graph = self.device.capture(main, lambda: self._fork_and_join(slot))
            self._cleanup.callback(slot.graph.close)
        slot.graph.launch(main)

    def _fork_and_join(self, slot: _Slot) -> None:
        """One segment that begins and ends on ``main``, as a capture demands."""
        main = self._streams[MAIN]
        others = [(name, stream) for name, stream in self._streams.items() if name != MAIN]
        main.record(self._begun)
        for _, stream in others:
            stream.wait(self._begun)
        self._enqueue(slot)
        for name, stream in others:
            stream.record(self._joins[name])
            main.wait(self._joins[name])

    def _pipeline(self, slot: _Slot) -> None:
        """One segment whose body waits for the body before it; head and tail run beside other bodies."""
        body = {step.stream for step in self.schedule.steps if step.part == "body"} - {MAIN}
        if slot.number > 0:
            for name in body:
                self._streams[name].wait(self._body_done)
        self._enqueue(slot)
        main = self._streams[MAIN]
        for name in body:
            self._streams[name].record(self._joins[name])
            main.wait(self._joins[name])
        main.record(self._body_done)

    def _enqueue(self, slot: _Slot) -> None:
        """Put the steps of one segment on their streams, between copy-in and copy-out."""
        self._copy(slot.tensors[MIX], slot.mix, self._first)
        for step in self.schedule.steps:
            stream = self._streams[step.stream]
            for name in step.waits:
                stream.wait(self._events[name])
            stream.enqueue(self._work(step, slot, stream))
            if step.records:
                stream.record(self._events[step.stage.name])
        self._copy(slot.stems, slot.tensors[STEMS], self._last)

    def _copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        if target is not source:
            self.device.copy(target, source, stream)

    def _work(self, step: Step, slot: _Slot, stream: Stream) -> Callable[[], None]:
        runner = self._runners[step.stage.name]
        tensors = slot.tensors
        number = slot.number

        def run() -> None:
            with self._cores.taken(self._threads[step.stage.name], self.device.kind == "cpu"):
                if self.trace is None:
                    runner(tensors, tensors, stream)
                else:
                    with self.trace.span(number, step, stream):
                        runner(tensors, tensors, stream)

        return run

    def close(self) -> None:
        """Stop the streams and let go of runners and memory. Idempotent."""
        self._drain()
        self._cleanup.close()


class _Cores:
    """The thread budget on a CPU: a stage starts when as many cores as it has threads are free."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, count: int, enforced: bool) -> Iterator[None]:
        if not enforced:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()
