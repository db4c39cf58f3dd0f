"""Checking exported graphs against PyTorch, stage by stage and as a whole, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import MIX, STEMS, Branch, Stage, TensorSpec
from mrsep_deploy.errors import ExportError, first_line
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.transforms.host import host_runner

Array = NDArray[Any]

RELATIVE_LIMIT = 1e-5
"""Relative L2 a float32 result may be from float64: 100 dB, far below what can be heard."""

LOSS_FACTOR = 3.0
"""... or this many times what PyTorch's own float32 loses, where the weights are harsher than that."""

ROUNDING = 2.0**-24
"""... or this of the sources together, where a source is far below them: float32 rounds its sums by as much."""


@dataclass(frozen=True)
class Part:
    """A tensor, or one source in it: how far the graph, and PyTorch's own float32, are from PyTorch in float64.

    ``allowed`` is the relative L2 that passes; ``excess`` relates what is found to it, and passes up to 1.
    """

    title: str
    exported: Deviation
    pytorch: Deviation
    allowed: float

    @property
    def excess(self) -> float:
        return self.exported.relative / self.allowed


@dataclass(frozen=True)
class StageCheck:
    """One stage on exact inputs: the deviations of the worst whole tensor, for people, and the worst part."""

    exported: Deviation
    pytorch: Deviation
    worst: Part

    def to_json(self) -> dict[str, float]:
        return {
            "relative_l2": self.exported.relative,
            "pytorch_float32_relative_l2": self.pytorch.relative,
        }


class Comparison:
    """Compares tensors of a segment with exact ones, every source alone.

    A quiet stem beside loud ones has limits of its own.

    Args:
        exact: every tensor of one segment in float64, by name.
        stages: of the manifest to be; they tell which tensors have an axis of sources.
        sources: their names.
    """

    def __init__(self, exact: Mapping[str, Array], stages: Sequence[Stage], sources: Sequence[str]) -> None:
        self.exact, self.sources = exact, sources
        ends = [stage for stage in stages if stage.kind in ("inverse", "denormalize")]
        self.by_source = {STEMS, *(name for stage in ends for name in (stage.inputs[0], *stage.outputs))}

    def check(
        self, names: Sequence[str], exported: Sequence[Array], pytorch: Sequence[Array], where: str
    ) -> StageCheck:
        """The check of one stage, or of the whole.

        Raises:
            ExportError: a tensor holds NaN or infinity, or has another shape; the message begins with ``where``.
        """
        whole: list[Part] = []
        parts: list[Part] = []
        for name, found, single in zip(names, exported, pytorch, strict=True):
            exact = self.exact[name]
            if found.shape != exact.shape:
                raise ExportError(
                    f"{where}: the exported graph gives {name} as {found.shape}, expected {exact.shape}",
                    "Nothing was written.",
                )
            given = {
                "PyTorch in float64 gives": exact,
                "the exported graph gives": found,
                "PyTorch in float32 gives": single,  # the limit comes from it
            }
            for title, values in given.items():
                if not np.isfinite(values).all():
                    raise ExportError(
                        f"{where}: {title} NaN or infinity in {name}, expected finite numbers",
                        "Nothing was written.",
                    )
            rows = len(self.sources) if name in self.by_source else 1
            cuts = zip(*(x.reshape(rows, -1) for x in (found, single, exact)), strict=True)
            norms = [_Norms.between(*cut) for cut in cuts]
            total = _Norms.together(norms)
            whole.append(_part(name, total, total.exact))
            if name in self.by_source:
                named = zip(self.sources, norms, strict=True)
                parts += [_part(f"{name}, {source}", part, total.exact) for source, part in named]
            else:
                parts.append(whole[-1])
        return StageCheck(
            max((part.exported for part in whole), key=lambda deviation: deviation.relative),
            max((part.pytorch for part in whole), key=lambda deviation: deviation.relative),
            max(parts, key=lambda part: part.excess),
        )


