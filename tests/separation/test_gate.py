"""The gate: which segments it sends to float32, in which order they come back, and what is told of it."""

from __future__ import annotations

import math
import random
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from bundles import CHANNELS, SAMPLES, SOURCES, tiny_bundle
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Gate, Stage
from mrsep_deploy.errors import EngineError
from mrsep_deploy.precision.convert_bundle import convert_bundle, derived_bundle
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.runtime.scheduler import Scheduler
from mrsep_deploy.separation.gate import (
    DEFAULT_BURSTINESS,
    GatedRuns,
    broken,
    burstiness_of,
    fragile,
    gate_of,
)
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.stream import Song
from mrsep_deploy.testing import Arrays, FakeEngine, identity

Float32 = NDArray[np.float32]

BURSTINESS = 5.0
"""Between the two kinds of segments here: steady noise, and a click that has all but all energy."""


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


def calm(seed: int) -> Float32:
    return np.random.default_rng(seed).uniform(-1, 1, (CHANNELS, SAMPLES)).astype(np.float32)


def sharp(seed: int) -> Float32:
    segment = calm(seed) * np.float32(1e-3)
    segment[seed % CHANNELS, seed % SAMPLES] = 1
    return segment


# --- the statistic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("level", [10.0, 1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.125])
def test_it_is_one_over_the_share_of_time_that_sounds(share: float, level: float, offset: float) -> None:
    samples = 256 * 400 + 7
    segment = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32) * np.float32(level)
    segment[:, int(share * samples) :] = 0
    segment += np.float32(offset)
    # Frames of 800 random values differ by 5 %; float32 holds an offset to 3 in 1,000 of the smallest level here.
    assert burstiness_of(segment) == pytest.approx(1 / share, rel=0.02)
    assert burstiness_of(-segment) == pytest.approx(burstiness_of(segment))


@pytest.mark.parametrize("at", [0, 70, 5119, 5120, 5199])
def test_silence_has_none_and_a_click_as_many_as_there_are_frames(at: int) -> None:
    assert burstiness_of(np.zeros((2, 5200), np.float32)) == 0
    assert burstiness_of(np.full((2, 5200), 0.3, np.float32)) < 2  # a constant: rounding, and no error
    click = np.zeros((2, 5200), np.float32)
    click[1, at] = -0.25
    assert burstiness_of(click) == pytest.approx(260, rel=0.02)


def test_loud_drums_are_no_burst() -> None:
    """A stroke of 2 ms every half second over a quiet band: a peak of 20 times the spread, and energy all along."""
    random = np.random.default_rng(0)
    mix = random.standard_normal((2, 343980)).astype(np.float32) * 0.04
    for start in range(0, 343980, 22050):
        mix[:, start : start + 88] += random.standard_normal((2, 88)).astype(np.float32) * 0.3
    assert np.abs(mix).max() / mix.std() > 20
    assert burstiness_of(mix) < 4


def test_each_segment_of_a_batch_has_its_own() -> None:
    batch = np.stack([calm(0), sharp(1), np.zeros_like(calm(0)), sharp(2)])
    assert fragile(batch, BURSTINESS).tolist() == [False, True, False, True]
    assert not fragile(batch, math.inf).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(bad: float) -> None:
    stems = np.random.default_rng(0).standard_normal((3, 2, 2, 50)).astype(np.float32)
    assert not broken(stems).any()
    stems[1, 1, 0, 49] = bad
    assert broken(stems).tolist() == [False, True, False]


# --- which runs where --------------------------------------------------------------------------------------


