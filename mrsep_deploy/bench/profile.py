"""Where a segment's time goes, by stage and operator, beside the least that each stage could take.

Engines record how long every operator takes, which slows a run down a little: ONNX Runtime by its profiler, OpenVINO
by its counters.

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

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrsep_deploy.bench.benchmark import Progress, Settings
from mrsep_deploy.bench.ceilings import ceilings_for
from mrsep_deploy.bench.contenders import Contender
from mrsep_deploy.bench.floor import floor_of, model_facts, rate_of, stage_bytes, times_floor
from mrsep_deploy.bench.plan import Entry
from mrsep_deploy.bench.results import Result, outcome
from mrsep_deploy.bench.workloads import make_workloads
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import Runner, Stream, Tensors
from mrsep_deploy.engines import engine_class
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.engines.onnxruntime import OnnxRuntimeEngine
from mrsep_deploy.engines.openvino import OpenVinoEngine
from mrsep_deploy.errors import EngineError, EngineUnavailableError, MrsepError, UsageError
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.precision.names import arithmetic
from mrsep_deploy.runtime.timeline import overhead
from mrsep_deploy.runtime.trace import TraceEvent
from mrsep_deploy.separation.separator import Separator

WARM_UP = 2
SLOWEST = 10


class NodeTime(NamedTuple):
    """One operator in one run of a stage, by the name that the engine gives it."""

    name: str
    kind: str
    """``Conv`` or, of the engine's own making, ``ReorderOutput``."""
    how: str
    """The kernel, where the engine tells."""
    seconds: float


Runs = list[list[NodeTime]]
"""The operators of every run of a stage, in order."""


class ProfilingOrt(OnnxRuntimeEngine):
    """``ort`` with a profile for each session."""

    def __init__(self, options: EngineOptions, folder: Path) -> None:
        super().__init__(options)
        self.folder = folder
        self.sessions: dict[str, Any] = {}

    def session_options(self, stage: Stage, threads: int) -> Any:
        options = super().session_options(stage, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(self.folder / stage.name)
        return options

    def session(self, bundle: Bundle, stage: Stage, threads: int) -> Any:
        made = self.sessions[stage.name] = super().session(bundle, stage, threads)
        return made

    def stage_runs(self, stage: str) -> Runs:
        """All runs of a stage so far, whose profiling ends; raises ``EngineError`` where they cannot be read."""
        path = Path(self.sessions.pop(stage).end_profiling())
        try:
            return read_ort_profile(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"the profile of stage {stage} cannot be read: {error}") from error


def read_ort_profile(text: str) -> Runs:
    """The runs in a profile of ONNX Runtime (events of Chrome's trace format, microseconds).

    A ``model_run`` event spans each run; the kernel events inside of it are that run's.
    """
    events: list[dict[str, Any]] = json.loads(text)
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run"]
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    return [
        [
            NodeTime(
                event["name"].removesuffix("_kernel_time"),
                event["args"]["op_name"],
                event["args"].get("provider", ""),
                event["dur"] / 1e6,
            )
            for event in kernels
            if begin <= event["ts"] < end
        ]
        for begin, end in spans
    ]


class ProfilingOpenVino(OpenVinoEngine):
    """``openvino`` with counters; what it compiles stays out of the user's cache."""

    def __init__(self, options: EngineOptions, folder: Path) -> None:
        super().__init__(options)
        self.cache = EngineCache(folder / "engines")
        self.runs: dict[str, Runs] = {}

    def settings(self, threads: int, lanes: int = 1) -> dict[str, object]:
        return {**super().settings(threads, lanes), "PERF_COUNT": "YES"}

    def prepare_lanes(
        self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]
    ) -> list[Runner]:
        runs = self.runs.setdefault(stage.name, [])
        runners = super().prepare_lanes(bundle, stage, threads, streams)
        return [_CountingRunner(runner, runs) for runner in runners]

    def stage_runs(self, stage: str) -> Runs:
        """All runs of a stage so far."""
        return self.runs[stage]


class _CountingRunner(Runner):
    """A runner of OpenVINO's that reads the request's counters after every run."""

    def __init__(self, inner: Any, runs: Runs) -> None:
        self.inner, self.runs = inner, runs

    def __call__(self, tensors: Tensors) -> None:
        self.inner(tensors)
        self.runs.append(
            [
                NodeTime(info.node_name, info.node_type, info.exec_type, info.real_time.total_seconds())
                for info in self.inner.request.get_profiling_info()
                if info.status.name == "EXECUTED"
            ]
        )

    def close(self) -> None:
        self.inner.close()


PROFILERS: Mapping[str, type[ProfilingOrt] | type[ProfilingOpenVino]] = {
    "ort": ProfilingOrt,
    "openvino": ProfilingOpenVino,
}
"""The engines that can be profiled; each is made with its options and a folder for files."""


