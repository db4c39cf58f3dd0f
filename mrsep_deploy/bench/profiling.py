"""Engines that record how long every operator takes: ONNX Runtime by its profiler, OpenVINO by its counters.

Both slow a run down a little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import Runner, Stream, Tensors
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.engines.onnxruntime import OnnxRuntimeEngine
from mrsep_deploy.engines.openvino import OpenVinoEngine
from mrsep_deploy.errors import EngineError


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
        """All runs of a stage so far; ends the profiling of that stage.

        Raises:
            EngineError: the profile cannot be read.
        """
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
