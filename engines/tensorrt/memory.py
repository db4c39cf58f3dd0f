"""Scratch memory of execution contexts: one block, shared by the stages that can never overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from mrsep_deploy.devices.interface import Device, DeviceTensor, Memory
from mrsep_deploy.errors import EngineError
from mrsep_deploy.runtime.buffers import BufferPlan, aligned, place
from mrsep_deploy.runtime.schedule import Schedule, Step


@runtime_checkable
class NeedsWorkspace(Protocol):
    """A runner whose scratch memory comes from outside."""

    @property
    def workspace_bytes(self) -> int:
        """How much it needs; 0 for none."""

    def set_workspace(self, memory: DeviceTensor) -> None:
        """Use this memory, ``uint8 [workspace_bytes]``, from the next run on."""


def plan_workspaces(schedule: Schedule, sizes: Mapping[str, int]) -> BufferPlan:
    """Where each stage's scratch memory lies.

    Two stages may share if they run on one stream, which keeps them in order over all segments; or if
    both are of the same part (head, body, tail) and one waits for the other. Parts overlap with
    other parts of neighbouring segments, so order inside a segment says nothing about them.

    Args:
        schedule: of one segment.
        sizes: bytes each stage needs; stages that are not named need none.
    """
    steps = {step.stage.name: step for step in schedule.steps}

    def may_share(first: str, second: str) -> bool:
        return _never_overlap(steps[first], steps[second], schedule.before)

    return place({name: aligned(size) for name, size in sizes.items() if size}, may_share)


def _never_overlap(first: Step, second: Step, before: Mapping[str, frozenset[str]]) -> bool:
    if first.stream == second.stream:
        return True
    a, b = first.stage.name, second.stage.name
    return first.part == second.part and (a in before[b] or b in before[a])


def share_workspaces(runners: Mapping[str, object], schedule: Schedule, device: Device) -> Memory | None:
    """Allocate one block and give every runner its part; ``None`` if no runner needs any."""
    needy = {name: r for name, r in runners.items() if isinstance(r, NeedsWorkspace) and r.workspace_bytes}
    if not needy:
        return None
    plan = plan_workspaces(schedule, {name: runner.workspace_bytes for name, runner in needy.items()})
    memory = device.allocate(plan.total_bytes)
    try:
        for name, runner in needy.items():
            tensor = memory.tensor(plan.offsets[name], (runner.workspace_bytes,), "uint8")
            if not isinstance(tensor, DeviceTensor):
                raise EngineError(f"the workspace of stage {name} lies on {device.name}, expected a GPU")
            runner.set_workspace(tensor)
    except BaseException:
        memory.close()
        raise
    return memory
