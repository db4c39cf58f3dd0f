"""Engines that record how long every operator takes: ONNX Runtime by its profiler, OpenVINO by its counters.

Both slow a run down a little.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import Runner, Stream, Tensors
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.engines.onnxruntime import OnnxRuntimeEngine
from mrsep_deploy.engines.openvino import OpenVinoEngine
from mrsep_deploy.errors import EngineError


@dataclass(frozen=True)
class NodeTime:
    """One operator in one run of a stage.

    Attributes:
        name: as the engine calls it.
        kind: the operator: ``Conv`` or, of the engine's own making, ``ReorderOutput``.
        how: the kernel, where the engine tells.
        seconds: it took.
    """

    name: str
    kind: str
    how: str
    seconds: float


Runs = list[list[NodeTime]]
"""The operators of every run of a stage, in order."""


class NodeClock(abc.ABC):
    """What a profiling engine has noted; mixed into it.

    Args:
        folder: for files; exists.
    """

    folder: Path

    @abc.abstractmethod
    def stage_runs(self, stage: str) -> Runs:
        """All runs of a stage so far; ends the profiling of that stage.

        Raises:
            EngineError: what the engine has noted cannot be read.
        """


class ProfilingOrt(OnnxRuntimeEngine, NodeClock):
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
    runs: Runs = [[] for _ in spans]
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        for (begin, end), run in zip(spans, runs, strict=True):
            if begin <= event["ts"] <= end:
                arguments = event["args"]
                name = event["name"].removesuffix("_kernel_time")
                run.append(
                    NodeTime(name, arguments["op_name"], arguments.get("provider", ""), event["dur"] / 1e6)
                )
                break
    return runs


class ProfilingOpenVino(OpenVinoEngine, NodeClock):
    """``openvino`` with counters; what it compiles stays out of the user's cache."""

    def __init__(self, options: EngineOptions, folder: Path) -> None:
        super().__init__(options)
        self.folder = folder
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


class Profilers:
    """The engines that can be profiled."""

    makers: ClassVar[dict[str, Callable[[EngineOptions, Path], Engine]]] = {
        "ort": ProfilingOrt,
        "openvino": ProfilingOpenVino,
    }
