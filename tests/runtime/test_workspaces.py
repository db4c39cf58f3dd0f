"""Stages share scratch memory only if they can never run at the same time, over all segments under way."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from bundles import tiny_manifest
from fake_cuda import FakeDriver
from fake_cuda_modules import install
from hypothesis import given, settings
from hypothesis import strategies as st

from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices import open_cuda
from mrsep_deploy.devices.interface import DeviceTensor, Runner, Tensors, TensorView
from mrsep_deploy.runtime.memory import ALIGNMENT, place_workspaces, plan_workspaces
from mrsep_deploy.runtime.schedule import Schedule, Step, make_schedule
from mrsep_deploy.testing import FakeEngine


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Steps on streams of their own part; each waits for some before it, and for its stream's last."""
    steps: list[Step] = []
    before: dict[str, frozenset[str]] = {}
    last: dict[str, str] = {}
    for number in range(draw(st.integers(1, 9))):
        part = draw(st.sampled_from(["head", "body", "tail"]))
        stream = f"{part}{draw(st.integers(0, 2))}"
        name = f"stage{number}"
        waits = {s.stage.name for s in steps if draw(st.booleans())} | (
            {last[stream]} if stream in last else set()
        )
        before[name] = frozenset(waits).union(*(before[other] for other in waits))
        last[stream] = name
        stage = Stage(name, "graph", "shared", (), ())
        steps.append(Step(stage, part, stream, (), False, False))  # type: ignore[arg-type]
    return Schedule(tuple(steps), tuple(last), before, frozenset())


def can_overlap(schedule: Schedule, first: Step, second: Step) -> bool:
    """In two segments under way: on one stream all is in order; a part waits for the same part before it."""
    ordered = first.stage.name in schedule.before[second.stage.name]
    ordered |= second.stage.name in schedule.before[first.stage.name]
    return first.stream != second.stream and not (ordered and first.part == second.part)


@settings(max_examples=200, deadline=None)
@given(schedules(), st.data())
def test_what_can_overlap_shares_nothing(schedule: Schedule, data: st.DataObject) -> None:
    sizes = {step.stage.name: data.draw(st.integers(0, 5000)) for step in schedule.steps}
    plan = plan_workspaces(schedule, sizes)
    assert set(plan.offsets) == {name for name, size in sizes.items() if size}
    assert plan.total_bytes <= sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())
    for first, second in itertools.combinations(schedule.steps, 2):
        names = (first.stage.name, second.stage.name)
        if can_overlap(schedule, first, second) and all(sizes[name] for name in names):
            (a, a_end), (b, b_end) = ((plan.offsets[n], plan.offsets[n] + sizes[n]) for n in names)
            assert a_end <= b or b_end <= a
    for name, offset in plan.offsets.items():
        assert offset % ALIGNMENT == 0
        assert offset + sizes[name] <= plan.total_bytes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_one_stream_needs_as_much_as_its_neediest_stage(sizes: list[int]) -> None:
    steps = [
        Step(Stage(str(i), "graph", "shared", (), ()), "body", "main", (), False, False)
        for i in range(len(sizes))
    ]
    before = {str(i): frozenset(map(str, range(i))) for i in range(len(sizes))}
    schedule = Schedule(tuple(steps), ("main",), before, frozenset())
    plan = plan_workspaces(schedule, {str(i): size for i, size in enumerate(sizes)})
    assert plan.total_bytes == -(-max(sizes) // ALIGNMENT) * ALIGNMENT


class Needy(Runner):
    """A runner that only needs a workspace."""

    workspace_bytes = 0

    def __init__(self, size: int) -> None:
        self.workspace_bytes = size
        self.given: TensorView | None = None

    def set_workspace(self, memory: TensorView) -> None:
        self.given = memory

    def __call__(self, tensors: Tensors) -> None:
        raise AssertionError("it is not run")

    def close(self) -> None:
        raise AssertionError("the caller closes it")


def test_every_needy_runner_is_given_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDriver())
    schedule = make_schedule(tiny_manifest(), "concurrent")
    runners = {"branch.16": Needy(300), "branch.time": Needy(100), "fusion": Needy(0)}
    again = {name: Needy(runner.workspace_bytes) for name, runner in runners.items()}
    device = open_cuda(0)
    with contextlib.ExitStack() as stack:
        place_workspaces(device, schedule, [runners, again], stack)
        given = [runner.given for runner in runners.values()]
        tensors = [tensor for tensor in given if isinstance(tensor, DeviceTensor)]
        assert [tensor.nbytes for tensor in tensors] == [300, 100]
        assert tensors[1].pointer - tensors[0].pointer == 512
        assert given[2] is None
        assert [runner.given for runner in again.values()] == given, "another slot's share them"


def test_a_runner_that_needs_none_takes_none() -> None:
    engine, manifest = FakeEngine(), tiny_manifest()
    stream = engine.device.stream("test")
    runner = engine.prepare(None, manifest.graph_stages[0], 1, stream)  # type: ignore[arg-type]
    assert runner.workspace_bytes == 0
    with pytest.raises(ValueError, match="needs no workspace, found 8 bytes"):
        runner.set_workspace(np.zeros(2, np.float32))
    runner.close()
    stream.close()
