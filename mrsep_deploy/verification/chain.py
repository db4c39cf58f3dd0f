"""A bundle run stage by stage, every tensor in the host's hands: slow beside the scheduler, and transparent."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import MIX, STEMS, Stage
from mrsep_deploy.devices.interface import TensorView
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.runtime.runners import named, prepare_runners, rest
from mrsep_deploy.runtime.schedule import MAIN, make_schedule
from mrsep_deploy.separation.gate import Rows, broken, fragile

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class Chain:
    """The stages of a bundle on an engine.

        with Chain(bundle, engine) as chain:
            tensors = chain.run(mix)                # every tensor of a batch of segments, by name
            outputs = chain.stage("encoder.time", tensors)

    Args:
        bundle: what to run.
        engine: what runs it; the caller closes its device.
        only: the one stage to prepare; by default all of them.

    Raises:
        EngineError: a stage cannot be prepared.
    """

    def __init__(self, bundle: Bundle, engine: Engine, only: str | None = None) -> None:
        self.manifest, self.device = bundle.manifest, engine.device
        schedule = make_schedule(self.manifest, "sequential")
        if only is not None:
            schedule = replace(schedule, steps=(schedule.step(only),))
        with contextlib.ExitStack() as stack:
            self.stream = self.device.stream("verify")
            stack.callback(self.stream.close)
            ((prepared,),) = prepare_runners(bundle, engine, schedule, [{MAIN: self.stream}], stack)
            self.stages = {step.stage.name: step.stage for step in schedule.steps}
            self.runners = {name: each.runner for name, each in prepared.items()}
            self._cleanup = stack.pop_all()

    def stage(self, name: str, tensors: Arrays) -> dict[str, Array]:
        """Returns the outputs of one stage, from its inputs among ``tensors``, which stay as they are.

        Inputs are rounded to the manifest's element types.

        Raises:
            EngineError: the stage failed; the message names it.
        """
        stage, runner = self.stages[name], self.runners[name]
        inputs, outputs = (
            [self.manifest.tensor(n) for n in names] for names in (stage.inputs, stage.outputs)
        )
        with np.errstate(over="ignore", under="ignore"):
            given = {spec.name: np.ascontiguousarray(tensors[spec.name], spec.dtype) for spec in inputs}
        results = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in outputs}
        with named(stage), contextlib.ExitStack() as memory:
            views = {name: self._on_device(array, memory) for name, array in {**given, **results}.items()}
            if self.device.kind == "cuda":
                memory.callback(rest, self.stream)  # a stage that fails leaves copies under way
            for name, array in given.items():
                self._copy(views[name], array)
            self.stream.enqueue(lambda: runner(views))
            for name, array in results.items():
                self._copy(array, views[name])
            self.stream.synchronize()
        return results

    def _on_device(self, array: Array, memory: contextlib.ExitStack) -> TensorView:
        if self.device.kind == "cpu":
            return array
        block = self.device.allocate(array.nbytes)
        memory.callback(block.close)
        return block.tensor(0, array.shape, array.dtype.name)

    def _copy(self, target: TensorView, source: TensorView) -> None:
        if target is not source:
            self.device.copy(target, source, self.stream)

    def run(self, mix: Array) -> dict[str, Array]:
        """Returns every tensor by name, of segments ``[B, C, L]``, ``B`` the bundle's batch."""
        return self.resume({MIX: mix}, self.manifest.stages)

    def resume(self, tensors: Arrays, stages: Sequence[Stage]) -> dict[str, Array]:
        """Returns ``tensors`` and what ``stages``, in their order, make of them."""
        known = dict(tensors)
        for stage in stages:
            known.update(self.stage(stage.name, known))
        return known

    def stems(self, mix: Array) -> Array:
        """Returns the stems ``[B, S, C, L]`` of segments ``[B, C, L]``."""
        return self.run(mix)[STEMS]

    def close(self) -> None:
        """Closes sessions and memory. Idempotent."""
        self.runners = {}
        self._cleanup.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


def behind(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that depend on this one's outputs, in order."""
    changed, found = set(stage.outputs), []
    for other in stages:
        if changed & set(other.inputs):
            found.append(other)
            changed |= set(other.outputs)
    return found


class GatedChain:
    """Stems as a separator computes them: segments that lower precision would lose run in float32.

    Args:
        chain: runs the bundle.
        bundle, engine: what it runs, and what runs it.
        burstiness: see ``Gate``; infinite for a float32 bundle.
        stack: closes what runs segments in float32, which is opened when it is first needed.
    """

    def __init__(
        self, chain: Chain, bundle: Bundle, engine: Engine, burstiness: float, stack: contextlib.ExitStack
    ) -> None:
        self.chain, self.engine, self.stack = chain, engine, stack
        self.source = bundle.twin
        self.burstiness = math.inf if self.source is None else burstiness
        self.twin: Chain | None = None

    def fragile(self, mix: Array) -> Rows:
        """Which segments of a batch ``[B, C, L]`` never run in lower precision."""
        return fragile(mix, self.burstiness)

    def stems(self, mix: Array) -> tuple[Array, Rows]:
        """Returns the stems ``[B, S, C, L]`` of segments ``[B, C, L]``, and which of them ran in float32."""
        rows = self.fragile(mix)
        if rows.all():
            return self.in_float32(mix), rows
        stems = self.chain.stems(mix)
        if math.isfinite(self.burstiness):
            rows |= broken(stems)
        if rows.any():
            stems[rows] = self.in_float32(mix)[rows]
        return stems, rows

    def in_float32(self, mix: Array) -> Array:
        """Returns the stems of all segments of a batch in float32."""
        if self.twin is None:
            assert self.source is not None
            self.twin = self.stack.enter_context(Chain(self.source, self.engine.at_precision("fp32")))
        return self.twin.stems(mix)
