"""Tensors share memory only when one is certainly over before the other is written."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stage_graphs import random_manifest

from mrsep_deploy.bundle.manifest import MIX, STEMS, Stage, TensorSpec
from mrsep_deploy.devices.cpu import CpuDevice
from mrsep_deploy.runtime.memory import ALIGNMENT, BufferPlan, plan_buffers
from mrsep_deploy.runtime.schedule import MODES, Mode, data_dependencies, make_schedule


@dataclass(frozen=True)
class Case:
    """Stages in an order in which they can run, their tensors, and what each stage waits for directly."""

    stages: tuple[Stage, ...]
    tensors: tuple[TensorSpec, ...]
    waits: Mapping[str, Sequence[str]]

    @property
    def before(self) -> dict[str, frozenset[str]]:
        return closure(self.stages, self.waits)

    def plan(self) -> BufferPlan:
        return plan_buffers(self.stages, self.tensors, self.before)


def closure(stages: Sequence[Stage], waits: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """What is over when each stage starts, given what it waits for directly: Warshall's algorithm on a matrix."""
    names = [stage.name for stage in stages]
    reach = np.array([[a in waits.get(b, ()) for b in names] for a in names])
    for middle in range(len(names)):
        reach |= np.outer(reach[:, middle], reach[middle])
    return {b: frozenset(names[row] for row in np.flatnonzero(reach[:, i])) for i, b in enumerate(names)}


def aligned_bytes(spec: TensorSpec) -> int:
    size = spec.elements * np.dtype(spec.dtype).itemsize
    return size + -size % ALIGNMENT


def laid_out(case: Case, plan: BufferPlan) -> dict[str, NDArray[Any]]:
    """The planned tensors in one block of memory."""
    memory = CpuDevice().allocate(plan.total_bytes)
    return {t.name: np.asarray(memory.tensor(plan.offsets[t.name], t.shape, t.dtype)) for t in case.tensors}


def in_turn(stages: Sequence[Stage]) -> dict[str, list[str]]:
    return {b.name: [a.name] for a, b in itertools.pairwise(stages)}


@st.composite
def cases(draw: st.DrawFn, total: bool | None = None) -> Case:
    """A graph of stages that begins with ``mix`` and ends in ``stems``; every stage waits for what it reads,
    and for any others before it."""
    count = draw(st.integers(1, 8))
    names, stages, waits = [MIX], [], {}
    for index in range(count):
        last = index == count - 1
        inputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        outputs = [STEMS] if last else [f"t{index}_{n}" for n in range(draw(st.integers(1, 3)))]
        stages.append(Stage(f"s{index}", "graph", "shared", tuple(inputs), tuple(outputs), "x.onnx"))
        names += outputs
    needed = data_dependencies(stages)
    one_by_one = draw(st.booleans()) if total is None else total
    for index, stage in enumerate(stages):
        others = [s.name for s in stages[:index]]
        more = draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        waits[stage.name] = (
            in_turn(stages).get(stage.name, []) if one_by_one else [*needed[stage.name], *more]
        )
    sizes = {name: draw(st.integers(1, 100)) for name in names}
    dtypes = {name: draw(st.sampled_from(["float32", "float64"])) for name in names}
    tensors = tuple(TensorSpec(name, (sizes[name],), dtypes[name]) for name in names)
    return Case(tuple(stages), tensors, waits)


def overlapping(case: Case, plan: BufferPlan) -> list[tuple[str, str]]:
    """Pairs of tensors that share at least one byte."""
    ranges = [(plan.offsets[t.name], plan.offsets[t.name] + aligned_bytes(t), t.name) for t in case.tensors]
    return [
        (a[2], b[2])
        for index, a in enumerate(ranges)
        for b in ranges[index + 1 :]
        if a[0] < b[1] and b[0] < a[1]
    ]


def possible_order(case: Case, seed: int) -> list[Stage]:
    """One order in which the stages may run, given only what each waits for; drawn by chance."""
    chance, left, done = random.Random(seed), list(case.stages), set()
    order = []
    while left:
        ready = [stage for stage in left if done.issuperset(case.waits.get(stage.name, ()))]
        stage = chance.choice(ready)
        left.remove(stage)
        done.add(stage.name)
        order.append(stage)
    return order


# --- safety ------------------------------------------------------------------------------------------------


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_tensors_that_may_live_at_once_share_nothing(case: Case) -> None:
    """Two stages may run in either order, or at once, unless one waits for the other (directly or not).

    A tensor lives from the start of the stage that writes it to the end of the last that reads it.
    """
    before = case.before
    writer = {name: stage.name for stage in case.stages for name in stage.outputs}
    readers = {t.name: [s.name for s in case.stages if t.name in s.inputs] for t in case.tensors}

    def certainly_over(first: str, second: str) -> bool:
        ends = [writer[first], *readers[first]]
        return all(end in before[writer[second]] for end in ends)

    for a, b in overlapping(case, case.plan()):
        assert not {MIX, STEMS} & {a, b}  # filled and read outside the stages
        assert certainly_over(a, b) or certainly_over(b, a)


