"""The scheduler on streams that really run side by side: any graph of stages, on the CPU and on CUDA.

Each stage checks that what it reads belongs to its segment and stays as it is while it runs
(``stage_graphs``); the results are those of the stages run one by one, to the last bit.
"""

from __future__ import annotations

import _thread
import gc
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_cuda_modules import install
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage_graphs import WatchingEngine, bundle_of, names_of, random_manifest, reference, segment

from mrsep_deploy.bundle.manifest import STEMS, Manifest
from mrsep_deploy.devices import CUDA_PYTHON, PYCUDA, open_cuda
from mrsep_deploy.devices.cpu import CpuDevice
from mrsep_deploy.devices.interface import Device
from mrsep_deploy.errors import DeviceLostError, EngineError, MrsepError, UsageError
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.runtime.scheduler import SLOTS, Scheduler
from mrsep_deploy.verification.chain import Chain

pytestmark = pytest.mark.timeout(120)

Place = tuple[str, Mode]
PLACES: tuple[Place, ...] = (
    ("cpu", "sequential"),
    ("cpu", "concurrent"),
    (CUDA_PYTHON, "sequential"),
    (CUDA_PYTHON, "concurrent"),
    (CUDA_PYTHON, "graph"),
    (PYCUDA, "concurrent"),
)
on_cuda = pytest.mark.parametrize("place", PLACES[2:], ids=lambda place: "-".join(place))
places = pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place))


@dataclass
class Case:
    """A scheduler over a random model, and everything around it that a test may look at."""

    manifest: Manifest
    engine: WatchingEngine
    device: Device
    driver: FakeDriver | None
    scheduler: Scheduler

    def check(self, number: int, found: Any) -> None:
        np.testing.assert_array_equal(found, reference(self.manifest, self.mix(number, len(found))))

    def mix(self, number: int, count: int = 1) -> Any:
        return segment(number, self.manifest, count)


@contextmanager
def opened(
    place: Place, seed: int = 1, batch: int = 1, *, threads: int = 2, nap: float = 0.0, trace: bool = False
) -> Iterator[Case]:
    """A case; at its end nothing may be left: no thread, no memory, no runner, no rule broken."""
    kind, mode = place
    before, driver = threading.active_count(), None if kind == "cpu" else FakeDriver(seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        if driver is not None:
            install(patch, driver)
        device: Device = CpuDevice() if kind == "cpu" else open_cuda(0, kind)
        engine = WatchingEngine(device, driver, threads=threads, nap=nap, seed=seed)
        manifest = random_manifest(seed, batch)
        with closing(Scheduler(bundle_of(manifest), engine, mode, trace=trace)) as scheduler:
            yield Case(manifest, engine, device, driver, scheduler)
        del scheduler
        if driver is not None and driver.lost:
            driver.end()
        if driver is not None and driver.alive():
            gc.collect()  # a caught error may be part of a cycle
        assert device.memory_used() == 0
        assert threading.active_count() == before
        assert sorted(engine.closed) == sorted(names_of(manifest))
        assert engine.violations == []
        if driver is not None and driver.lost is None:
            assert driver.violations == []
            assert driver.alive() == {}
        device.close()


def collect_all(case: Case, numbers: list[int], count: int) -> None:
    """Submit segments with as many under way as there are slots."""
    pending: deque[Any] = deque()
    for number in numbers:
        if len(pending) == SLOTS:
            done, ticket = pending.popleft()
            case.check(done, case.scheduler.result(ticket))
        pending.append((number, case.scheduler.submit(case.mix(number, count))))
    for done, ticket in pending:
        case.check(done, case.scheduler.result(ticket))


# --- any graph, any timing ---------------------------------------------------------------------------------


@places
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    threads=st.integers(1, 5),
    nap=st.sampled_from([0.0, 0.001, 0.002]),
    segments=st.integers(1, 6),
    trace=st.booleans(),
)
def test_any_graph_gives_what_its_stages_give_one_by_one(
    place: Place, seed: int, batch: int, threads: int, nap: float, segments: int, trace: bool
) -> None:
    with opened(place, seed, batch, threads=threads, nap=nap, trace=trace) as case:
        count = 1 + seed % batch
        collect_all(case, list(range(1, segments + 1)), count)
        if case.scheduler.trace is not None:
            events = case.scheduler.trace.events()
            assert len(events) == segments * len(case.manifest.stages)
            assert all(event.start <= event.end for event in events)


