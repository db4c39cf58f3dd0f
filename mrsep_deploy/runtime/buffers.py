"""Buffers planned once: where every tensor of a segment lies, so that running allocates nothing.

Two tensors may share memory when everything that touches the one is certainly over before the other
is written. What is certain depends on the order: a total order (one stage at a time) lets a skip
connection's memory be used again as soon as its decoder has run; a partial order (branches side by
side) only where one stage waits, directly or not, for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mrsep_deploy.bundle.manifest import MIX, STEMS, Stage, TensorSpec

ALIGNMENT = 256
"""Bytes; what CUDA's allocator gives, and more than a CPU's vector units need."""


@dataclass(frozen=True)
class BufferPlan:
    """Offset of every tensor in one block of memory, bytes."""

    offsets: Mapping[str, int]
    total_bytes: int


def aligned_bytes(spec: TensorSpec) -> int:
    """Size of a tensor rounded up to the alignment."""
    return aligned(spec.elements * np.dtype(spec.dtype).itemsize)


def aligned(size: int) -> int:
    """Bytes rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def happens_before(stages: Sequence[Stage], waits: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """For every stage, all stages that are over when it starts.

    Args:
        stages: in an order in which they can run.
        waits: the stages each one waits for directly.
    """
    before: dict[str, frozenset[str]] = {}
    for stage in stages:
        direct = waits.get(stage.name, ())
        before[stage.name] = frozenset(direct).union(*(before[name] for name in direct))
    return before


def data_dependencies(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """For every stage, the stages whose outputs it reads."""
    producer = {name: stage.name for stage in stages for name in stage.outputs}
    return {
        stage.name: list(dict.fromkeys(producer[name] for name in stage.inputs if name in producer))
        for stage in stages
    }


def plan_buffers(
    stages: Sequence[Stage], tensors: Sequence[TensorSpec], before: Mapping[str, frozenset[str]]
) -> BufferPlan:
    """Place tensors (:func:`place`).

    Args:
        stages: in an order in which they can run.
        tensors: the ones to place; the stages may use others, which lie elsewhere.
        before: for every stage, what is over when it starts (:func:`happens_before`).

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

    sizes = {spec.name: aligned_bytes(spec) for spec in tensors}
    return place(sizes, lambda a, b: over_before(a, b) or over_before(b, a))


def place(sizes: Mapping[str, int], may_share: Callable[[str, str], bool]) -> BufferPlan:
    """Place blocks, largest first, at the lowest offset free of all they could meet.

    Args:
        sizes: bytes of every block, multiples of the alignment.
        may_share: whether two blocks are never in use at the same time; symmetric.
    """
    placed: list[tuple[int, int, str]] = []
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        meets = sorted((start, end) for start, end, other in placed if not may_share(name, other))
        offset = 0
        for start, end in meets:
            if offset + size <= start:
                break
            offset = max(offset, end)
        placed.append((offset, offset + size, name))
    total = max((end for _, end, _ in placed), default=0)
    return BufferPlan({name: start for start, _, name in placed}, total)