@given(case=cases(), seed=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_no_stage_ever_reads_freed_memory(case: Case, seed: int) -> None:
    """Run in a possible order, on memory that is poisoned with NaN as soon as its tensor is over.

    Each tensor holds its own number; a stage that met another number, or NaN, would read what is not its own.
    """
    arrays = laid_out(case, case.plan())
    numbers = {spec.name: float(index + 1) for index, spec in enumerate(case.tensors)}
    for array in arrays.values():
        array.fill(np.nan)
    arrays[MIX].fill(numbers[MIX])
    order = possible_order(case, seed)
    for position, stage in enumerate(order):
        for name in stage.outputs:
            arrays[name].fill(numbers[name])  # before it has read: a runner may write early
        for name in stage.inputs:
            assert (arrays[name] == numbers[name]).all(), f"{stage.name} reads {name}"
        later = {name for other in order[position + 1 :] for name in other.inputs} | {MIX, STEMS}
        for name in (*stage.inputs, *stage.outputs):
            if name not in later:
                arrays[name].fill(np.nan)
    assert (arrays[MIX] == numbers[MIX]).all()
    assert (arrays[STEMS] == numbers[STEMS]).all()


# --- thrift ------------------------------------------------------------------------------------------------


def chain(length: int, elements: int = 64) -> Case:
    names = [MIX, *(f"t{n}" for n in range(length - 1)), STEMS]
    stages = tuple(
        Stage(f"s{n}", "graph", "shared", (names[n],), (names[n + 1],), "x.onnx") for n in range(length)
    )
    return Case(stages, tuple(TensorSpec(name, (elements,)) for name in names), in_turn(stages))


@pytest.mark.parametrize("length", [3, 4, 10, 50])
def test_a_chain_needs_two_tensors_besides_mix_and_stems(length: int) -> None:
    assert chain(length).plan().total_bytes == (2 + min(length - 1, 2)) * 64 * 4


def test_a_skip_connection_is_free_again_once_its_decoder_has_run() -> None:
    def stage(name: str, inputs: str, outputs: str) -> Stage:
        return Stage(name, "graph", "shared", tuple(inputs.split()), tuple(outputs.split()), "x.onnx")

    stages = (
        stage("encoder.a", MIX, "skip_a"),
        stage("decoder.a", "skip_a", "out_a"),
        stage("encoder.b", MIX, "skip_b"),
        stage("decoder.b", "skip_b", "out_b"),
        stage("fusion", "out_a out_b", STEMS),
    )
    sizes = {MIX: 16, STEMS: 16, "skip_a": 1024, "skip_b": 1024, "out_a": 16, "out_b": 16}
    tensors = tuple(TensorSpec(name, (size,)) for name, size in sizes.items())
    one_by_one = Case(stages, tensors, in_turn(stages)).plan()
    assert one_by_one.offsets["skip_a"] == one_by_one.offsets["skip_b"]
    # Side by side nothing says that one branch is over when the other begins.
    side_by_side = Case(stages, tensors, data_dependencies(stages)).plan()
    assert side_by_side.total_bytes == sum(map(aligned_bytes, tensors)) > one_by_one.total_bytes


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_never_more_than_all_tensors_side_by_side(case: Case) -> None:
    plan = case.plan()
    assert plan.total_bytes <= sum(map(aligned_bytes, case.tensors))
    assert plan.total_bytes == max(plan.offsets[t.name] + aligned_bytes(t) for t in case.tensors)


# --- the order ---------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES))
@settings(max_examples=60, deadline=None)
def test_before_is_the_transitive_closure_of_waits_and_streams(seed: int, mode: Mode) -> None:
    """And all that a stage reads is over when it starts."""
    stages = random_manifest(seed, 1).stages
    schedule, direct, last = make_schedule(random_manifest(seed, 1), mode), {}, {}
    for step in schedule.steps:
        direct[step.stage.name] = [*step.waits, *last.get(step.stream, ())]
        last[step.stream] = (step.stage.name,)
    assert schedule.before == closure(stages, direct)
    for name, needed in data_dependencies(stages).items():
        assert schedule.before[name].issuperset(needed)


# --- memory ------------------------------------------------------------------------------------------------


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_arrays_are_aligned_views_of_one_block(case: Case) -> None:
    plan = case.plan()
    arrays = laid_out(case, plan)
    origin = min(array.ctypes.data for array in arrays.values())
    for spec in case.tensors:
        array = arrays[spec.name]
        assert array.shape == spec.shape
        assert array.dtype == spec.dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % ALIGNMENT == 0
        assert array.ctypes.data - origin == plan.offsets[spec.name]
