"""Statistics of times: medians with spread, tails, paired ratios with intervals, drift.

The interval of a ratio is a percentile bootstrap of the median of the rounds' own ratios. With the times
``a_i`` and ``b_i`` of two contenders in round ``i`` of ``n``:

    r_i = a_i / b_i                                        a slow moment of both cancels
    m_k = median(r_{j_1}, ..., r_{j_n})                    n rounds drawn with replacement, k = 1 .. 2000
    [low, high] = the 2.5th and 97.5th percentile of m_k   (Efron and Tibshirani, 1993, chapter 13)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 20260
SPREAD = {"median": 50, "p25": 25, "p75": 75, "min": 0, "max": 100}
"""What :func:`spread` returns, as percentiles."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles and range, in the unit of the values."""
    found = np.percentile(np.asarray(values, np.float64), list(SPREAD.values()))
    return dict(zip(SPREAD, found.tolist(), strict=True))


def rounds_for(percent: float) -> int:
    """Returns how many rounds a percentile needs, so that one of them is expected beyond it: 20 for the 95th."""
    return round(100 / (100 - percent))


def tail(values: Sequence[float], percent: float) -> float | None:
    """Returns a percentile, or None where fewer than :func:`rounds_for` rounds would only repeat the slowest."""
    if len(values) < rounds_for(percent):
        return None
    return float(np.percentile(np.asarray(values, np.float64), percent))


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Returns the ``median`` of the rounds' own ratios, and ``low`` and ``high``, which hold it with ``CONFIDENCE``.

    Args:
        above, below: times of two contenders in the same rounds, as many of one as of the other.
    """
    ratios: NDArray[np.float64] = np.divide(np.asarray(above, np.float64), np.asarray(below, np.float64))
    random = np.random.default_rng(SEED)
    medians = np.median(ratios[random.integers(0, len(ratios), (RESAMPLES, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def verdict(sequential: Sequence[float], concurrent: Sequence[float]) -> dict[str, object]:
    """Returns how many times faster concurrent streams are, and whether they win, in words."""
    found = ratio_interval(sequential, concurrent)
    low, high = found["low"], found["high"]
    share = f"{abs(found['median'] - 1):.1%} (times faster {found['median']:.3f}, 95 % from {low:.3f} to {high:.3f})"
    how = "wins by" if low > 1 else "loses by" if high < 1 else "makes no difference that can be told:"
    return {"times_faster": found, "verdict": f"concurrency {how} {share}"}


def drift(values: Sequence[float]) -> float | None:
    """Returns the median of the later half of the rounds over that of the earlier, less 1; None below four rounds.

    The middle one of an odd number of rounds belongs to neither half.
    """
    half = len(values) // 2
    if half < 2:
        return None
    return float(np.median(values[-half:]) / np.median(values[:half])) - 1


def drifted(values: Sequence[float]) -> bool:
    """Returns whether the halves of the rounds differ by more than rounds of the same half do.

    The medians of the halves differ by more than three times the median distance of a round from the median
    of its own half. Chance alone does that about once in a hundred times; below six rounds nothing is said.
    """
    half = len(values) // 2
    if half < 3:
        return False
    halves = [np.asarray(part, np.float64) for part in (values[:half], values[-half:])]
    apart = abs(float(np.median(halves[1]) - np.median(halves[0])))
    inside = np.concatenate([np.abs(part - np.median(part)) for part in halves])
    return apart > 3 * float(np.median(inside))
