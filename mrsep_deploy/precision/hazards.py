"""What would break in lower precision, predicted from the ranges that a calibration measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.precision.convert_graph import StageGraph, typed_graph
from mrsep_deploy.precision.graph import computing, is_constant, is_float, numbers_of
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.numbers import rounded, smallest_normal
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.precision.proof_record import KINDS, LARGEST, Hazard, Kind
from mrsep_deploy.precision.ranges import Calibration, Range, Ranges
from mrsep_deploy.precision.rules import survives

HEADROOM = 4.0
CANCELLATION = 8.0
"""Rounding both factors to float16 costs about -77 dB; this many times as much no longer leaves 60 dB."""


def predict(bundle: Bundle, plan: PrecisionPlan, calibration: Calibration) -> list[Hazard]:
    """Predicts the hazards of a float32 bundle in the precision of a plan, by kind, the worst first.

    Raises:
        UsageError: the plan names stages or nodes the bundle does not have.
    """
    found: list[Hazard] = []
    for stage in bundle.manifest.graph_stages:
        graph = StageGraph.of(bundle, stage)
        found += stage_hazards(graph, plan.precision, typed_graph(graph, plan).low, calibration.ranges)
    return ranked(found)


def stage_hazards(
    graph: StageGraph, precision: Low, low: Collection[str], ranges: Ranges
) -> Iterator[Hazard]:
    """Yields the hazards of one stage's graph.

    Args:
        graph: in float32.
        precision: of its nodes ``low``, by name.
        ranges: of its tensors, where there are any.
    """
    computed, measured = set(low), ranges.get(graph.stage, {})
    seen: set[ir.Value] = set()
    for node in computing(graph.model.graph):
        for value in (*node.inputs, *node.outputs) if node.name in computed else ():
            if value is None or value in seen or not is_float(value):
                continue
            seen.add(value)
            name, place = str(value.name), (graph.stage, str(node.name), str(value.name))
            if is_constant(value):
                for kind, number in _of_constant(numbers_of(value), precision):
                    yield Hazard(*place, kind, number, "graph")
            elif name in measured:
                for kind, number in _of_range(measured[name], precision, computed=value in node.outputs):
                    yield Hazard(*place, kind, number, "calibration")


def ranked(hazards: Iterable[Hazard]) -> list[Hazard]:
    """Returns hazards by kind, the worst first."""
    order = list(KINDS)
    # of numbers that are too small, the smallest is the worst
    signs = dict.fromkeys(order, -1) | {"underflow": 1}

    def place(hazard: Hazard) -> tuple[int, float]:
        return order.index(hazard.kind), signs[hazard.kind] * (
            math.inf if hazard.number is None else hazard.number
        )

    return sorted(hazards, key=place)


def overflow(largest: float, precision: Low) -> Kind | None:
    """Returns whether a magnitude is beyond the largest number, or within ``HEADROOM`` of it."""
    if largest > LARGEST[precision]:
        return "overflow"
    return "near overflow" if largest * HEADROOM > LARGEST[precision] else None


def _of_constant(value: NDArray[np.generic], precision: Low) -> Iterable[tuple[Kind, float]]:
    if not survives(value, precision):
        exact = value.astype(np.float64)
        error = np.linalg.norm(rounded(value, precision).astype(np.float64) - exact)
        yield "constant", float(error / np.linalg.norm(exact))


def _of_range(found: Range, precision: Low, computed: bool) -> Iterable[tuple[Kind, float]]:
    kind = overflow(found.largest, precision)
    if kind is not None:
        yield kind, found.largest
    if 0 < found.quietest < smallest_normal(precision):
        yield "underflow", found.quietest
    if computed and found.amplification > CANCELLATION:
        yield "cancellation", found.amplification