@places
@pytest.mark.parametrize("kind", ["side", "idle_head"])
def test_a_slow_stage_that_nobody_waits_for(place: Place, kind: str) -> None:
    """Its segment is not over before it is, else the next but one would write what it reads."""
    seed = next(s for s in range(10_000) if ends_with(kind, names_of(random_manifest(s, 1))))
    with opened(place, seed) as case:
        case.engine.slow = {names_of(case.manifest)[-1]: 0.02}
        collect_all(case, list(range(1, 6)), 1)


def ends_with(kind: str, names: list[str]) -> bool:
    """Such a stage comes last, and no stage of the others needs every core, which would wait for it."""
    encoders = [name for name in names if name.startswith("encoder.")]
    return names[-1].startswith(f"{kind}.") and len(encoders) > 1 and "bottleneck" not in names


@places
def test_traced_stages_follow_their_data(place: Place) -> None:
    with opened(place, seed=11, nap=0.001, trace=True) as case:
        collect_all(case, [1, 2, 3, 4], 1)
        assert case.scheduler.trace is not None
        events = case.scheduler.trace.events()
        runs = {(event.segment, event.stage): event for event in events}
        assert len(runs) == len(events) == 4 * len(case.manifest.stages)
        writer = {name: stage.name for stage in case.manifest.stages for name in stage.outputs}
        for (number, name), run in runs.items():
            for needed in next(s for s in case.manifest.stages if s.name == name).inputs:
                if needed in writer:
                    assert runs[number, writer[needed]].end <= run.start + 1e-6
        case.scheduler.trace.clear()
        case.check(5, case.scheduler.run(case.mix(5)))
        assert {event.segment for event in case.scheduler.trace.events()} == {4}


# --- resources ---------------------------------------------------------------------------------------------


@places
@pytest.mark.parametrize("trace", [False, True])
def test_a_warm_segment_makes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch, trace: bool) -> None:
    """No stream, event or memory; and Python's own objects are gone when the segment is."""
    with opened(place, seed=5, batch=2, trace=trace) as case:
        mix = case.mix(1, 2)
        for _ in range(2 * SLOTS):
            case.scheduler.run(mix)
        for name in ("stream", "event", "allocate", "pinned", "capture"):
            monkeypatch.setattr(
                case.device, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called")
            )
        if case.scheduler.trace is not None:
            case.scheduler.trace.clear()
        case.engine.calls.clear()
        grown = _growth(lambda: case.scheduler.run(mix), 20)
        monkeypatch.undo()
        found = 0 if case.scheduler.trace is None else len(case.scheduler.trace.events())
        assert grown < 30_000 + 500 * found


def _growth(run: Callable[[], object], times: int) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        run()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            run()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@places
def test_closing_lets_the_memory_itself_go(place: Place) -> None:
    """Not only the accounts: the scheduler object is still there, the blocks are not."""
    with opened(place, seed=3, batch=3) as case:
        case.scheduler.run(case.mix(1))
        held = case.scheduler.buffer_bytes
        assert held == case.device.memory_used() > 0
        case.scheduler.close()
        assert case.scheduler._slots == []
        case.scheduler.close()
        for use in (lambda: case.scheduler.run(case.mix(1)), lambda: case.scheduler.submit(case.mix(1))):
            with pytest.raises(UsageError, match="closed"):
                use()


@places
def test_closing_with_work_under_way(place: Place) -> None:
    """What has not begun is left out; the fixture looks for what is left."""
    with opened(place, seed=7, nap=0.005) as case:
        for number in range(SLOTS):
            case.scheduler.submit(case.mix(number))


@places
def test_tickets_that_nobody_collects(place: Place) -> None:
    with opened(place, seed=9, nap=0.001) as case:
        for number in range(3 * SLOTS):
            ticket = case.scheduler.submit(case.mix(number))
        case.check(number, case.scheduler.result(ticket))
        case.check(number, case.scheduler.result(ticket))  # twice is no harm


