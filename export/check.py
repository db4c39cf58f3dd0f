"""Checking exported graphs against PyTorch, stage by stage and as a whole, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mrsep_deploy.bundle.manifest import STEMS, Branch, Stage, TensorSpec
from mrsep_deploy.errors import ExportError, first_line
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.transforms.host import host_runner

RELATIVE_LIMIT = 1e-5
"""Relative L2 a float32 result may be from float64: 100 dB, far below what can be heard."""

LOSS_FACTOR = 3.0
"""... or this many times what PyTorch's own float32 loses, where the weights are harsher than that."""


def limit(pytorch: Deviation) -> float:
    """Largest relative L2 that passes, given PyTorch's own in float32."""
    return max(RELATIVE_LIMIT, LOSS_FACTOR * pytorch.relative)


@dataclass(frozen=True)
class StageCheck:
    """Deviation of one stage on exact inputs from PyTorch float64, and PyTorch float32's own."""

    exported: Deviation
    pytorch: Deviation

    @property
    def passes(self) -> bool:
        return self.exported.relative <= limit(self.pytorch)

    def to_json(self) -> dict[str, float]:
        return {
            "relative_l2": self.exported.relative,
            "pytorch_float32_relative_l2": self.pytorch.relative,
        }


class GraphChecker:
    """Runs exported graphs with ONNX Runtime and compares them with torch's tensors.

    Args:
        exact: every tensor of one segment in float64, by name.
        stages, branches, tensors: of the manifest to be.
    """

    def __init__(
        self,
        exact: Mapping[str, Tensor],
        stages: Sequence[Stage],
        branches: Sequence[Branch],
        tensors: Mapping[str, TensorSpec],
    ) -> None:
        self.exact = exact
        self.stages = stages
        self.branches = branches
        self.tensors = tensors
        self.graphs: dict[str, Callable[[Sequence[NDArray[np.float32]]], list[NDArray[np.float32]]]] = {}

    def add(self, stage: Stage, graph: bytes) -> list[NDArray[np.float32]]:
        """Load a stage's graph and run it on the exact inputs; returns its outputs."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = cpu_budget()
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise ExportError(
                f"ONNX Runtime refuses the graph of stage {stage.name}: {first_line(error)}"
            ) from error

        def run(inputs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
            result: list[NDArray[np.float32]] = session.run(
                list(stage.outputs), dict(zip(stage.inputs, inputs, strict=True))
            )
            return result

        self.graphs[stage.name] = run
        return run([self.exact[name].float().numpy() for name in stage.inputs])

    def whole(self, device: bool = False) -> Deviation:
        """From ``mix`` to ``stems`` through the graphs and the host's own transforms.

        Args:
            device: through the graphs of the transforms instead, as engines on a device run them.
        """
        arrays: dict[str, NDArray[np.float32]] = {"mix": self.exact["mix"].float().numpy()}
        for stage in self.stages:
            if stage.kind == "graph" or device:
                results = self.graphs[stage.name]([arrays[name] for name in stage.inputs])
                arrays.update(zip(stage.outputs, results, strict=True))
                continue
            for name in stage.outputs:
                arrays[name] = np.empty(self.tensors[name].shape, self.tensors[name].dtype)
            host_runner(stage, self.branches, cpu_budget())(arrays)
        return Deviation.between(arrays[STEMS], self.exact[STEMS].numpy())


def compare(
    values: Sequence[NDArray[np.float32]], names: Sequence[str], exact: Mapping[str, Tensor]
) -> Deviation:
    """The worst deviation among several tensors."""
    return max(
        (Deviation.between(v, exact[n].numpy()) for v, n in zip(values, names, strict=True)),
        key=lambda d: d.relative,
    )


def require(checks: Mapping[str, StageCheck]) -> None:
    """Refuse the export if a stage strays.

    Raises:
        ExportError: names the worst stage, what it reaches and what was expected.
    """
    failed = {name: check for name, check in checks.items() if not check.passes}
    if failed:
        name = max(failed, key=lambda n: failed[n].exported.relative)
        check = failed[name]
        raise ExportError(
            f"the exported {name} differs from PyTorch by {check.exported.relative:.1e} relative L2, "
            f"expected at most {limit(check.pytorch):.1e} (PyTorch's own float32 loses {check.pytorch.relative:.1e})",
            "Nothing was written.",
        )
