"""One stage at a time with some of its nodes in low precision, everything around it in float32."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import FileInfo, Stage
from mrsep_deploy.bundle.manifest_json import to_json
from mrsep_deploy.bundle.places import Folder
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.precision.convert_graph import StageGraph, typed_graph
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.runtime.runners import prepare_runners
from mrsep_deploy.runtime.schedule import MAIN, make_schedule
from mrsep_deploy.verification.chain import StageRunner


class IsolatedStages:
    """Prepares typed versions of a float32 bundle's stages, whose inputs and outputs stay float32.

    Args:
        bundle: in float32.
        engine: what runs the stages; what it builds for them stays out of the user's engine cache.
        plan: which of a stage's nodes are of low precision to begin with.
    """

    def __init__(self, bundle: Bundle, engine: Engine, plan: PrecisionPlan) -> None:
        self.bundle, self.engine, self.plan = bundle, engine, plan
        # a stage is converted once for every group of nodes that is measured
        self._read: dict[str, StageGraph] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="mrsep-deploy-bisect-")
        self.folder = Path(self._folder.name)
        self._cache = engine.cache
        if engine.cache is not None:
            engine.cache = EngineCache(self.folder / "engines")

    def low_nodes(self, stage: Stage) -> tuple[str, ...]:
        """Nodes that the plan leaves in low precision, in the graph's order."""
        return typed_graph(self._graph(stage), self.plan).low

    @contextlib.contextmanager
    def runner(self, stage: Stage, low: Collection[str]) -> Iterator[StageRunner]:
        """The stage with only these of its low nodes in low precision.

        Raises:
            EngineError: the engine cannot prepare it.
        """
        wanted = set(low)
        others = tuple(name for name in self._graph(stage).names if name not in wanted)
        plan = replace(self.plan, keep={**self.plan.keep, stage.name: others})
        typed = typed_graph(self._graph(stage), plan)
        with contextlib.ExitStack() as stack:
            bundle, budget = self._only(stage, typed.data, stack), self.engine.options.budget
            stream = self.engine.device.stream("bisect")
            stack.callback(stream.close)
            schedule = make_schedule(bundle.manifest, "sequential")
            alone = replace(schedule, steps=(schedule.step(stage.name),))
            (prepared,) = prepare_runners(bundle, self.engine, alone, budget, [{MAIN: stream}], stack)
            runner = prepared[stage.name].runner
            yield StageRunner(runner, stage, bundle.manifest, self.engine.device, stream)

    def _graph(self, stage: Stage) -> StageGraph:
        if stage.name not in self._read:
            self._read[stage.name] = StageGraph.of(self.bundle, stage)
        return self._read[stage.name]

    def _only(self, stage: Stage, data: bytes, stack: contextlib.ExitStack) -> Bundle:
        """A bundle in which this stage has this graph; of the others only the description is there."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))
        assert stage.file is not None
        (folder / stage.file).write_bytes(data)
        manifest = self.bundle.manifest
        info = FileInfo(hashlib.sha256(data).hexdigest(), len(data))
        files = {**manifest.files, stage.file: info}
        changed = replace(manifest, precision=self.plan.precision, files=files)
        return Bundle(folder, to_json(changed).encode(), Folder(folder))

    def close(self) -> None:
        """Delete what was written. Idempotent."""
        self.engine.cache = self._cache
        self._folder.cleanup()
