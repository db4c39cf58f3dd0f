"""Stages run when their data is there, over shared buffers; nothing of one batch is in the next."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import (
    CHANNELS,
    HOP,
    N_FFT,
    OFFSET,
    SAMPLES,
    SOURCES,
    tiny_bundle,
    tiny_files,
    tiny_manifest,
    transform,
)
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.manifest import FileInfo, Stage
from mrsep_deploy.devices.interface import Stream
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import EngineError, UsageError
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.runtime.scheduler import SLOTS, Scheduler
from mrsep_deploy.testing import Arrays, FakeEngine, identity
from mrsep_deploy.transforms.spectrogram import analyse, synthesise

Float32 = NDArray[np.float32]

CPU_MODES: tuple[Mode, ...] = ("sequential", "concurrent")


def segments(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, SAMPLES), np.float32)


@pytest.fixture(params=CPU_MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path, batch=3)


@pytest.fixture(autouse=True)
def _no_thread_left_behind() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# --- what comes out ----------------------------------------------------------------------------------------


def test_what_the_stages_compute_together(bundle: Bundle, mode: Mode) -> None:
    """Identity stages: each source is the waveform, plus what analysis and synthesis make of it times the
    gain of the spectrogram branch."""
    mix = segments(3)
    spectrogram = analyse(mix, transform(N_FFT, HOP, SAMPLES))
    pairs = spectrogram.reshape(-1, 2, *spectrogram.shape[2:])
    back = synthesise(pairs, transform(N_FFT, HOP, SAMPLES), SAMPLES).reshape(mix.shape)
    with closing(Scheduler(bundle, FakeEngine(), mode)) as scheduler:
        stems = scheduler.run(mix)
    assert stems.shape == (3, len(SOURCES), CHANNELS, SAMPLES)
    for source, gain in enumerate(bundle.manifest.branch("16").gains):
        # Normalising and going back leaves out 1e-5 of a deviation of about 0.4.
        np.testing.assert_allclose(stems[:, source], mix + gain * back, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_real_graphs(tmp_path: Path, mode: Mode, batch: int) -> None:
    """The tiny bundle's own graphs repeat their input and add ``OFFSET``; so does this fake."""

    def adding(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        identity(stage, inputs, outputs)
        for array in outputs.values():
            array += np.float32(OFFSET)

    bundle, mix, found = tiny_bundle(tmp_path, batch=batch), segments(batch), []
    for engine in (FakeEngine(adding), choose("ort", EngineOptions(threads=1)).engine):
        with closing(Scheduler(bundle, engine, mode)) as scheduler:
            found.append(scheduler.run(mix).copy())
            # Silence has no deviation, by which estimates are multiplied in the end: it stays silence.
            assert not scheduler.run(np.zeros_like(mix)).any()
    np.testing.assert_array_equal(*found)


def test_modes_agree_to_the_last_bit(bundle: Bundle) -> None:
    mix = segments(3)
    found = []
    for mode in CPU_MODES:
        with closing(Scheduler(bundle, FakeEngine(), mode)) as scheduler:
            found.append(scheduler.run(mix).copy())
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0]).max() > 0.1