def lossy(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
    """Repeats its input, and one more: not what float32 gives."""
    identity(stage, inputs, outputs)
    for target in outputs.values():
        target += 1


def gated(bundle: Bundle, compute: object = lossy) -> tuple[GatedRuns, Scheduler, list[Scheduler]]:
    low, twins = Scheduler(bundle, FakeEngine(compute)), []  # type: ignore[arg-type]

    def twin() -> Scheduler:
        twins.append(Scheduler(bundle, FakeEngine()))
        return twins[-1]

    return GatedRuns(low, BURSTINESS, twin), low, twins


def stems_of(bundle: Bundle, compute: object, mix: Float32) -> Float32:
    scheduler = Scheduler(bundle, FakeEngine(compute))  # type: ignore[arg-type]
    try:
        return np.concatenate([scheduler.run(mix[None, n]).copy() for n in range(len(mix))])
    finally:
        scheduler.close()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_segment_comes_back_in_order_from_where_it_belongs(
    bundle: Bundle, batch: int, seed: int
) -> None:
    bundle = bundle.at_batch(batch)
    source = random.Random(seed)
    runs, low, twins = gated(bundle)
    pending: deque[tuple[object, Float32]] = deque()
    seen = 0

    def collect() -> None:
        nonlocal seen
        ticket, mix = pending.popleft()
        found = runs.result(ticket)  # type: ignore[arg-type]
        for number, item in enumerate(mix):
            compute = identity if burstiness_of(item) > BURSTINESS else lossy
            expected = stems_of(bundle.at_batch(1), compute, item[None])[0]
            assert np.array_equal(found[number], expected)
        assert ticket.in_float32 == fragile(mix, BURSTINESS).sum()  # type: ignore[attr-defined]
        seen += len(mix)

    try:
        for number in range(30):
            size = source.randint(1, batch)
            make = [source.choice([calm, calm, sharp]) for _ in range(size)]
            mix = np.stack([each(100 * number + n) for n, each in enumerate(make)])
            if len(pending) == runs.capacity:
                collect()
            pending.append((runs.submit(mix), mix))
        while pending:
            collect()
    finally:
        for scheduler in (low, *twins):
            scheduler.close()
    assert len(twins) == 1  # opened once, when it was first needed
    assert seen >= 30


@pytest.mark.parametrize("batch", [1, 3])
def test_what_comes_out_broken_is_computed_again_out_of_turn(bundle: Bundle, batch: int) -> None:
    """With others under way in float32, which must not lose their place."""
    bundle = bundle.at_batch(batch)

    def breaking(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        lossy(stage, inputs, outputs)
        if stage.kind == "graph" and "time" in stage.name:
            for item, target in zip(inputs[stage.inputs[0]], outputs[stage.outputs[0]], strict=True):
                if item[0, 0] > 1:  # normalised: only segments that begin loud
                    target[0, 3] = np.nan

    def loud_start(seed: int) -> Float32:
        segment = calm(seed)
        segment[0, 0] = 2
        return segment

    runs, low, twins = gated(bundle, breaking)
    kinds = [
        loud_start,
        sharp,
        calm,
        loud_start,
        sharp,
        loud_start,
        loud_start,
        calm,
        sharp,
        sharp,
        loud_start,
    ]
    pending: deque[tuple[object, Float32]] = deque()
    again = 0

    def collect() -> None:
        nonlocal again
        ticket, mix = pending.popleft()
        found = runs.result(ticket)  # type: ignore[arg-type]
        assert np.isfinite(found).all()
        for number, item in enumerate(mix):
            exact = item[0, 0] == 2 or burstiness_of(item) > BURSTINESS
            again += int(item[0, 0] == 2)
            expected = stems_of(bundle.at_batch(1), identity if exact else lossy, item[None])[0]
            assert np.array_equal(found[number], expected)

    try:
        for start in range(0, len(kinds), batch):
            mix = np.stack([make(start + n) for n, make in enumerate(kinds[start : start + batch])])
            if len(pending) == runs.capacity:
                collect()
            pending.append((runs.submit(mix), mix))
        while pending:
            collect()
    finally:
        for scheduler in (low, *twins):
            scheduler.close()
    assert again == 5


def test_without_float32_graphs_it_says_so_once(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler(bundle, FakeEngine(lossy))
    runs = GatedRuns(scheduler, BURSTINESS, None)
    for seed in range(3):
        assert np.array_equal(
            runs.result(runs.submit(sharp(seed)[None])), stems_of(bundle, lossy, sharp(seed)[None])
        )
    scheduler.close()
    assert len(caplog.messages) == 1
    assert "no float32 graphs" in caplog.messages[0]


# --- in a separator ----------------------------------------------------------------------------------------


def song() -> Float32:
    """Calm, then all but silence with a click, then calm again."""
    parts = [
        np.random.default_rng(0).uniform(-1, 1, (CHANNELS, 4 * SAMPLES)),
        np.zeros((CHANNELS, 3 * SAMPLES)),
    ]
    mix = np.concatenate([parts[0], parts[1], parts[0]], axis=1).astype(np.float32)
    mix[0, 5 * SAMPLES + SAMPLES // 2] = 1
    return mix


def test_a_separator_sends_what_is_fragile_to_float32(bundle: Bundle) -> None:
    low = derived_bundle(bundle, default_plan("float16", bundle.manifest.float32))
    mix = song()
    counted = Song(SongStatistics.measure([mix]), [mix])
    with Separator(low, engine="ort", gate=BURSTINESS) as separator:
        stems = np.stack(list(separator.separate(mix).values()))
        list(separator.separate_songs([counted]))
    with Separator(low, engine="ort", gate=math.inf) as separator:
        ungated = np.stack(list(separator.separate(mix).values()))
    with Separator(bundle, engine="ort") as separator:
        exact = np.stack(list(separator.separate(mix).values()))
    assert 0 < counted.in_float32 < counted.segments
    # Segments start every 48 samples: here there is only the one with the click.
    inside = slice(352, 384)
    assert np.array_equal(stems[..., inside], exact[..., inside])
    assert not np.array_equal(ungated[..., inside], exact[..., inside])
    start = slice(0, 3 * SAMPLES)
    assert np.array_equal(stems[..., start], ungated[..., start])


def test_a_float32_bundle_has_no_gate(bundle: Bundle) -> None:
    mix = song()
    counted = Song(SongStatistics.measure([mix]), [mix])
    with Separator(bundle, engine="ort", gate=0.0) as separator:
        list(separator.separate_songs([counted]))
    assert counted.in_float32 == 0


def test_an_exported_bundle_holds_its_twin(bundle: Bundle, tmp_path: Path) -> None:
    plan = default_plan("float16", bundle.manifest.float32)
    made = convert_bundle(bundle, plan, tmp_path / "low")
    opened = Bundle.open(tmp_path / "low")
    assert {stage.twin for stage in opened.manifest.graph_stages} == {
        "branch.16.float32.onnx",
        "branch.time.float32.onnx",
    }
    twin = opened.at_batch(2).twin
    assert twin is not None
    assert (twin.manifest.precision, twin.manifest.batch) == ("float32", 2)
    for stage, source in zip(twin.manifest.graph_stages, bundle.manifest.graph_stages, strict=True):
        assert twin.graph_bytes(stage) == bundle.graph_bytes(source)
    mix = song()
    with Separator(made, engine="ort", gate=0.0) as all_exact, Separator(bundle, engine="ort") as exact:
        found, expected = all_exact.separate(mix), exact.separate(mix)
    for source in SOURCES:
        assert np.array_equal(found[source], expected[source])
    assert convert_bundle(bundle, plan, tmp_path / "lean", twins=False).twin is None
    assert bundle.twin is None


def test_the_gate_is_the_bundles_own_or_the_default(bundle: Bundle) -> None:
    assert gate_of(bundle.manifest).burstiness == DEFAULT_BURSTINESS
    plan = default_plan("float16", bundle.manifest.float32)
    object.__setattr__(bundle.manifest, "gates", {"float16": Gate(6.5, 100, 1), "bfloat16": Gate(20.0)})
    with Separator(derived_bundle(bundle, plan), engine="ort") as separator:
        assert separator.gate == 6.5


def test_a_twin_that_cannot_be_opened_fails_its_song_only(bundle: Bundle) -> None:
    low = Scheduler(bundle, FakeEngine(lossy))

    def fails() -> Scheduler:
        raise EngineError("no memory for the float32 graphs")

    runs = GatedRuns(low, BURSTINESS, fails)
    with pytest.raises(EngineError, match="no memory"):
        runs.submit(sharp(0)[None])
    assert np.array_equal(runs.result(runs.submit(calm(0)[None])), stems_of(bundle, lossy, calm(0)[None]))
    low.close()


def test_after_a_failure_nothing_is_asked_of_what_was_lost(bundle: Bundle) -> None:
    """A batch fails while another is under way in float32, whose song is begun again; then one comes out broken."""
    state = {"fails": False, "breaks": False}

    def compute(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        lossy(stage, inputs, outputs)
        if stage.kind == "graph" and state["fails"]:
            raise RuntimeError("lost")
        if stage.kind == "graph" and state["breaks"]:
            outputs[stage.outputs[0]][...] = np.nan

    runs, low, twins = gated(bundle, compute)
    try:
        state["fails"] = True
        bad = runs.submit(calm(0)[None])
        runs.submit(sharp(1)[None])
        with pytest.raises(EngineError, match="lost"):
            runs.result(bad)
        state["fails"] = False
        for seed in range(2, 5):
            runs.result(runs.submit(sharp(seed)[None]))
        state["breaks"] = True
        found = runs.result(runs.submit(calm(9)[None]))
        assert np.array_equal(found, stems_of(bundle, identity, calm(9)[None]))
    finally:
        for scheduler in (low, *twins):
            scheduler.close()
