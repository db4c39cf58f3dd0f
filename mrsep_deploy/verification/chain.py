"""A bundle run stage by stage, every tensor in the host's hands: slow beside the scheduler, and transparent."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import MIX, Manifest, Stage, TensorSpec
from mrsep_deploy.devices.interface import Device, Stream, TensorView
from mrsep_deploy.devices.runner import Runner
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.runtime.runners import named, prepare_runners
from mrsep_deploy.runtime.schedule import MAIN, make_schedule

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class StageRunner:
    """One prepared stage as a function of arrays, on whatever device it runs.

    Args:
        runner: of the stage; closed by whoever made it.
        stage: which one.
        manifest: shapes and element types of its tensors.
        device, stream: where it runs; the runner was made for this stream.
    """

    def __init__(
        self, runner: Runner, stage: Stage, manifest: Manifest, device: Device, stream: Stream
    ) -> None:
        self.runner, self.stage = runner, stage
        self.device, self.stream = device, stream
        self.inputs = [manifest.tensor(name) for name in stage.inputs]
        self.outputs = [manifest.tensor(name) for name in stage.outputs]

    def __call__(self, tensors: Arrays) -> dict[str, Array]:
        """Outputs by name, from the stage's inputs among ``tensors``, which stay as they are.

        Inputs are rounded to the manifest's element types.

        Raises:
            EngineError: the stage failed; the message names it.
        """
        with np.errstate(over="ignore", under="ignore"):
            given = {spec.name: np.ascontiguousarray(tensors[spec.name], spec.dtype) for spec in self.inputs}
        results = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.outputs}
        with named(self.stage), contextlib.ExitStack() as memory:
            views = {name: self._on_device(array, memory) for name, array in {**given, **results}.items()}
            for name, array in given.items():
                self._copy(views[name], array)
            self.stream.enqueue(lambda: self.runner(views))
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


class Chain:
    """Every stage of a bundle on an engine.

        with Chain(bundle, engine) as chain:
            tensors = chain.run(mix)                # every tensor of a batch of segments, by name
            outputs = chain.stage("encoder.time", tensors)

    Args:
        bundle: what to run.
        engine: what runs it; the caller closes its device.

    Raises:
        EngineError: a stage cannot be prepared.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.manifest = bundle.manifest
        schedule = make_schedule(self.manifest, "sequential")
        budget = engine.options.budget
        with contextlib.ExitStack() as stack:
            stream = engine.device.stream("verify")
            stack.callback(stream.close)
            prepared = prepare_runners(bundle, engine, schedule, budget, [{MAIN: stream}], stack)[0]
            self.runners = {
                stage.name: StageRunner(
                    prepared[stage.name].runner, stage, self.manifest, engine.device, stream
                )
                for stage in self.manifest.stages
            }
            self._cleanup = stack.pop_all()

    def stage(self, name: str, tensors: Arrays) -> dict[str, Array]:
        """The outputs of one stage, from its inputs among ``tensors``."""
        return self.runners[name](tensors)

    def run(self, mix: Array) -> dict[str, Array]:
        """Every tensor by name, of segments ``[B, C, L]``, ``B`` the bundle's batch."""
        return self.resume({MIX: mix}, self.manifest.stages)

    def resume(self, tensors: Arrays, stages: Sequence[Stage]) -> dict[str, Array]:
        """``tensors`` and what ``stages``, in their order, make of them."""
        known = dict(tensors)
        for stage in stages:
            known.update(self.stage(stage.name, known))
        return known

    def close(self) -> None:
        """Let go of sessions and memory. Idempotent."""
        self.runners = {}
        self._cleanup.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def first_items(array: Array, spec: TensorSpec, count: int, batch: int) -> Array:
    """The first ``count`` items of a batch; all of a tensor that has no batch axis."""
    return array[:count] if spec.shape[0] == batch else array
