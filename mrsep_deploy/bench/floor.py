"""The shortest a run can take: its arithmetic at the machine's matrix rate, its bytes at its copy rate.

    arithmetic = 2 MACs / FLOP rate
    memory     = bytes that must move / bandwidth
    floor      = the greater of the two       (the roofline of Williams, Waterman and Patterson, 2009)

Both rates are measured where the run is, ``mrsep_deploy.bench.ceilings``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import numpy as np

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest, Stage

WEIGHT_BYTES = 4
FAULTY = (
    "the floor was measured too high, as nothing takes less time than its floor: the machine was busy while its "
    "best rates were measured, or what the model moves stays in the caches"
)


def traffic_bytes(manifest: Manifest) -> int:
    """Bytes a run must move at least: every weight once, and what each stage reads and writes.

    Tensors inside of a stage are left out: a perfect engine would keep them on the chip.
    """
    sizes = _sizes(manifest)
    passed = sum(sizes[name] for stage in manifest.stages for name in (*stage.inputs, *stage.outputs))
    return passed + WEIGHT_BYTES * manifest.model.parameters


def stage_bytes(manifest: Manifest, stage: Stage) -> int:
    """:func:`traffic_bytes` of one stage."""
    sizes = _sizes(manifest)
    return sum(sizes[name] for name in (*stage.inputs, *stage.outputs)) + WEIGHT_BYTES * stage.parameters


def _sizes(manifest: Manifest) -> dict[str, int]:
    # NumPy has no bfloat16, which is as wide as float16.
    widths = {"bfloat16": 2}
    return {
        spec.name: spec.elements * (widths.get(spec.dtype) or np.dtype(spec.dtype).itemsize)
        for spec in manifest.tensors
    }


def stage_macs(bundle: Bundle) -> tuple[dict[str, int], str]:
    """Multiply-accumulates of one segment by graph stage, and where they were counted.

    On the graphs themselves where ``onnx-ir`` is installed, else as the manifest tells.
    """
    manifest = bundle.manifest
    if importlib.util.find_spec("onnx_ir") is None:
        return {stage.name: stage.macs for stage in manifest.graph_stages}, "manifest"
    from mrsep_deploy.inspection.graph_costs import bundle_cost

    return {stage.name: stage.graph_macs or 0 for stage in bundle_cost(bundle).stages}, "graphs"


def floor_of(macs: float, moved: float, flops: float, bandwidth: float) -> dict[str, float]:
    """The shortest at these rates.

    Args:
        macs: multiply-accumulates.
        moved: bytes.
        flops: of matrix products, per second.
        bandwidth: bytes per second, those read and those written.

    Returns:
        ``arithmetic`` and ``memory`` in seconds, and ``floor``, the greater of the two.
    """
    arithmetic, memory = 2 * macs / flops, moved / bandwidth
    return {"arithmetic": arithmetic, "memory": memory, "floor": max(arithmetic, memory)}


def times_floor(seconds: float, floor: Mapping[str, float]) -> float | None:
    """How many times its floor a run took; None where there is no floor, or a faulty one (:data:`FAULTY`).

    Args:
        seconds: it took.
        floor: of it, from :func:`floor_of`.
    """
    return seconds / floor["floor"] if 0 < floor["floor"] <= seconds else None


def floor_seconds(
    manifest: Manifest, flops: float, bandwidth: float, macs: Mapping[str, int] | None = None
) -> dict[str, float]:
    """:func:`floor_of` one batch of a bundle; ``macs`` of a segment by stage, by default the manifest's."""
    total = manifest.macs if macs is None else sum(macs.values())
    return floor_of(total * manifest.batch, traffic_bytes(manifest), flops, bandwidth)
