"""Limits in dB, each with its reason, and the stem that stands for all stems of a separation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrsep_deploy.errors import UsageError
from mrsep_deploy.measuring.deviation import Deviation

FLOAT32_DB = 100.0
FLOAT16_DB = 60.0
BFLOAT16_DB = 42.0
LOSS_FACTOR = 3.0
"""A float32 result may be this many times as far from float64 as PyTorch's own float32."""
AUDIBLE_DBFS = -60.0
"""Stems below this level are reported, not judged: an error 60 dB below them is below 20 bits."""
SDR_CHANGE_DB = 0.005
WORST_STEM = f"of the worst stem above {AUDIBLE_DBFS:g} dBFS"
"""How tables and pages describe the stem that :func:`worst_stem` returns."""

_REASONS = {
    "float32": (
        FLOAT32_DB,
        f"float32 in any order of summation; {LOSS_FACTOR:g} times PyTorch's own float32 loss where that is more",
    ),
    "float16": (
        FLOAT16_DB,
        "rounding errors of float16 stay inaudible under the stem, and move its SDR by less than 0.005 dB",
    ),
    "bfloat16": (BFLOAT16_DB, "bfloat16 has 3 bits fewer than float16, which are 18 dB"),
}


@dataclass(frozen=True)
class Limit:
    """The least SNR of a stem in dB, and why it is that."""

    decibels: float
    reason: str

    def for_stem(self, yardstick: float | None = None) -> float:
        """The limit of one stem; ``yardstick`` is the SNR of PyTorch's own float32 in dB, where it was measured."""
        if yardstick is None:
            return self.decibels
        allowed = LOSS_FACTOR * 10 ** (-yardstick / 20)
        return min(self.decibels, Deviation(allowed).snr)


def limit_for(precision: str, asked: float | None = None) -> Limit:
    """The limit of a bundle's precision, or the one that was asked for.

    Raises:
        UsageError: no limit is known for that precision.
    """
    if asked is not None:
        return Limit(asked, "as asked for")
    if precision not in _REASONS:
        known = ", ".join(_REASONS)
        raise UsageError(
            f"the bundle's precision is {precision}, limits are known for {known}", "Give --limit DB."
        )
    return Limit(*_REASONS[precision])


def worst_stem(snr: Mapping[str, float], limits: Mapping[str, float | None]) -> str | None:
    """Returns the stem with the lowest SNR of those loud enough to be judged, which have a limit; None if none is.

    Both are in dB by stem; an SNR is infinite where stems are equal, minus infinity where values are not finite.
    """
    judged = [stem for stem, limit in limits.items() if limit is not None]
    return min(judged, key=lambda stem: snr[stem], default=None)