def test_a_partial_batch_is_filled_with_silence(bundle: Bundle, mode: Mode) -> None:
    """What an earlier, full batch left in the buffers does not reach a stage again."""
    seen: list[Float32] = []

    def watching(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        if stage.name == "branch.time":
            seen.append(inputs["waveform"].copy())
        identity(stage, inputs, outputs)

    with closing(Scheduler(bundle, FakeEngine(watching), mode)) as scheduler:
        for seed in range(SLOTS):
            scheduler.run(segments(3, seed))
        seen.clear()
        for _ in range(SLOTS):
            part = scheduler.run(segments(1, seed=9))
            assert part.shape == (1, len(SOURCES), CHANNELS, SAMPLES)
    assert len(seen) == SLOTS
    for waveform in seen:
        assert waveform[0].any()
        assert not waveform[1:].any()


def test_an_item_does_not_depend_on_the_rest_of_its_batch(bundle: Bundle, mode: Mode) -> None:
    mix = segments(3)
    with closing(Scheduler(bundle, FakeEngine(), mode)) as scheduler:
        together = scheduler.run(mix).copy()
        alone = np.concatenate([scheduler.run(mix[i : i + 1]).copy() for i in range(3)])
    np.testing.assert_array_equal(together, alone)


def test_the_callers_arrays_stay_as_they_are(bundle: Bundle, mode: Mode) -> None:
    mix = segments(2)
    kept = mix.copy()
    with closing(Scheduler(bundle, FakeEngine(), mode)) as scheduler:
        scheduler.run(mix)
    np.testing.assert_array_equal(mix, kept)


@pytest.mark.parametrize(
    "shape", [(4, CHANNELS, SAMPLES), (1, 1, SAMPLES), (1, CHANNELS, 1), (CHANNELS, SAMPLES)]
)
def test_segments_of_another_shape(bundle: Bundle, shape: tuple[int, ...]) -> None:
    """None of these may be broadcast into the buffers, nor end in an error of NumPy's."""
    with (
        closing(Scheduler(bundle, FakeEngine())) as scheduler,
        pytest.raises(UsageError, match=rf"{CHANNELS}, {SAMPLES}"),
    ):
        scheduler.run(np.zeros(shape, np.float32))


# --- slots -------------------------------------------------------------------------------------------------


def test_results_are_views_that_the_next_call_but_one_overwrites(bundle: Bundle, mode: Mode) -> None:
    with closing(Scheduler(bundle, FakeEngine(), mode)) as scheduler:
        first = scheduler.run(segments(3, 0))
        kept = first.copy()
        second = scheduler.run(segments(3, 1))
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(first, kept)
        third = scheduler.run(segments(3, 2))
        assert np.shares_memory(first, third)
        assert (first != kept).any()


def test_as_many_batches_under_way_as_slots(bundle: Bundle, mode: Mode) -> None:
    mixes = [segments(3, seed) for seed in range(7)]
    with closing(Scheduler(bundle, FakeEngine(slow), mode)) as scheduler:
        expected = [scheduler.run(mix).copy() for mix in mixes]
        found, tickets = [], []
        for mix in mixes:
            if len(tickets) == SLOTS:
                found.append(scheduler.result(tickets.pop(0)).copy())
            tickets.append(scheduler.submit(mix))
        found += [scheduler.result(ticket).copy() for ticket in tickets]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def slow(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
    """Long enough for the next batch to overtake, if anything let it."""
    time.sleep(0.003 if stage.branch == "time" else 0.001)
    identity(stage, inputs, outputs)


def test_a_result_that_is_gone(bundle: Bundle) -> None:
    with closing(Scheduler(bundle, FakeEngine())) as scheduler:
        ticket = scheduler.submit(segments(1))
        for _ in range(SLOTS):
            scheduler.run(segments(1))
        with pytest.raises(UsageError, match="slot"):
            scheduler.result(ticket)


# --- streams -----------------------------------------------------------------------------------------------


def joined_bundle(folder: Path) -> Bundle:
    """Two encoders that meet in a bottleneck, after which the waveform branch has nothing more to do."""
    plain = tiny_manifest(name="joined")
    spectrogram, waveform = plain.tensor("spectrogram_16"), plain.tensor("waveform")

    def graph(name: str, branch: str, inputs: tuple[str, ...], output: str) -> Stage:
        return Stage(name, "graph", branch, inputs, (output,), f"{name}.onnx")

    stages = (
        *plain.stages[:2],
        graph("encoder.16", "16", ("spectrogram_16",), "feature_16"),
        graph("encoder.time", "time", ("waveform",), "feature_time"),
        graph("bottleneck", "shared", ("feature_16", "feature_time"), "hidden"),
        graph("decoder.16", "16", ("hidden",), "estimate_16"),
        next(s for s in plain.stages if s.kind == "inverse"),
        replace(plain.stages[-1], inputs=("signal_16",)),
    )
    used = {name for s in stages for name in (*s.inputs, *s.outputs)}
    tensors = (
        *(t for t in plain.tensors if t.name in used),
        replace(spectrogram, name="feature_16"),
        replace(waveform, name="feature_time"),
        replace(spectrogram, name="hidden"),
    )
    files = {str(s.file): FileInfo("0" * 64, 0) for s in stages if s.file}
    manifest = replace(plain, stages=stages, tensors=tensors, files=files)
    return write_bundle(folder / "joined", manifest, tiny_files(manifest), overwrite=True)


@pytest.mark.parametrize("slowest", ["encoder.16", "encoder.time", "bottleneck", "decoder.16"])
def test_the_next_segment_leaves_the_body_to_the_one_before(tmp_path: Path, slowest: str) -> None:
    """The waveform encoder is done early, and its next segment is there already: it has to wait for the
    bottleneck, which still reads what it would write over."""

    def compute(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        if stage.name == slowest:
            time.sleep(0.01)
        identity(stage, inputs, outputs)
        if stage.name == "bottleneck":
            outputs["hidden"][...] = inputs["feature_16"] * inputs["feature_time"][:, :1, :1, None]

    bundle, mixes, found = joined_bundle(tmp_path), [segments(1, seed) for seed in range(6)], {}
    for mode in CPU_MODES:
        with closing(Scheduler(bundle, FakeEngine(compute, EngineOptions(threads=4)), mode)) as scheduler:
            tickets, found[mode] = [scheduler.submit(mixes[0])], []
            for mix in mixes[1:]:
                tickets.append(scheduler.submit(mix))
                found[mode].append(scheduler.result(tickets.pop(0)).copy())
            found[mode].append(scheduler.result(tickets.pop()).copy())
    np.testing.assert_array_equal(np.stack(found["concurrent"]), np.stack(found["sequential"]))


def test_branches_run_side_by_side(bundle: Bundle) -> None:
    """Each branch waits for the other to have begun: one after the other, that would never end."""
    begun = {name: threading.Event() for name in ("branch.16", "branch.time")}

    def meeting(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        begun[stage.name].set()
        if not all(event.wait(20) for event in begun.values()):
            raise EngineError("the other branch never began")
        identity(stage, inputs, outputs)

    engine = FakeEngine(meeting, EngineOptions(threads=2))
    with closing(Scheduler(bundle, engine, "concurrent")) as scheduler:
        scheduler.run(segments(1))
        assert engine.prepared == {"branch.16": 1, "branch.time": 1}


def test_stages_one_at_a_time_have_all_threads(bundle: Bundle) -> None:
    engine = FakeEngine(options=EngineOptions(threads=5))
    with closing(Scheduler(bundle, engine, "sequential")):
        assert engine.prepared == {"branch.16": 5, "branch.time": 5}


def test_threads_never_exceed_the_budget(bundle: Bundle) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def counting(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        identity(stage, inputs, outputs)
        with lock:
            running -= 1

    with closing(
        Scheduler(bundle, FakeEngine(counting, EngineOptions(threads=1)), "concurrent")
    ) as scheduler:
        for ticket in [scheduler.submit(segments(1)) for _ in range(SLOTS)]:
            scheduler.result(ticket)
    assert most == 1


def test_no_graphs_on_a_cpu(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no graphs"):
        Scheduler(bundle, FakeEngine(), "graph")


# --- trace -------------------------------------------------------------------------------------------------


def test_trace(bundle: Bundle, mode: Mode) -> None:
    """Every stage once a batch; no stage begins before what it reads is there."""
    stages = bundle.manifest.stages
    with closing(Scheduler(bundle, FakeEngine(slow), mode, trace=True)) as scheduler:
        for ticket in [scheduler.submit(segments(1)) for _ in range(SLOTS)]:
            scheduler.result(ticket)
        assert scheduler.trace is not None
        events = scheduler.trace.events()
        scheduler.trace.clear()
        assert scheduler.trace.events() == []
    assert [e.start for e in events] == sorted(e.start for e in events)
    runs = {(e.segment, e.stage): e for e in events}
    assert set(runs) == set(itertools.product(range(SLOTS), (s.name for s in stages)))
    assert len(events) == len(runs)
    writer = {name: stage.name for stage in stages for name in stage.outputs}
    for (segment, name), run in runs.items():
        stage = next(s for s in stages if s.name == name)
        assert run.branch == stage.branch
        assert 0 <= run.start <= run.end
        for needed in stage.inputs:
            if needed in writer:
                assert runs[segment, writer[needed]].end <= run.start
    if mode == "sequential":
        assert {e.stream for e in events} == {"main"}
        assert all(a.end <= b.start for a, b in itertools.pairwise(events))


def test_without_a_trace_nothing_is_kept(bundle: Bundle) -> None:
    with closing(Scheduler(bundle, FakeEngine())) as scheduler:
        assert scheduler.trace is None


# --- failures ----------------------------------------------------------------------------------------------


def failing_once(stage_name: str) -> Callable[[Stage, Arrays, Arrays], None]:
    failed = False

    def compute(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        nonlocal failed
        if stage.name == stage_name and not failed:
            failed = True
            raise EngineError(f"the fake failed in stage {stage.name}")
        identity(stage, inputs, outputs)

    return compute


@pytest.mark.parametrize("name", ["branch.16", "branch.time"])
def test_a_failing_stage_is_named_and_the_next_batch_runs(bundle: Bundle, mode: Mode, name: str) -> None:
    """What was under way beside the failure is lost with it; nothing of that meets a later batch."""
    mix = segments(3, 5)
    with closing(Scheduler(bundle, FakeEngine(), mode)) as scheduler:
        expected = scheduler.run(mix).copy()
    with closing(Scheduler(bundle, FakeEngine(failing_once(name)), mode)) as scheduler:
        first, beside = scheduler.submit(segments(3)), scheduler.submit(segments(3))
        with pytest.raises(EngineError, match=rf"stage {name}"):
            scheduler.result(first)
        with pytest.raises(UsageError, match="lost"):
            scheduler.result(beside)
        for _ in range(SLOTS + 1):
            np.testing.assert_array_equal(scheduler.run(mix), expected)


def test_a_failure_nobody_asked_for_is_raised_before_its_slot_is_used_again(
    bundle: Bundle, mode: Mode
) -> None:
    with closing(Scheduler(bundle, FakeEngine(failing_once("branch.16")), mode)) as scheduler:
        for _ in range(SLOTS):
            scheduler.submit(segments(1))
        with pytest.raises(EngineError, match=r"branch\.16"):
            scheduler.submit(segments(1))
        scheduler.run(segments(1))


def test_no_stage_runs_on_what_a_failed_stage_left(bundle: Bundle, mode: Mode) -> None:
    engine = FakeEngine(failing_once("branch.time"))
    with closing(Scheduler(bundle, engine, mode)) as scheduler:
        with pytest.raises(EngineError):
            scheduler.run(segments(1))
        scheduler.run(segments(1))
    assert engine.calls.count("branch.time") == 2


def test_a_stage_that_cannot_be_prepared(bundle: Bundle, mode: Mode) -> None:
    """The error comes through, what was made before it is let go, and no thread is left behind."""

    class Broken(FakeEngine):
        def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream):  # type: ignore[no-untyped-def]
            if stage.name == "branch.time":
                raise EngineError(f"cannot build stage {stage.name}")
            return super().prepare(bundle, stage, threads, stream)

    engine = Broken()
    before = threading.active_count()
    with pytest.raises(EngineError, match=r"branch\.time"):
        Scheduler(bundle, engine, mode)
    assert engine.closed == ["branch.16"]
    assert engine.device.memory_used() == 0
    assert threading.active_count() == before


# --- resources ---------------------------------------------------------------------------------------------


def test_closing_gives_everything_back(bundle: Bundle, mode: Mode) -> None:
    before = threading.active_count()
    engine = FakeEngine()
    scheduler = Scheduler(bundle, engine, mode)
    assert scheduler.buffer_bytes == engine.device.memory_used() > 0
    scheduler.run(segments(1))
    scheduler.close()
    scheduler.close()
    assert sorted(engine.closed) == ["branch.16", "branch.time"]
    assert engine.device.memory_used() == 0
    assert threading.active_count() == before


def test_running_allocates_no_buffers(bundle: Bundle, mode: Mode) -> None:
    """The same tensors every time, by address; two slots take turns."""
    seen: list[tuple[str, int]] = []

    def addresses(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        seen.extend((name, array.ctypes.data) for name, array in (*inputs.items(), *outputs.items()))
        identity(stage, inputs, outputs)

    with closing(Scheduler(bundle, FakeEngine(addresses), mode)) as scheduler:
        used = scheduler.device.memory_used()
        for _ in range(10):
            scheduler.run(segments(3))
        assert scheduler.device.memory_used() == used
    for name, found in itertools.groupby(sorted(set(seen)), key=lambda pair: pair[0]):
        assert len(list(found)) <= SLOTS, name