@places
@pytest.mark.parametrize("call", ["allocate", "stream", "event", "prepare"])
def test_a_scheduler_that_cannot_be_made_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with opened(place, seed=2, threads=1) as case:
        used, engine = case.device.memory_used(), WatchingEngine(case.device, case.driver)
        where: Any = engine if call == "prepare" else case.device
        original, calls, alive = getattr(where, call), [0], case.driver and case.driver.alive()

        def second_fails(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                raise EngineError("there is none left")
            return original(*arguments, **named)

        monkeypatch.setattr(where, call, second_fails)
        threads = threading.active_count()
        if call != "stream" or len(case.scheduler.schedule.streams) > 1:
            with pytest.raises(EngineError, match="none left"):
                Scheduler(bundle_of(case.manifest), engine, place[1])
        monkeypatch.undo()
        gc.collect()
        assert case.device.memory_used() == used
        assert threading.active_count() == threads
        assert case.driver is None or case.driver.alive() == alive


# --- failures ----------------------------------------------------------------------------------------------


class Strange(Exception):
    pass


def raising(error: type[BaseException], *arguments: object) -> Callable[[], None]:
    def fail() -> None:
        raise error(*arguments)

    return fail


def failure_of(call: Callable[[], object]) -> str:
    """What a call raised, empty for nothing; the error itself would hold on to what it went through."""
    try:
        call()
    except MrsepError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@places
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), which=st.integers(0, 100), warm=st.integers(0, 3), ahead=st.integers(0, 1))
def test_any_failing_stage_is_named_and_later_segments_run(
    place: Place, seed: int, which: int, warm: int, ahead: int
) -> None:
    with opened(place, seed, nap=0.0005) as case:
        for number in range(warm):
            case.check(number, case.scheduler.run(case.mix(number)))
        name = names_of(case.manifest)[which % len(case.manifest.stages)]
        case.engine.failing[name] = raising(Strange, "it broke")
        called = len(case.engine.calls)
        tickets = [case.scheduler.submit(case.mix(50 + i)) for i in range(1 + ahead)]
        errors = [failure_of(lambda t=t: case.scheduler.result(t)) for t in tickets]
        if name in case.engine.calls[called:]:
            first = next(error for error in errors if error)
            assert first == f"EngineError: stage {name} failed: Strange: it broke"
            # On CUDA a stage fails when it is enqueued, in a captured graph only when it is captured, so
            # that what was enqueued before may still be good. What comes after is lost.
            assert all("lost" in error for error in errors[errors.index(first) + 1 :])
            assert case.driver is not None or errors[0] is first
        else:
            assert not any(errors)  # a captured graph no longer calls runners
        case.engine.failing.clear()
        collect_all(case, [60, 61, 62, 63], 1)


@places
@pytest.mark.parametrize("error", [MemoryError, SystemExit, EngineError, KeyboardInterrupt])
def test_an_engine_that_dies(place: Place, error: type[BaseException]) -> None:
    """Errors of this package stay what they are, those that end a program too; others name the stage."""
    with opened(place, seed=4) as case:
        name = names_of(case.manifest)[-1]
        case.engine.failing[name] = raising(error, *(() if error is MemoryError else ("gone",)))
        match = f"^stage {name} failed: MemoryError$" if error is MemoryError else "^gone$"
        with pytest.raises(EngineError if error is MemoryError else error, match=match):
            case.scheduler.run(case.mix(1))
        case.engine.failing.clear()
        collect_all(case, [2, 3, 4], 1)


@places
def test_a_failure_that_nobody_asked_for(place: Place) -> None:
    """It is raised before its slot is used again, and everything works after it."""
    with opened(place, seed=6) as case:
        case.engine.failing[names_of(case.manifest)[0]] = raising(Strange, "it broke")
        for number in range(SLOTS):
            case.scheduler.submit(case.mix(number))
        with pytest.raises(EngineError, match="it broke"):
            case.scheduler.submit(case.mix(9))
        case.engine.failing.clear()
        collect_all(case, [2, 3, 4], 1)


@on_cuda
def test_a_segment_beside_one_that_could_not_be_enqueued(place: Place) -> None:
    """What was enqueued of the one comes to rest before the other begins: collected first, it is right."""
    for seed in range(6):
        with opened(place, seed, nap=0.002) as case:
            failing = names_of(case.manifest)[-1]
            case.engine.failing[failing] = raising(Strange, "it broke")
            broken = case.scheduler.submit(case.mix(1))
            case.engine.failing.clear()
            case.check(2, case.scheduler.run(case.mix(2)))
            assert failing in failure_of(lambda t=broken: case.scheduler.result(t))


@on_cuda
def test_a_gpu_that_is_lost(place: Place) -> None:
    """A kernel crashes: the error says what to do, and closing raises nothing more."""
    with opened(place, seed=8) as case:
        case.scheduler.run(case.mix(1))
        assert case.driver is not None
        stream = case.scheduler._pipelines[0].streams["main"].handle
        case.driver.launch(stream, raising(Strange, "a kernel crashed"))
        for _ in range(2):
            with pytest.raises(DeviceLostError, match="LaunchFailure"):
                case.scheduler.run(case.mix(2))


@on_cuda
def test_a_library_that_fails_on_a_gpu_that_is_lost(place: Place) -> None:
    """It says so in words of its own; whether the device is lost, the device knows."""
    with opened(place, seed=8) as case:
        assert case.driver is not None
        case.engine.failing[names_of(case.manifest)[-1]] = raising(EngineError, "TensorRT failed in a stage")
        stream = case.scheduler._pipelines[0].streams["main"].handle
        case.driver.launch(stream, raising(Strange, "a kernel crashed"))
        with pytest.raises(DeviceLostError, match="LaunchFailure"):
            case.scheduler.run(case.mix(1))