def profile(entries: Sequence[Entry], settings: Settings, progress: Progress) -> Result:
    """Profile every engine of every bundle; one that fails is an entry that says why.

    Raises:
        AudioError, UsageError: the music is not usable, or no engine that can be profiled was asked for.
        EngineError: the machine's own speed cannot be measured.
    """
    wanted = [
        (entry, contender)
        for entry in entries
        for contender in entry.contenders
        if contender.engine in PROFILERS and contender.mode == "sequential"
    ]
    if not wanted:
        known = " and ".join(PROFILERS)
        raise UsageError(
            f"nothing was asked for that can be profiled, expected {known}", "See: mrsep-deploy doctor"
        )
    threads = wanted[0][1].threads
    result = Result(machine_info(), {**settings.plain(), "threads": threads})
    total = len(wanted) + 1
    progress("measuring the machine", 0, total)
    result.ceilings.update(ceilings_for({contender.device for _, contender in wanted}, threads))
    try:
        for done, (entry, contender) in enumerate(wanted):
            progress(f"{entry.key}: profiling {contender.label}", done + 1, total)
            result.models.setdefault(entry.key, model_facts(entry.bundle))
            found = {
                "model": entry.key, "label": contender.label, "engine": contender.engine,
                "precision": contender.precision, "batch": entry.bundle.manifest.batch, "threads": threads,
                "status": "ok", "reason": "", "fix": "",
            }  # fmt: skip
            try:
                found.update(_measured(entry, contender, settings, result))
            except MrsepError as error:
                found.update(zip(("status", "reason", "fix"), outcome(error), strict=True))
            result.profiles.append(found)
    except KeyboardInterrupt:
        result.interrupted = True
    return result


def _measured(entry: Entry, contender: Contender, settings: Settings, result: Result) -> dict[str, object]:
    """What the module says of a profile, from ``runs`` on."""
    bundle = entry.bundle_of(contender)
    times, events, runs = _observe(bundle, contender, settings)
    manifest = bundle.manifest
    rates: Any = result.ceilings[contender.device]
    rate, bandwidth = rates["flop_per_second"][rate_of(contender, bundle)], rates["bytes_per_second"]
    counted: Any = result.models[entry.key]["stages"]
    macs = {stage["name"]: manifest.batch * stage["macs"] for stage in counted}
    medians = {
        stage.name: statistics.median(e.end - e.start for e in events if e.stage == stage.name)
        for stage in manifest.stages
    }
    stages: list[dict[str, Any]] = []
    for stage in manifest.stages:
        moved, seconds = stage_bytes(manifest, stage), medians[stage.name]
        floor = floor_of(macs[stage.name], moved, rate, bandwidth)
        stages.append(
            {
                "name": stage.name, "kind": stage.kind, "branch": stage.branch,
                "seconds": seconds, "share": seconds / sum(medians.values()),
                "macs": macs[stage.name], "bytes": moved, "floor": floor, "times": times_floor(seconds, floor),
                **_operators(runs.get(stage.name, [])),
            }
        )  # fmt: skip
    median = statistics.median(times)
    every = [
        (each["kind"], each["seconds"], each["count"])
        for stage in stages
        for each in stage["operators"]
        or [{"kind": f"{stage['kind']} (host)", "seconds": stage["seconds"], "count": 1}]
    ]
    return {
        "runs": len(times),
        "seconds": median,
        "outside_stages": overhead(events, sum(times)),
        "stages": stages,
        "operators": _by_kind(every, median),
    }


def _observe(
    bundle: Bundle, contender: Contender, settings: Settings
) -> tuple[list[float], list[TraceEvent], Mapping[str, Runs]]:
    """Run batches one after the other on a profiling engine: seconds of each, stages, operators by graph stage."""
    name = contender.engine
    available = engine_class(name).availability()
    if not available.works:
        raise EngineUnavailableError(f"engine {name} does not work here: {available.reason}", available.fix)
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-profile-") as folder:
        batches = np.load(make_workloads(bundle.manifest, settings.audio, (), Path(folder))[0].path)
        options = EngineOptions(contender.threads, contender.checkpoint_path, arithmetic(bundle.manifest))
        engine = PROFILERS[name](options, Path(folder))
        with Separator(
            bundle, engine=engine, threads=contender.threads, mode="sequential", trace=True
        ) as separator:
            trace = separator.scheduler.trace
            assert trace is not None
            for turn in range(WARM_UP):
                separator.run_segments(batches[turn % len(batches)])
            trace.clear()
            times = []
            for turn in range(settings.rounds):
                began = time.perf_counter()
                separator.run_segments(batches[turn % len(batches)])
                times.append(time.perf_counter() - began)
            graphs = [stage.name for stage in bundle.manifest.graph_stages]
            runs = {stage: engine.stage_runs(stage)[-settings.rounds :] for stage in graphs}
            return times, trace.events(), runs


def _operators(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """Seconds of one run by kind of operator, and the slowest operators; means over the runs."""
    nodes: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for run in runs:
        for node in run:
            nodes[node.name, node.kind, node.how] += node.seconds / len(runs)
    kinds = [(kind, seconds, 1) for (_name, kind, _how), seconds in nodes.items()]
    slowest = sorted(nodes.items(), key=lambda item: -item[1])[:SLOWEST]
    return {
        "operators": _by_kind(kinds, sum(nodes.values()) or 1.0),
        "nodes": [
            {"name": name, "kind": kind, "how": how, "seconds": seconds}
            for (name, kind, how), seconds in slowest
        ],
    }


def _by_kind(operators: Iterable[tuple[str, float, int]], total: float) -> list[dict[str, Any]]:
    """Operators, each a kind with its seconds and how often it stands there, added up by kind; the slowest first."""
    kinds: dict[str, tuple[float, int]] = {}
    for kind, seconds, count in operators:
        before = kinds.get(kind, (0.0, 0))
        kinds[kind] = before[0] + seconds, before[1] + count
    return [
        {"kind": kind, "seconds": seconds, "count": count, "share": seconds / total}
        for kind, (seconds, count) in sorted(kinds.items(), key=lambda item: -item[1][0])
    ]
