"""Running the stages of one segment batch, in order, over buffers planned once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.buffers import Arena, happens_before, plan_buffers
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.contract import Buffers, Engine
from mrsep_deploy.host import host_runner
from mrsep_deploy.machine import cpu_budget
from mrsep_deploy.manifest import MIX, STEMS, Stage


@dataclass(frozen=True)
class TraceEvent:
    """One stage's run, in seconds since the segment began."""

    stage: str
    branch: str
    start: float
    end: float


class Scheduler:
    """Prepares every stage of a bundle on an engine and runs segments through them.

    Args:
        bundle: what to run.
        engine: what runs its graphs.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        workers = engine.options.threads or cpu_budget()
        self._steps: list[tuple[Stage, Callable[[Buffers, Buffers], None]]] = []
        for stage in manifest.stages:
            if stage.kind == "graph":
                self._steps.append((stage, engine.prepare(bundle, stage)))
            else:
                self._steps.append((stage, host_runner(stage, manifest.branches, workers)))
        # One stage at a time: each waits for the one before it, so memory is free as early as can be.
        order = {b.name: [a.name] for a, b in zip(manifest.stages, manifest.stages[1:], strict=False)}
        plan = plan_buffers(manifest.stages, manifest.tensors, happens_before(manifest.stages, order))
        self._arena = Arena(plan, manifest.tensors)
        self.trace: list[TraceEvent] = []

    @property
    def buffer_bytes(self) -> int:
        """Memory of all tensors that pass between stages."""
        return self._arena.total_bytes

    def run(self, mix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Separate one batch of segments ``[B, C, L]``; fewer than ``B`` are filled up with silence.

        Returns:
            Stems ``[b, S, C, L]`` for the ``b`` given segments; a view that the next call overwrites.
        """
        arrays = self._arena.arrays
        count = len(mix)
        arrays[MIX][:count] = mix
        arrays[MIX][count:] = 0
        began = time.perf_counter()
        trace = []
        for stage, runner in self._steps:
            start = time.perf_counter() - began
            runner(arrays, arrays)
            trace.append(TraceEvent(stage.name, stage.branch, start, time.perf_counter() - began))
        self.trace = trace
        return arrays[STEMS][:count]