@on_cuda
def test_a_trace_begins_before_what_it_shows(place: Place) -> None:
    """Also where the clock starts while the segment before is under way."""
    with opened(place, seed=5, nap=0.004, trace=True) as case:
        trace = case.scheduler.trace
        assert trace is not None
        first = case.scheduler.submit(case.mix(1))
        trace.clear()
        second = case.scheduler.submit(case.mix(2))
        case.check(1, case.scheduler.result(first))
        case.check(2, case.scheduler.result(second))
        shown = [event for event in trace.events() if event.segment == second.number]
        assert sorted({event.stage for event in shown}) == sorted(names_of(case.manifest))
        assert min(event.start for event in shown) >= 0


@places
@pytest.mark.parametrize("again", [False, True])
def test_control_c_while_waiting(place: Place, again: bool) -> None:
    """What is under way is dropped; the scheduler can be used on, or closed."""
    with opened(place, seed=13, nap=0.02) as case:
        case.scheduler.run(case.mix(1))
        ticket = case.scheduler.submit(case.mix(2))
        case.scheduler.submit(case.mix(3))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            # started in here: on a loaded machine 5 ms may pass before the next line
            threading.Timer(0.005, _thread.interrupt_main).start()
            case.scheduler.result(ticket)
            time.sleep(5)  # if the segment was faster than the signal
        if again:
            collect_all(case, [4, 5, 6], 1)


def test_an_engine_that_cannot_be_captured_is_not() -> None:
    class Uncapturable(WatchingEngine):
        uncapturable = "its copies are of the moment"

    with pytest.MonkeyPatch.context() as patch:
        install(patch, FakeDriver(seed=1))
        with closing(open_cuda(0, CUDA_PYTHON)) as device:
            bundle = bundle_of(random_manifest(1, 1))
            with pytest.raises(UsageError, match=r"watching cannot be captured.*of the moment.*sequential"):
                Scheduler(bundle, Uncapturable(device), "graph")


@pytest.mark.parametrize("kind", [CUDA_PYTHON, PYCUDA])
def test_a_chain_closes_its_runners_before_their_stream(kind: str) -> None:
    """A session that still used its stream when it went has ended a process on a GPU."""
    driver = FakeDriver(seed=1)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, driver)
        with closing(open_cuda(0, kind)) as device:
            manifest, engine = random_manifest(1, 1), WatchingEngine(device, driver)
            with Chain(bundle_of(manifest), engine) as chain:
                mix = segment(1, manifest, 1)
                np.testing.assert_array_equal(chain.run(mix)[STEMS], reference(manifest, mix))
            assert sorted(engine.closed) == sorted(names_of(manifest))
            assert engine.violations == driver.violations == []
            assert device.memory_used() == 0


def test_a_chain_whose_stage_fails_frees_no_memory_that_is_in_use() -> None:
    """What was copied in is under way when the stage raises."""
    driver, gate = FakeDriver(seed=1), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        install(patch, driver)
        with closing(open_cuda(0, CUDA_PYTHON)) as device:
            manifest, engine = random_manifest(1, 1), WatchingEngine(device, driver)
            engine.failing[manifest.stages[0].name] = raising(EngineError, "gone")
            with Chain(bundle_of(manifest), engine) as chain:
                chain.stream.enqueue(
                    lambda: driver.launch(chain.stream.handle, lambda: (gate.wait(20), None)[1])
                )
                threading.Timer(0.2, gate.set).start()
                with pytest.raises(EngineError, match="gone"):
                    chain.run(segment(1, manifest, 1))
            assert driver.violations == []


@pytest.mark.parametrize("kind", [CUDA_PYTHON, PYCUDA])
def test_runners_made_before_one_that_cannot_be_are_closed_before_the_streams(kind: str) -> None:
    driver, made = FakeDriver(seed=1), []

    class Second(WatchingEngine):
        def prepare(self, *arguments: Any) -> Any:
            if made:
                raise EngineError("no second one")
            made.append(super().prepare(*arguments))
            return made[0]

    with pytest.MonkeyPatch.context() as patch:
        install(patch, driver)
        with closing(open_cuda(0, kind)) as device:
            manifest, engine = random_manifest(1, 1), Second(device, driver)
            streams = [device.stream("one"), device.stream("two")]
            with pytest.raises(EngineError, match="no second one"):
                engine.prepare_lanes(bundle_of(manifest), manifest.stages[0], 1, streams)
            assert engine.closed == [manifest.stages[0].name]
