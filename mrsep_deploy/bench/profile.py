"""Where a segment's time goes, by stage and operator, beside the least that each stage could take.

profiles        one a model and engine:
    model, label, engine, precision, batch, threads
    status      ok, failed or unavailable; reason, fix
    runs        batches of segments that were profiled, one after the other, stages in sequence
    seconds     of one batch, from mix to stems, median; outside_stages: share in which no stage ran
    stages      in order: name, kind, branch, seconds (median of a run), share (of all stages), macs and bytes of
                a batch, floor (arithmetic, memory, floor) and times (seconds over floor; null for what has no floor,
                or one that was measured too high, as it is more than the seconds)
        operators   by kind: kind, seconds, count, share (of the stage)
        nodes       the ten slowest: name, kind, how, seconds
    operators   the same over all stages, share of the batch
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrsep_deploy.bench.benchmark import Progress, Settings
from mrsep_deploy.bench.contenders import Contender
from mrsep_deploy.bench.facts import ceilings_for, model_facts, rate_of
from mrsep_deploy.bench.floor import floor_of, stage_bytes, times_floor
from mrsep_deploy.bench.plan import Entry
from mrsep_deploy.bench.profiling import NodeClock, Profilers, Runs
from mrsep_deploy.bench.results import Result
from mrsep_deploy.bench.workloads import make_workloads
from mrsep_deploy.engines import engine_class
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import EngineUnavailableError, MrsepError, UsageError
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.precision.names import arithmetic
from mrsep_deploy.runtime.timeline import overhead
from mrsep_deploy.runtime.trace import TraceEvent
from mrsep_deploy.separation.separator import Separator

WARM_UP = 2
SLOWEST = 10


def profile(entries: Sequence[Entry], settings: Settings, progress: Progress) -> Result:
    """Profile every engine of every bundle; one that fails is an entry that says why.

    Raises:
        AudioError, UsageError: the music is not usable, or no engine that can be profiled was asked for.
        EngineError: the machine's own speed cannot be measured.
    """
    wanted = [(entry, contender) for entry in entries for contender in _profiled(entry)]
    if not wanted:
        known = " and ".join(Profilers.makers)
        raise UsageError(
            f"nothing was asked for that can be profiled, expected {known}", "See: mrsep-deploy doctor"
        )
    threads = wanted[0][1].threads
    result = Result(machine_info(), {**settings.plain(), "threads": threads})
    total = len(wanted) + 1
    progress("measuring the machine", 0, total)
    result.ceilings.update(ceilings_for([contender for _, contender in wanted], threads))
    try:
        for done, (entry, contender) in enumerate(wanted):
            progress(f"{entry.key}: profiling {contender.label}", done + 1, total)
            result.models.setdefault(entry.key, model_facts(entry.bundle))
            facts: dict[str, object] = {
                "model": entry.key, "label": contender.label, "engine": contender.engine,
                "precision": contender.precision, "batch": entry.bundle.manifest.batch, "threads": threads,
            }  # fmt: skip
            result.profiles.append({**facts, **_found(entry, contender, settings, result)})
    except KeyboardInterrupt:
        result.interrupted = True
    return result


def _profiled(entry: Entry) -> Iterator[Contender]:
    for contender in entry.contenders:
        if contender.engine in Profilers.makers and contender.mode == "sequential":
            yield contender


def _found(entry: Entry, contender: Contender, settings: Settings, result: Result) -> Mapping[str, object]:
    try:
        return {"status": "ok", "reason": "", "fix": "", **_measured(entry, contender, settings, result)}
    except (EngineUnavailableError, UsageError) as error:
        return {"status": "unavailable", "reason": error.message, "fix": error.fix}
    except MrsepError as error:
        return {"status": "failed", "reason": error.message, "fix": error.fix}


@dataclass(frozen=True)
class _Observed:
    """What was seen of some batches."""

    seconds: list[float]
    events: list[TraceEvent]
    runs: Mapping[str, Runs]


def _measured(entry: Entry, contender: Contender, settings: Settings, result: Result) -> dict[str, object]:
    bundle = entry.bundle_of(contender)
    found = _observe(entry, contender, settings)
    manifest = bundle.manifest
    rates: Any = result.ceilings[contender.device]
    counted: Any = result.models[entry.key]["stages"]
    macs = {stage["name"]: manifest.batch * stage["macs"] for stage in counted}
    by_stage = {s.name: [e.end - e.start for e in found.events if e.stage == s.name] for s in manifest.stages}
    medians = {name: statistics.median(values) for name, values in by_stage.items()}
    rate = rates["flop_per_second"][rate_of(contender, bundle)]
    stages: list[dict[str, Any]] = []
    for stage in manifest.stages:
        moved = stage_bytes(manifest, stage)
        floor = floor_of(macs[stage.name], moved, rate, rates["bytes_per_second"])
        operators, nodes = _operators(found.runs.get(stage.name, []))
        stages.append(
            {
                "name": stage.name, "kind": stage.kind, "branch": stage.branch,
                "seconds": medians[stage.name], "share": medians[stage.name] / sum(medians.values()),
                "macs": macs[stage.name], "bytes": moved, "floor": floor,
                "times": times_floor(medians[stage.name], floor),
                "operators": operators, "nodes": nodes,
            }
        )  # fmt: skip
    seconds = statistics.median(found.seconds)
    return {
        "runs": len(found.seconds),
        "seconds": seconds,
        "outside_stages": overhead(found.events, sum(found.seconds)),
        "stages": stages,
        "operators": _over_all(stages, seconds),
    }


def _observe(entry: Entry, contender: Contender, settings: Settings) -> _Observed:
    """Run batches one after the other on a profiling engine."""
    name = contender.engine
    available = engine_class(name).availability()
    if not available.works:
        raise EngineUnavailableError(f"engine {name} does not work here: {available.reason}", available.fix)
    bundle = entry.bundle_of(contender)
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-profile-") as folder:
        workload = make_workloads(bundle.manifest, settings.audio, (), Path(folder))[0]
        batches = np.load(workload.path)
        options = EngineOptions(contender.threads, contender.checkpoint_path, arithmetic(bundle.manifest))
        engine = Profilers.makers[name](options, Path(folder))
        assert isinstance(engine, NodeClock)
        with Separator(
            bundle, engine=engine, threads=contender.threads, mode="sequential", trace=True
        ) as separator:
            trace = separator.scheduler.trace
            assert trace is not None
            for turn in range(WARM_UP):
                separator.run_segments(batches[turn % len(batches)])
            trace.clear()
            seconds = []
            for turn in range(settings.rounds):
                began = time.perf_counter()
                separator.run_segments(batches[turn % len(batches)])
                seconds.append(time.perf_counter() - began)
            events = trace.events()
            runs = {
                s.name: engine.stage_runs(s.name)[-settings.rounds :] for s in bundle.manifest.graph_stages
            }
    return _Observed(seconds, events, runs)


def _operators(runs: Runs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Seconds of one run by kind of operator, and the slowest operators; means over the runs."""
    if not runs:
        return [], []
    nodes: dict[tuple[str, str, str], float] = {}
    for run in runs:
        for node in run:
            key = (node.name, node.kind, node.how)
            nodes[key] = nodes.get(key, 0.0) + node.seconds / len(runs)
    kinds: dict[str, list[float]] = {}
    for (_name, kind, _how), seconds in nodes.items():
        kinds.setdefault(kind, []).append(seconds)
    total = sum(nodes.values()) or 1.0
    operators = [
        {"kind": kind, "seconds": sum(each), "count": len(each), "share": sum(each) / total}
        for kind, each in kinds.items()
    ]
    slowest = sorted(nodes.items(), key=lambda item: -item[1])[:SLOWEST]
    return sorted(operators, key=_seconds_down), [
        {"name": name, "kind": kind, "how": how, "seconds": seconds} for (name, kind, how), seconds in slowest
    ]


def _over_all(stages: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Operators of all stages, by kind; what the host computes stands under its stage's kind."""
    kinds: dict[str, tuple[float, int]] = {}
    for stage in stages:
        host = [{"kind": f"{stage['kind']} (host)", "seconds": stage["seconds"], "count": 1}]
        for each in stage["operators"] or host:
            before = kinds.get(each["kind"], (0.0, 0))
            kinds[each["kind"]] = (before[0] + each["seconds"], before[1] + each["count"])
    found = [
        {"kind": kind, "seconds": taken, "count": number, "share": taken / seconds}
        for kind, (taken, number) in kinds.items()
    ]
    return sorted(found, key=_seconds_down)


def _seconds_down(operator: Mapping[str, Any]) -> float:
    return -float(operator["seconds"])
