"""Compares two signals: energy ratios in dB, and their distance relative to the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def ratio_db(signal: float, noise: float) -> float:
    """Returns ``10 lg(signal / noise)`` of two energies: infinite without noise, minus infinity without signal."""
    if noise == 0:
        return math.inf
    if signal == 0 or math.isinf(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)


def level_db(samples: NDArray[Any]) -> float:
    """Returns the RMS in dB relative to 1; minus infinity for silence."""
    return ratio_db(float(np.mean(np.square(samples, dtype=np.float64))), 1.0)


@dataclass(frozen=True)
class Deviation:
    """Relative L2 distance of one tensor from its reference; ``snr`` is the same in dB."""

    relative: float

    @property
    def snr(self) -> float:
        return ratio_db(1.0, self.relative**2)

    @classmethod
    def between(cls, value: NDArray[Any], reference: NDArray[Any]) -> Deviation:
        """Returns ``||value - reference|| / ||reference||`` in float64; NaN counts as infinitely far.

        A reference of zeros is met only by zeros.
        """
        exact = reference.astype(np.float64)
        difference = float(np.linalg.norm((value.astype(np.float64) - exact).ravel()))
        return cls.of(difference, float(np.linalg.norm(exact.ravel())))

    @classmethod
    def of(cls, difference: float, size: float) -> Deviation:
        """Returns the deviation of a tensor whose difference from a reference of norm ``size`` has this norm."""
        if math.isnan(difference):
            return cls(math.inf)
        if size == 0:
            return cls(0.0 if difference == 0 else math.inf)
        return cls(difference / size)