@dataclass(frozen=True)
class _Norms:
    """L2 norms in float64: how far the graph and PyTorch's float32 are from PyTorch in float64, and that itself."""

    exported: float
    pytorch: float
    exact: float

    @classmethod
    def between(cls, exported: Array, pytorch: Array, exact: Array) -> _Norms:
        graph, single = (
            float(np.linalg.norm(np.subtract(x, exact, dtype=np.float64))) for x in (exported, pytorch)
        )
        return cls(graph, single, float(np.linalg.norm(exact)))

    @classmethod
    def together(cls, parts: Sequence[_Norms]) -> _Norms:
        """Of the tensor that ``parts`` make up, each number in it once."""
        return cls(*(math.hypot(*norms) for norms in zip(*map(astuple, parts), strict=True)))


def _part(title: str, norms: _Norms, whole: float) -> Part:
    """The part with these norms of a tensor whose exact values have the norm ``whole``."""
    exported, pytorch = (Deviation.of(far, norms.exact) for far in (norms.exported, norms.pytorch))
    share = norms.exact / (whole or 1.0)
    allowed = max(RELATIVE_LIMIT, LOSS_FACTOR * pytorch.relative, ROUNDING / share if share else 0.0)
    return Part(title, exported, pytorch, allowed)


@dataclass
class GraphChecker:
    """Runs exported graphs with ONNX Runtime on PyTorch's tensors, and needs nothing of PyTorch to do so.

    Args:
        exact: every tensor of one segment in float64, by name.
        stages, branches, tensors: of the manifest to be.
    """

    exact: Mapping[str, Array]
    stages: Sequence[Stage]
    branches: Sequence[Branch]
    tensors: Mapping[str, TensorSpec]
    graphs: dict[str, Callable[[Sequence[Array]], list[Array]]] = field(default_factory=dict)

    def add(self, stage: Stage, graph: bytes) -> list[Array]:
        """Load a stage's graph and run it on the exact inputs; returns its outputs.

        They are the second item of a batch of two, which finds items that mix; :meth:`whole` runs a batch of one.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = cpu_budget()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others work meanwhile
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise ExportError(
                f"ONNX Runtime refuses the graph of stage {stage.name}: {first_line(error)}"
            ) from error

        def run(inputs: Sequence[Array]) -> list[Array]:
            result: list[Array] = session.run(
                list(stage.outputs), dict(zip(stage.inputs, inputs, strict=True))
            )
            return result

        self.graphs[stage.name] = run
        inputs = (self.exact[name].astype(np.float32) for name in stage.inputs)
        return [result[1:] for result in run([np.concatenate([0.5 * x, x]) for x in inputs])]

    def whole(self, device: bool = False) -> Array:
        """The stems that ``mix`` gives, through the graphs and the host's own transforms.

        Args:
            device: through the graphs of the transforms instead, as engines on a device run them.
        """
        arrays: dict[str, Array] = {MIX: self.exact[MIX].astype(np.float32)}
        for stage in self.stages:
            if stage.kind == "graph" or device:
                results = self.graphs[stage.name]([arrays[name] for name in stage.inputs])
                arrays.update(zip(stage.outputs, results, strict=True))
                continue
            for name in stage.outputs:
                arrays[name] = np.empty(self.tensors[name].shape, self.tensors[name].dtype)
            host_runner(stage, self.branches, cpu_budget())(arrays)
        return arrays[STEMS]


def require(checks: Mapping[str, StageCheck]) -> None:
    """Refuse the export if a stage strays.

    Raises:
        ExportError: names the worst stage, the tensor and source, what it reaches and what was expected.
    """
    name, worst = max(
        ((name, check.worst) for name, check in checks.items()), key=lambda each: each[1].excess
    )
    if worst.excess > 1:
        raise ExportError(
            f"the exported {name} differs from PyTorch by {worst.exported.relative:.1e} relative L2 "
            f"({worst.title}), expected at most {worst.allowed:.1e} "
            f"(PyTorch's own float32 loses {worst.pytorch.relative:.1e})",
            "Nothing was written.",
        )
