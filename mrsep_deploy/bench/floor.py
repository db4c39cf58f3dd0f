"""The shortest a run can take: its arithmetic at the machine's matrix rate, its bytes at its copy rate.

    arithmetic = 2 MACs / FLOP rate
    memory     = bytes that must move / bandwidth
    floor      = the greater of the two       (the roofline of Williams, Waterman and Patterson, 2009)

Both rates are measured where the run is, ``mrsep_deploy.bench.ceilings``; the MACs stand in the facts of a model.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from mrsep_deploy.bench.contenders import Contender
from mrsep_deploy.bench.results import Race, Result, Row
from mrsep_deploy.bench.workloads import SEGMENTS
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest, Stage
from mrsep_deploy.precision.names import arithmetic
from mrsep_deploy.separation.segments import stride_of

WEIGHT_BYTES = 4
WIDTHS = {"bfloat16": 2}
"""Bytes of an element where NumPy does not know its type."""
FAULTY = (
    "the floor was measured too high, as nothing takes less time than its floor: the machine was busy while its "
    "best rates were measured, or what the model moves stays in the caches"
)


def stage_bytes(manifest: Manifest, stage: Stage) -> int:
    """Bytes that a run of a stage must move at least: its weights, and what it reads and writes.

    Tensors inside of it are left out: a perfect engine would keep them on the chip.
    """
    passed = [manifest.tensor(name) for name in (*stage.inputs, *stage.outputs)]
    sizes = (each.elements * (WIDTHS.get(each.dtype) or np.dtype(each.dtype).itemsize) for each in passed)
    return sum(sizes) + WEIGHT_BYTES * stage.parameters


def traffic_bytes(manifest: Manifest) -> int:
    """:func:`stage_bytes` of all stages, and the weights that belong to none."""
    others = manifest.model.parameters - sum(stage.parameters for stage in manifest.stages)
    return sum(stage_bytes(manifest, stage) for stage in manifest.stages) + WEIGHT_BYTES * others


def stage_macs(bundle: Bundle) -> tuple[dict[str, int], str]:
    """Multiply-accumulates of one segment by graph stage, and where they were counted.

    On the graphs themselves where ``onnx-ir`` is installed, else as the manifest tells.
    """
    manifest = bundle.manifest
    if importlib.util.find_spec("onnx_ir") is None:
        return {stage.name: stage.macs for stage in manifest.graph_stages}, "manifest"
    from mrsep_deploy.inspection.complexity import bundle_cost

    return {stage.name: stage.graph_macs or 0 for stage in bundle_cost(bundle).stages}, "graphs"


def model_facts(bundle: Bundle) -> dict[str, object]:
    """What a bundle is, for the result."""
    manifest = bundle.manifest
    macs, counted = stage_macs(bundle)
    own = ("name", "layout", "batch", "precision", "fusion")
    of_model = ("family", "trained", "sources", "sample_rate", "parameters")
    of_stage = ("name", "kind", "branch", "parameters")
    return {
        **{name: getattr(manifest, name) for name in own},
        **{name: getattr(manifest.model, name) for name in of_model},
        "digest": bundle.digest,
        "licence": asdict(manifest.licence),
        "branches": [asdict(branch) for branch in manifest.branches],
        "segment_seconds": float(manifest.model.segment),
        "macs": sum(macs.values()),
        "macs_counted": counted,
        "stages": [
            {**{name: getattr(stage, name) for name in of_stage}, "macs": macs.get(stage.name, 0)}
            for stage in manifest.stages
        ],
    }


def floor_of(macs: float, moved: float, flops: float, bandwidth: float) -> dict[str, float]:
    """``arithmetic``, ``memory`` and ``floor`` in seconds of so many multiply-accumulates and bytes.

    Args:
        flops: of matrix products, per second.
        bandwidth: bytes per second, those read and those written.
    """
    arithmetic, memory = 2 * macs / flops, moved / bandwidth
    return {"arithmetic": arithmetic, "memory": memory, "floor": max(arithmetic, memory)}


def times_floor(seconds: float, floor: Mapping[str, float] | None) -> float | None:
    """How many times its floor a run took; None where there is no floor, or a faulty one (:data:`FAULTY`)."""
    return seconds / floor["floor"] if floor is not None and 0 < floor["floor"] <= seconds else None


def rate_of(contender: Contender, bundle: Bundle) -> str:
    """The precision whose rate bounds a contender: a mixed bundle's is that of most of its graphs."""
    return arithmetic(bundle.manifest) if contender.precision == "mixed" else contender.precision


def floor_of_row(row: Row, race: Race, bundle: Bundle, result: Result) -> Mapping[str, Any] | None:
    """What a row's run of a bundle would take at the machine's best, and how many times that it took.

    None where the row has no times, or the result no ceilings of its device and precision.
    """
    rates: Any = result.ceilings.get(row.contender.device, {})
    flops = rates.get("flop_per_second", {}).get(rate_of(row.contender, bundle))
    if not flops or row.median is None:
        return None
    manifest, macs, runs = bundle.manifest, result.models[race.model]["macs"], 1
    if race.workload != SEGMENTS:
        stride = stride_of(manifest.kept_samples, row.contender.overlap)
        samples = round(race.audio_seconds * manifest.model.sample_rate)
        runs = math.ceil(math.ceil(samples / stride) / manifest.batch)
    assert isinstance(macs, int)
    moved = runs * traffic_bytes(manifest)
    floor = floor_of(runs * manifest.batch * macs, moved, flops, rates["bytes_per_second"])
    times = times_floor(row.median, floor)
    return {**floor, "times": times, "reason": FAULTY if times is None and floor["floor"] else ""}
