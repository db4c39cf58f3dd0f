"""PyTorch, the reference: runs the published modules themselves, stage by stage."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import Runner, Stream, Tensors
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import EngineError, first_line
from mrsep_deploy.process.interrupts import aside


class TorchEngine(Engine):
    """Runs the model a bundle was exported from, found through the bundle's provenance.

    Nothing of the exported graphs is used, which is what makes it a reference. It is slow beside the other engines,
    so ``auto`` does not take it.
    """

    name: ClassVar[str] = "torch"
    title: ClassVar[str] = "PyTorch (reference)"
    package: ClassVar[str] = "torch"
    install: ClassVar[str] = 'pip install "mrsep-deploy[export]"'

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._modules: dict[str, dict[str, Any]] = {}

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        return _TorchRunner(aside(lambda: self._graphs(bundle))[stage.name], stage, threads)

    def _graphs(self, bundle: Bundle) -> dict[str, Any]:
        """The module of every graph stage, by name."""
        from mrsep_deploy.export.load import reload

        if bundle.digest not in self._modules:
            manifest = bundle.manifest
            staged = reload(manifest.provenance, self.options.checkpoint).staged(manifest.layout)
            graphs = {s.stage.name: s.module for s in staged.stages if s.stage.kind == "graph"}
            expected = {stage.name for stage in manifest.graph_stages}
            if set(graphs) != expected:
                raise EngineError(
                    f"the checkpoint splits into {len(graphs)} graphs, the bundle has {len(expected)}",
                    "Export the checkpoint again.",
                )
            self._modules[bundle.digest] = graphs
        return self._modules[bundle.digest]


class _TorchRunner(Runner):
    def __init__(self, part: Any, stage: Stage, threads: int) -> None:
        self.part = part
        self.stage = stage
        self.threads = threads

    def __call__(self, tensors: Tensors) -> None:
        import torch

        # The setting belongs to the calling thread, which is the stream's worker.
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        given = [torch.from_numpy(tensors[name]) for name in self.stage.inputs]
        try:
            with torch.inference_mode():
                results = self.part(*given)
        except RuntimeError as error:
            raise EngineError(f"PyTorch failed in stage {self.stage.name}: {first_line(error)}") from error
        for name, result in zip(self.stage.outputs, results, strict=True):
            np.copyto(cast("NDArray[Any]", tensors[name]), result.numpy())

    def close(self) -> None:
        self.part = None
