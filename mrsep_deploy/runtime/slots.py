"""What a segment under way has for itself, and what all segments share: memory, planned once."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import MIX, STEMS, Manifest, TensorSpec
from mrsep_deploy.devices.interface import Device, Event, Graph, Memory, TensorView
from mrsep_deploy.runtime.buffers import plan_buffers
from mrsep_deploy.runtime.schedule import Schedule


@dataclass
class Slot:
    """One place for a segment.

    Attributes:
        index: of the slot.
        tensors: every tensor of the segment; those of the body are the same in all slots.
        mix, stems: where the host writes and reads, on a CPU the tensors themselves.
        done: everything of the segment is over.
        number: which segment is in the slot, -1 for none.
        under_way: nobody has waited for it yet.
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


@dataclass
class Buffers:
    """Blocks of memory, and the tensors that lie in them."""

    device: Device
    manifest: Manifest
    schedule: Schedule
    stack: contextlib.ExitStack
    total_bytes: int = field(default=0, init=False)

    def slots(self, count: int) -> list[Slot]:
        """Slots that share the body's tensors."""
        owned = self.schedule.slot_tensors
        body = self._block([t for t in self.manifest.tensors if t.name not in owned])
        return [self._slot(index, body) for index in range(count)]

    def _slot(self, index: int, body: dict[str, TensorView]) -> Slot:
        owned = self.schedule.slot_tensors
        tensors = {**body, **self._block([t for t in self.manifest.tensors if t.name in owned])}
        done = self.device.event()
        self.stack.callback(done.close)
        return Slot(index, tensors, self._host_side(tensors[MIX]), self._host_side(tensors[STEMS]), done)

    def _block(self, tensors: list[TensorSpec]) -> dict[str, TensorView]:
        plan = plan_buffers(self.manifest.stages, tensors, self.schedule.before)
        memory: Memory = self.device.allocate(plan.total_bytes)
        self.stack.callback(memory.close)
        self.total_bytes += memory.size
        return {t.name: memory.tensor(plan.offsets[t.name], t.shape, t.dtype) for t in tensors}

    def _host_side(self, tensor: TensorView) -> NDArray[Any]:
        if isinstance(tensor, np.ndarray):
            return tensor
        return self.device.pinned(tensor.shape, tensor.dtype.name)
