"""Running segments: stages enqueued on streams, over buffers planned once.

    ticket = scheduler.submit(mix)      # returns at once; up to ``capacity`` may be under way
    stems = scheduler.result(ticket)    # waits

A stage on many threads waits at the end of every operator for the slowest of them; segments need nothing of each
other. So a scheduler can run several segments in parallel (``lanes``), each in a pipeline of its own with its share
of the threads, the same weights, and buffers of its own: more songs in an hour, for more memory and a later first
segment.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import MIX
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.errors import DeviceLostError, UsageError
from mrsep_deploy.runtime.memory import Slot, make_slots
from mrsep_deploy.runtime.pipeline import Pipeline
from mrsep_deploy.runtime.runners import Cores, prepare_runners
from mrsep_deploy.runtime.schedule import Mode, make_schedule
from mrsep_deploy.runtime.trace import Trace

SLOTS = 2
"""Segments under way at once in a pipeline: one computing, one being prepared or written out."""


@dataclass(frozen=True)
class Ticket:
    """A submitted batch: which slot it runs in, how many segments it has, its place in the sequence."""

    slot: int
    count: int
    number: int


class Scheduler:
    """Prepares every stage of a bundle on an engine and runs batches of segments through them.

    Args:
        mode: ``sequential``, ``concurrent`` or, on CUDA, ``graph``; the results are identical.
        lanes: how many segments are computed in parallel; more than one for engines on a CPU only.
        trace: whether to note which stage ran when.

    Attributes:
        capacity: batches that may be under way at once.
        buffer_bytes: memory of all tensors.

    Raises:
        EngineError: a stage cannot be prepared.
        UsageError: the mode does not exist on the engine's device, or there are more lanes than threads.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, mode: Mode = "sequential", lanes: int = 1, trace: bool = False
    ) -> None:
        _check(engine, mode, lanes)
        self.device, self.manifest = engine.device, bundle.manifest
        self.schedule = make_schedule(self.manifest, mode)
        self.capacity = SLOTS * lanes
        self.trace = Trace(self.device) if trace else None
        self.buffer_bytes = 0
        self._submitted = 0
        self._closed = False
        device, schedule = self.device, self.schedule
        with contextlib.ExitStack() as stack:
            # What is entered last is closed first: runners, then their streams, then the memory of both.
            memory = stack.enter_context(contextlib.ExitStack())
            if self.trace is not None:
                stack.callback(self.trace.close)
            streams = [
                {
                    name: stack.enter_context(contextlib.closing(device.stream(name)))
                    for name in schedule.streams
                }
                for _ in range(lanes)
            ]
            captured = SLOTS if mode == "graph" else 1
            runners = prepare_runners(bundle, engine, schedule, streams, stack, captured)
            self._pipelines: list[Pipeline] = []
            slots: list[list[Slot]] = []
            for lane in range(lanes):
                cores = Cores(engine.options.budget // lanes) if device.kind == "cpu" else None
                label = f"{lane + 1}: " if lanes > 1 else ""
                self._pipelines.append(
                    Pipeline(device, schedule, streams[lane], runners[lane], cores, self.trace, label, stack)
                )
                places = range(lane, self.capacity, lanes)
                made, size = make_slots(device, self.manifest, schedule, places, memory)
                slots.append(made)
                self.buffer_bytes += size
            self._slots = [slot for side_by_side in zip(*slots, strict=True) for slot in side_by_side]
            self._cleanup = stack.pop_all()

    def run(self, mix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Separate one batch of segments ``[b, C, L]``, ``b`` at most the bundle's batch.

        Returns:
            Stems ``[b, S, C, L]``; a view that the next call but one overwrites.
        """
        return self.result(self.submit(mix))

    def submit(self, mix: NDArray[np.float32]) -> Ticket:
        """Start one batch. ``capacity`` may be under way; an older one that was never collected is lost.

        Raises:
            UsageError: the segments are not ``[b, C, L]``, ``b`` from 1 to the bundle's batch.
            EngineError: the batch that had the slot before has failed, and its result was never asked for.
            DeviceLostError: nothing works on the device any more.
        """
        self._check_open()
        batch, *rest = self.manifest.tensor(MIX).shape
        if mix.ndim != 3 or not 1 <= len(mix) <= batch or list(mix.shape[1:]) != rest:
            raise UsageError(
                f"the segments have the shape {list(mix.shape)}, expected [b, {rest[0]}, {rest[1]}] "
                f"with b from 1 to {batch}"
            )
        slot = self._slots[self._submitted % self.capacity]
        self._settle(slot)
        count = len(mix)
        slot.mix[:count] = mix
        slot.mix[count:] = 0
        slot.number, slot.under_way, slot.error = self._submitted, True, None
        self._submitted += 1
        pipeline = self._pipelines[slot.index % len(self._pipelines)]
        try:
            pipeline.start(slot)
        except Exception as error:
            # On CUDA stages are called here, to enqueue: what they raise is the batch's result all the same.
            slot.error = error
            pipeline.rest()
        except BaseException:
            with contextlib.suppress(DeviceLostError):  # an interruption comes first
                self.abandon()
            raise
        return Ticket(slot.index, count, slot.number)

    def result(self, ticket: Ticket) -> NDArray[np.float32]:
        """Wait for a batch and return its stems ``[b, S, C, L]``; a view into its slot.

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
        """End all that is under way, which is lost: stages that have not begun are left out, the others awaited.

        Raises:
            DeviceLostError: nothing works on the device any more.
        """
        self._forget()
        with contextlib.ExitStack() as every:
            for pipeline in self._pipelines:
                every.callback(pipeline.rest)

    def _forget(self) -> None:
        for slot in self._slots:
            slot.number, slot.under_way, slot.error = -1, False, None

    def close(self) -> None:
        """Stop the streams and let go of runners and memory; what is under way is lost. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._forget()
        try:
            with contextlib.ExitStack() as every:
                for pipeline in self._pipelines:
                    every.callback(pipeline.drain)
        finally:
            self._cleanup.close()
            # Tensors are views that keep their memory alive.
            self._slots, self._pipelines = [], []


def _check(engine: Engine, mode: Mode, lanes: int) -> None:
    """Raise ``UsageError`` for a mode or a number of segments in parallel that there cannot be."""
    device, threads = engine.device, engine.options.budget
    if mode == "graph" and not device.captures:
        raise UsageError(
            f"engine {engine.name} runs on {device.name}, which has no graphs to capture",
            "Choose --mode sequential or concurrent; graphs need a GPU through cuda-python, not pycuda.",
        )
    if mode == "graph" and engine.uncapturable:
        raise UsageError(
            f"runs of engine {engine.name} cannot be captured in a CUDA graph: {engine.uncapturable}",
            "Choose --mode sequential or concurrent, or --engine trt.",
        )
    if lanes != 1 and device.kind != "cpu":
        raise UsageError(
            f"engine {engine.name} runs on {device.name}, where segments do not run side by side",
            "Leave out --lanes; take several segments in one run with --batch N.",
        )
    if lanes != 1 and not 1 <= lanes <= threads:
        raise UsageError(
            f"{lanes} segments side by side were asked for, there are {threads} threads",
            f"Give --lanes 1 to {threads}.",
        )
