"""Segments side by side give what they give one after the other, whatever fails in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from bundles import CHANNELS, SAMPLES, tiny_bundle
from goldens import Export
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.cpu import CpuDevice
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import EngineError, UsageError
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.runtime.scheduler import Scheduler, Ticket
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.testing import Arrays, FakeEngine, identity

Float32 = NDArray[np.float32]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


@pytest.fixture(autouse=True)
def _no_thread_left_behind() -> Iterator[None]:
    yield
    assert not [each.name for each in threading.enumerate() if each.name.startswith("stream ")]


def song(frames: int) -> Float32:
    return np.random.default_rng(1).standard_normal((CHANNELS, frames), np.float32)


def segment(seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((1, CHANNELS, SAMPLES), np.float32)


@pytest.mark.parametrize("engine", ["ort", "openvino", "torch-like fake"])
@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
@pytest.mark.parametrize(("lanes", "threads"), [(2, 2), (3, 3), (2, 5)])
def test_the_stems_of_one_lane(bundle: Bundle, engine: str, mode: Mode, lanes: int, threads: int) -> None:
    def made() -> Engine:
        options = EngineOptions(threads=threads)
        if engine == "openvino":
            pytest.importorskip("openvino", reason="OpenVINO is not installed")
        return FakeEngine(options=options) if "fake" in engine else choose(engine, options).engine

    mix = song(13 * SAMPLES + 5)
    with Separator(bundle, engine=made(), mode=mode, lanes=1) as one:
        expected = one.separate(mix)
    with Separator(bundle, engine=made(), mode=mode, lanes=lanes) as several:
        found = several.separate(mix)
    for name, stem in expected.items():
        np.testing.assert_array_equal(found[name], stem)


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_the_stems_of_one_lane_from_a_real_model(exports: Export, engine: str) -> None:
    """Threads share out the sums of a product, so float32's last digits may differ."""
    if engine == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = exports("htdemucs")
    mix = np.random.default_rng(2).uniform(-0.5, 0.5, (2, 3 * model.manifest.model.segment_samples))
    found = []
    for lanes in (1, 2):
        with Separator(model, engine=engine, threads=2, lanes=lanes, mode="sequential") as separator:
            found.append(separator.separate(mix.astype(np.float32)))
    for name, stem in found[0].items():
        assert Deviation.between(found[1][name], stem).snr > 110


def test_lanes_run_at_the_same_time(bundle: Bundle) -> None:
    """Two segments meet inside of a stage: one after the other they would wait for ever."""
    meeting = threading.Barrier(2)

    def meets(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        if stage.name == "branch.16":
            meeting.wait(timeout=60)
        identity(stage, inputs, outputs)

    with closing(Scheduler(bundle, FakeEngine(meets, EngineOptions(threads=2)), lanes=2)) as lanes:
        tickets = [lanes.submit(segment(seed)) for seed in range(2)]
        for ticket in tickets:
            lanes.result(ticket)


def test_threads_are_shared_out(bundle: Bundle) -> None:
    engine = FakeEngine(options=EngineOptions(threads=7))
    with closing(Scheduler(bundle, engine, lanes=3)):
        assert set(engine.prepared.values()) == {2}


def test_a_failure_ends_what_is_under_way_in_every_lane(bundle: Bundle) -> None:
    broken = threading.Event()

    def fails(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        if broken.is_set() and stage.name == "branch.time":
            raise ValueError("worn out")
        identity(stage, inputs, outputs)

    with closing(Scheduler(bundle, FakeEngine(fails, EngineOptions(threads=2)), lanes=2)) as lanes:
        expected = lanes.run(segment(0)).copy()
        broken.set()
        tickets: list[Ticket] = [lanes.submit(segment(seed)) for seed in range(4)]
        with pytest.raises(EngineError, match=r"branch\.time failed: ValueError: worn out"):
            lanes.result(tickets[0])
        for ticket in tickets[1:]:
            with pytest.raises(UsageError, match="lost"):
                lanes.result(ticket)
        broken.clear()
        np.testing.assert_array_equal(lanes.run(segment(0)), expected)


def test_a_wrong_segment_costs_the_others_nothing(bundle: Bundle) -> None:
    with closing(Scheduler(bundle, FakeEngine(options=EngineOptions(threads=2)), lanes=2)) as lanes:
        ticket = lanes.submit(segment(0))
        with pytest.raises(UsageError, match="shape"):
            lanes.submit(np.zeros((1, CHANNELS, SAMPLES + 1), np.float32))
        assert lanes.result(ticket).shape[-1] == SAMPLES


def test_the_trace_has_every_lane_on_one_clock(bundle: Bundle) -> None:
    with closing(
        Scheduler(bundle, FakeEngine(options=EngineOptions(threads=2)), lanes=2, trace=True)
    ) as lanes:
        for seed in range(4):
            lanes.run(segment(seed))
        assert lanes.trace is not None
        events = lanes.trace.events()
        assert {event.segment for event in events} == {0, 1, 2, 3}
        assert {event.stream for event in events} == {"1: main", "2: main"}
        # One after the other, so whichever lane a segment was in, it began when the one before was over.
        starts = [min(e.start for e in events if e.segment == n) for n in range(4)]
        ends = [max(e.end for e in events if e.segment == n) for n in range(4)]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        lanes.trace.clear()
        assert not lanes.trace.events()


def test_closing_gives_everything_back(bundle: Bundle) -> None:
    engine = FakeEngine(options=EngineOptions(threads=2))
    lanes = Scheduler(bundle, engine, lanes=2)
    with closing(Scheduler(bundle, FakeEngine())) as one:
        assert lanes.buffer_bytes == engine.device.memory_used() == 2 * one.buffer_bytes
    lanes.close()
    lanes.close()
    assert sorted(engine.closed) == ["branch.16", "branch.time"]
    assert engine.device.memory_used() == 0


@pytest.mark.parametrize("lanes", [-1, 3, 5000])
def test_more_lanes_than_threads(bundle: Bundle, lanes: int) -> None:
    with pytest.raises(UsageError, match=f"{lanes} segments side by side"):
        Separator(bundle, engine=FakeEngine(options=EngineOptions(threads=2)), lanes=lanes)


def test_no_lanes_on_a_gpu(bundle: Bundle) -> None:
    class OnGpu(FakeEngine):
        @property
        def device(self) -> CpuDevice:  # type: ignore[override]
            found = CpuDevice()
            found.kind = "cuda"
            return found

    with pytest.raises(UsageError, match="do not run side by side"):
        Scheduler(bundle, OnGpu(options=EngineOptions(threads=2)), lanes=2)
