"""What would break in lower precision, predicted from the ranges that a calibration measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.precision.convert_graph import StageGraph, typed_graph
from mrsep_deploy.precision.graph import computing, is_constant, is_float, numbers_of
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.numbers import rounded, smallest_normal
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.precision.ranges import Calibration, Range
from mrsep_deploy.precision.rules import survives

Kind = Literal["overflow", "near overflow", "underflow", "constant", "cancellation"]
KINDS: dict[Kind, str] = {
    "overflow": "largest magnitude, beyond the largest number",
    "near overflow": "largest magnitude, within a factor of four of the largest number",
    "underflow": "RMS of the quietest segment, below the smallest normal number: bits are lost, or all of it",
    "constant": "relative error of a constant that does not survive rounding",
    "cancellation": "times that rounding errors of the factors are amplified, because terms cancel",
}
"""What the number beside each kind of hazard is."""

LARGEST: dict[Low, float] = {"float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127}
HEADROOM = 4.0
CANCELLATION = 8.0
"""Rounding both factors to float16 costs about -77 dB; this many times as much no longer leaves 60 dB."""


@dataclass(frozen=True)
class Hazard:
    """One tensor or constant that a node of low precision computes or reads.

    Attributes:
        node: the first node of low precision that is concerned.
        number: see ``KINDS``.
    """

    stage: str
    node: str
    tensor: str
    kind: Kind
    number: float


def predict(bundle: Bundle, plan: PrecisionPlan, calibration: Calibration) -> list[Hazard]:
    """Predicts the hazards of a float32 bundle in the precision of a plan, by kind, the worst first.

    Raises:
        UsageError: the plan names stages or nodes the bundle does not have.
    """
    found = []
    for stage in bundle.manifest.graph_stages:
        graph, ranges = StageGraph.of(bundle, stage), calibration.ranges.get(stage.name, {})
        low = set(typed_graph(graph, plan).low)
        seen: set[ir.Value] = set()
        for node in computing(graph.model.graph):
            for value in (*node.inputs, *node.outputs) if node.name in low else ():
                if value is None or value in seen or not is_float(value):
                    continue
                seen.add(value)
                name = str(value.name)
                hazards: Iterable[tuple[Kind, float]] = ()
                if is_constant(value):
                    hazards = _of_constant(numbers_of(value), plan.precision)
                elif name in ranges:
                    hazards = _of_range(ranges[name], plan.precision, computed=value in node.outputs)
                found += [Hazard(stage.name, str(node.name), name, kind, number) for kind, number in hazards]
    order = list(KINDS)
    # of numbers that are too small, the smallest is the worst
    signs = dict.fromkeys(order, -1) | {"underflow": 1}
    return sorted(found, key=lambda hazard: (order.index(hazard.kind), signs[hazard.kind] * hazard.number))


def _of_constant(value: NDArray[np.generic], precision: Low) -> Iterable[tuple[Kind, float]]:
    if not survives(value, precision):
        exact = value.astype(np.float64)
        error = np.linalg.norm(rounded(value, precision).astype(np.float64) - exact)
        yield "constant", float(error / np.linalg.norm(exact))


def _of_range(found: Range, precision: Low, computed: bool) -> Iterable[tuple[Kind, float]]:
    largest = LARGEST[precision]
    if found.largest > largest:
        yield "overflow", found.largest
    elif found.largest * HEADROOM > largest:
        yield "near overflow", found.largest
    if 0 < found.quietest < smallest_normal(precision):
        yield "underflow", found.quietest
    if computed and found.amplification > CANCELLATION:
        yield "cancellation", found.amplification
