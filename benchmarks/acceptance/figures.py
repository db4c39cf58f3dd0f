"""What is made of the times: medians and tails. Intervals, verdicts and floors are ``mrsep_deploy.bench``'s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and range, in the unit of the values."""
    array = np.asarray(values, np.float64)
    return {
        "median": float(np.median(array)),
        "p95": float(np.percentile(array, 95)),
        "min": float(array.min()),
        "max": float(array.max()),
    }
