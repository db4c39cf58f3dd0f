"""Memory planned once: where tensors and scratch memory lie, so that running a segment allocates nothing.

Two blocks may share memory when everything that touches the one is certainly over before the other is written.
What is certain depends on the order: a total order (one stage at a time) lets a skip connection's memory be used
again as soon as its decoder has run; a partial order (branches side by side) only where one stage waits, directly
or not, for the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import MIX, STEMS, Manifest, Stage, TensorSpec
from mrsep_deploy.devices.interface import Device, Event, Graph, Runner, TensorView
from mrsep_deploy.runtime.schedule import Schedule

ALIGNMENT = 256
"""Bytes; what CUDA's allocator gives, and more than a CPU's vector units need."""


@dataclass(frozen=True)
class BufferPlan:
    """Offset of every tensor in one block of memory, bytes."""

    offsets: Mapping[str, int]
    total_bytes: int


@dataclass
class Slot:
    """Memory for one segment under way.

    Attributes:
        index: of the slot among all of a scheduler's.
        tensors: every tensor of the segment; those of the body are the same in all slots of a pipeline.
        mix, stems: where the host writes and reads, on a CPU the tensors themselves.
        done: everything of the segment is over.
        number: which segment is in the slot, -1 for none; stages of any other leave it alone.
        under_way: the segment has been submitted and not been waited for.
        error: what a stage raised while it was being enqueued.
        graph: the slot's captured graph, once there is one.
    """

    index: int
    tensors: dict[str, TensorView]
    mix: NDArray[Any]
    stems: NDArray[Any]
    done: Event
    number: int = -1
    under_way: bool = False
    error: Exception | None = None
    graph: Graph | None = None


def make_slots(
    device: Device,
    manifest: Manifest,
    schedule: Schedule,
    indices: Sequence[int],
    stack: contextlib.ExitStack,
) -> tuple[list[Slot], int]:
    """Allocate slots that share the body's tensors, and say how many bytes they take; ``stack`` frees them."""
    total = 0

    def block(tensors: list[TensorSpec]) -> dict[str, TensorView]:
        nonlocal total
        plan = plan_buffers(manifest.stages, tensors, schedule.before)
        memory = stack.enter_context(contextlib.closing(device.allocate(plan.total_bytes)))
        total += memory.size
        return {t.name: memory.tensor(plan.offsets[t.name], t.shape, t.dtype) for t in tensors}

    def host_side(tensor: TensorView) -> NDArray[Any]:
        return tensor if isinstance(tensor, np.ndarray) else device.pinned(tensor.shape, tensor.dtype.name)

    body = block([t for t in manifest.tensors if t.name not in schedule.slot_tensors])
    slots = []
    for index in indices:
        tensors = {**body, **block([t for t in manifest.tensors if t.name in schedule.slot_tensors])}
        done = stack.enter_context(contextlib.closing(device.event()))
        slots.append(Slot(index, tensors, host_side(tensors[MIX]), host_side(tensors[STEMS]), done))
    return slots, total


def place_workspaces(
    device: Device, schedule: Schedule, slots: Sequence[Mapping[str, Runner]], stack: contextlib.ExitStack
) -> None:
    """Give runners the scratch memory they need, one block in which stages that never overlap share.

    Args:
        slots: runners by the names of their stages, once for all slots or once for each; those of one stage run on
            one stream, in order, and share.
        stack: frees the block, after the runners are closed.
    """
    sizes = {name: max(runners[name].workspace_bytes for runners in slots) for name in slots[0]}
    plan = plan_workspaces(schedule, sizes)
    if not plan.offsets:
        return
    memory = stack.enter_context(contextlib.closing(device.allocate(plan.total_bytes)))
    for name, offset in plan.offsets.items():
        for runners in slots:
            runners[name].set_workspace(memory.tensor(offset, (sizes[name],), "uint8"))


def plan_workspaces(schedule: Schedule, sizes: Mapping[str, int]) -> BufferPlan:
    """Where each stage's scratch memory lies; ``sizes`` are in bytes, and 0 needs none.

    Two stages may share if they run on one stream, which keeps them in order over all segments; or if both are of
    the same part (head, body, tail) and one waits for the other. Parts overlap with other parts of neighbouring
    segments, so order inside a segment says nothing about them.
    """
    steps = {step.stage.name: step for step in schedule.steps}

    def may_share(a: str, b: str) -> bool:
        first, second = steps[a], steps[b]
        if first.stream == second.stream:
            return True
        return first.part == second.part and (a in schedule.before[b] or b in schedule.before[a])

    return place({name: size for name, size in sizes.items() if size}, may_share)


def plan_buffers(
    stages: Sequence[Stage], tensors: Sequence[TensorSpec], before: Mapping[str, frozenset[str]]
) -> BufferPlan:
    """Where each tensor lies.

    Args:
        stages: in an order in which they can run.
        tensors: the ones to place; the stages may use others, which lie elsewhere.
        before: for every stage, what is over when it starts; see ``Schedule``.

    ``mix`` and ``stems`` keep memory of their own: the caller fills the one and reads the other
    outside the stages.
    """
    writer = {name: stage.name for stage in stages for name in stage.outputs}
    users: dict[str, set[str]] = {spec.name: set() for spec in tensors}
    for stage in stages:
        for name in (*stage.inputs, *stage.outputs):
            if name in users:
                users[name].add(stage.name)

    def over_before(first: str, second: str) -> bool:
        """All that touches ``first`` is over when ``second`` is first written."""
        if MIX in (first, second) or STEMS in (first, second):
            return False
        return users[first] <= before[writer[second]]

    sizes = {spec.name: spec.elements * np.dtype(spec.dtype).itemsize for spec in tensors}
    return place(sizes, lambda a, b: over_before(a, b) or over_before(b, a))


def place(sizes: Mapping[str, int], may_share: Callable[[str, str], bool]) -> BufferPlan:
    """Place blocks, largest first, each at the lowest offset that is free of all it must not share with.

    Args:
        sizes: bytes of every block, rounded up to the alignment here.
        may_share: whether two blocks are never in use at the same time; symmetric.
    """
    placed: list[tuple[int, int, str]] = []
    aligned = {name: -(-size // ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}
    for name, size in sorted(aligned.items(), key=lambda item: (-item[1], item[0])):
        taken = sorted((start, end) for start, end, other in placed if not may_share(name, other))
        offset = 0
        for start, end in taken:
            if offset + size <= start:
                break
            offset = max(offset, end)
        placed.append((offset, offset + size, name))
    total = max((end for _, end, _ in placed), default=0)
    return BufferPlan({name: start for start, _, name in placed}, total)
