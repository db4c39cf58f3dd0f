"""One model at one batch size: reference, parity, latency, verdict, timeline."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from acceptance.contenders import Contender, OurContender
from acceptance.figures import spread
from acceptance.groups import Group, reference
from acceptance.parity import Field, open_all
from acceptance.rows import Ledger, Row, RowTimeoutError, Unavailable, Values
from mrsep_deploy.bench.ceilings_cuda import timed_event
from mrsep_deploy.bench.floor import floor_of, times_floor, traffic_bytes
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import named_line
from mrsep_deploy.measuring.rounds import Turn
from mrsep_deploy.measuring.rounds import race as take_turns
from mrsep_deploy.measuring.statistics import ratio_interval, verdict
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.precision.requested import in_precision
from mrsep_deploy.runtime.schedule import Mode

BASELINE = "torch eager"
WARM_UP = 3
MIN_ROUNDS, MAX_ROUNDS = 7, 60
ROUNDS_SECONDS = 25.0
PIPELINED = 12

Rates = Mapping[str, float]


def measure_group(ledger: Ledger, group: Group, rates: Rates, compiles: bool = True) -> None:
    """All rows of a group.

    Args:
        rates: ``bandwidth`` and the matrix rates by name.
        compiles: ``torch.compile`` takes part.
    """
    made: list[tuple[Any, Field]] = []

    def refer() -> Values:
        model, mix = group.model(), group.mix
        exact = reference(model, mix)
        made.append((model, Field(group, mix, exact)))
        return {"snr_db": None, "what": "every step in float64 on the GPU, the yardstick of the rows below"}

    if ledger.measure("parity", f"{group.name}: PyTorch float64", refer, again=True) is None or not made:
        return
    model, lanes = made[0]
    try:
        open_all(ledger, lanes, model, compiles)
        _latency(ledger, lanes, rates)
        _pipelined(ledger, lanes)
        _concurrency(ledger, lanes)
    finally:
        for contender in lanes.ready.values():
            with contextlib.suppress(Exception):
                contender.close()
    _timelines(ledger, lanes)


# --- the race


def _latency(ledger: Ledger, lanes: Field, rates: Rates) -> None:
    """Interleaved rounds; one row a contender, and one for the race itself."""
    group = lanes.group
    failed: dict[str, str] = {}

    def race() -> Values:
        events = _race(lanes, failed, min(ROUNDS_SECONDS, 0.3 * max(ledger.left(), 0)))
        for name, why in failed.items():
            ledger.add(Row("latency", f"{group.name}: {name}", "failed", reason=why))
        for name, times in lanes.times.items():
            values = _latency_values(lanes, name, times, events[name], rates)
            ledger.add(Row("latency", f"{group.name}: {name}", "ok", values))
        return {"rounds": max(map(len, lanes.times.values()), default=0), "contenders": len(lanes.times)}

    # Run again by a fresh process: it has no times of its own, and pairs of rounds need one process.
    ledger.measure("rounds", group.name, race, 180.0, again=True)


def _race(lanes: Field, failed: dict[str, str], seconds: float) -> dict[str, list[float]]:
    """Host seconds into ``lanes.times``; given back are the same brackets by the GPU's clock.

    The events stand on a stream of their own kind, before a contender begins and after it has ended: they
    check the host's clock. Everything is from the mix in host memory to the stems in host memory.
    """
    events: dict[str, list[float]] = {name: [] for name in lanes.ready}
    clocks = timed_event(), timed_event()
    turns = {name: _turn(lanes.ready[name], events[name], clocks) for name in lanes.ready}
    warmed = take_turns(turns, 1, warm_up=WARM_UP, through=(RowTimeoutError,))
    estimate = sum(times[0] for times in warmed.times.values())
    rounds = int(min(max(seconds / max(estimate, 1e-6), MIN_ROUNDS), MAX_ROUNDS))
    raced = take_turns(
        {name: turns[name] for name in warmed.times}, rounds, warm_up=0, through=(RowTimeoutError,)
    )
    for name, error in {**warmed.failed, **raced.failed}.items():
        _drop(lanes, failed, name, error)
    if warmed.interrupted or raced.interrupted:
        raise KeyboardInterrupt
    lanes.times.update(raced.times)
    return {name: events[name][-len(times) :] for name, times in raced.times.items()}


def _turn(
    contender: Contender, events: list[float], clocks: tuple[torch.cuda.Event, torch.cuda.Event]
) -> Turn:
    """Seconds of one run by the host's clock; those by the GPU's go into ``events``."""
    before, after = clocks

    def turn(_number: int) -> float:
        torch.cuda.synchronize()
        before.record()
        began = time.perf_counter()
        contender.run()
        took = time.perf_counter() - began
        after.record()
        after.synchronize()
        events.append(before.elapsed_time(after) / 1e3)
        return took

    return turn


def _drop(lanes: Field, failed: dict[str, str], name: str, error: Exception) -> None:
    failed[name] = named_line(error)
    lanes.times.pop(name, None)
    with contextlib.suppress(Exception):
        lanes.ready.pop(name).close()


def _latency_values(
    lanes: Field, name: str, times: list[float], events: list[float], rates: Rates
) -> dict[str, Any]:
    manifest = lanes.group.bundles[0].manifest
    values: dict[str, Any] = {
        "host_ms": _ms(spread(times)),
        "event_ms": _ms(spread(events)),
        "rounds": len(times),
        "audio_seconds_per_second": manifest.batch * float(manifest.model.segment) / float(np.median(times)),
        "rounds_ms": [round(1e3 * each, 4) for each in times],
    }
    if BASELINE in lanes.times:
        values["times_faster_than_torch_eager"] = ratio_interval(lanes.times[BASELINE], times)
    rate, bandwidth = rates.get(lanes.ready[name].rate), rates.get("bandwidth")
    if rate and bandwidth:
        floor = floor_of(manifest.batch * manifest.macs, traffic_bytes(manifest), rate, bandwidth)
        values["floor_ms"] = _ms(floor)
        values["times_the_floor"] = (
            times_floor(float(np.median(times)), floor) or "its floor was measured too high"
        )
    return values


def _ms(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: 1e3 * value for name, value in seconds.items()}


def _pipelined(ledger: Ledger, lanes: Field) -> None:
    """Batches back to back, two under way: what a song costs, where heads and tails overlap."""
    for name, contender in lanes.ready.items():
        if isinstance(contender, OurContender):
            ledger.measure(
                "pipelined", f"{lanes.group.name}: {name}", functools.partial(_back_to_back, contender)
            )


def _back_to_back(contender: OurContender) -> Values:
    contender.pipelined(4)
    began = time.perf_counter()
    contender.pipelined(PIPELINED)
    each = (time.perf_counter() - began) / PIPELINED
    return {"batches": PIPELINED, "ms_per_batch": 1e3 * each}


def _concurrency(ledger: Ledger, lanes: Field) -> None:
    """Sequential against the other modes of the same engine, said plainly."""
    for name, contender in lanes.ready.items():
        if not isinstance(contender, OurContender) or contender.mode == "sequential":
            continue
        base = name.replace(contender.mode, "sequential")
        if base in lanes.times and name in lanes.times:
            pair = lanes.times[base], lanes.times[name]
            ledger.measure("concurrency", f"{lanes.group.name}: {name}", functools.partial(verdict, *pair))


# --- who ran when


def _timelines(ledger: Ledger, lanes: Field) -> None:
    bundle = lanes.group.bundles[0]
    for name, raced in lanes.ready.items():
        if isinstance(raced, OurContender) and raced.layout == "split" and raced.mode != "graph":
            work = functools.partial(_timeline, lanes, bundle, raced.engine, raced.precision, raced.mode)
            ledger.measure("timeline", f"{lanes.group.name}: {name}", work)


def _timeline(lanes: Field, bundle: Bundle, engine: str, precision: Precision, mode: Mode) -> Values:
    """Stages of one segment by the device's timed events, milliseconds from the first one's start."""
    bundle = in_precision(bundle, precision)
    contender = OurContender(bundle, engine, mode, precision, lanes.mix, lanes.group.checkpoint, trace=True)
    try:
        trace = contender.separator.scheduler.trace
        if trace is None:
            raise Unavailable("the scheduler keeps no trace")
        for _ in range(WARM_UP):
            contender.run()
        trace.clear()
        contender.run()
        events = trace.events()
    finally:
        contender.close()
    start = min(event.start for event in events)
    stages: list[dict[str, Any]] = [
        {
            "stage": event.stage, "branch": event.branch, "stream": event.stream,
            "start_ms": 1e3 * (event.start - start), "end_ms": 1e3 * (event.end - start),
        }
        for event in events
    ]  # fmt: skip
    return {
        "span_ms": max(stage["end_ms"] for stage in stages),
        "sum_of_stages_ms": sum(stage["end_ms"] - stage["start_ms"] for stage in stages),
        "stages": stages,
    }
