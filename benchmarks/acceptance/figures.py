"""What is made of the times: medians, intervals, floors, verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.manifest import Manifest

RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 20260


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and range, in the unit of the values."""
    array = np.asarray(values, np.float64)
    return {
        "median": float(np.median(array)),
        "p95": float(np.percentile(array, 95)),
        "min": float(array.min()),
        "max": float(array.max()),
    }


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median of the rounds' own ratios, and its bootstrap interval (percentiles of resampled medians).

    Args:
        above, below: times of two contenders in the same rounds.
    """
    ratios: NDArray[np.float64] = np.divide(np.asarray(above, np.float64), np.asarray(below, np.float64))
    random = np.random.default_rng(_SEED)
    medians = np.median(ratios[random.integers(0, len(ratios), (RESAMPLES, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def traffic_bytes(manifest: Manifest) -> int:
    """Bytes a run must move at least: every weight once, and what each stage reads and writes.

    Tensors inside of a stage are left out: a perfect engine would keep them on the chip.
    """
    sizes = {spec.name: spec.elements * np.dtype(spec.dtype).itemsize for spec in manifest.tensors}
    passed = sum(sizes[name] for stage in manifest.stages for name in (*stage.inputs, *stage.outputs))
    return passed + 4 * manifest.model.parameters


def floor_seconds(manifest: Manifest, flops: float, bandwidth: float) -> dict[str, float]:
    """The shortest a run can take at the rates that were measured here.

    Args:
        flops: of matrix products, per second.
        bandwidth: of device memory, bytes per second.

    Returns:
        ``arithmetic`` and ``memory`` in seconds, and ``floor``, the greater of the two.
    """
    arithmetic = 2 * manifest.macs * manifest.batch / flops
    memory = traffic_bytes(manifest) / bandwidth
    return {"arithmetic": arithmetic, "memory": memory, "floor": max(arithmetic, memory)}


def verdict(sequential: Sequence[float], concurrent: Sequence[float]) -> dict[str, object]:
    """Whether streams side by side win: how many times faster they are, and that in words."""
    found = ratio_interval(sequential, concurrent)
    low, high = found["low"], found["high"]
    share = f"{abs(found['median'] - 1):.1%} (times faster {found['median']:.3f}, 95 % from {low:.3f} to {high:.3f})"
    if low > 1:
        said = f"concurrency wins by {share}"
    elif high < 1:
        said = f"concurrency loses by {share}"
    else:
        said = f"concurrency makes no difference that can be told: {share}"
    return {"times_faster": found, "verdict": said}
