"""Compares two signals: their distance relative to the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.measuring.decibels import ratio_db


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
        size = float(np.linalg.norm(exact.ravel()))
        if math.isnan(difference):
            return cls(math.inf)
        if size == 0:
            return cls(0.0 if difference == 0 else math.inf)
        return cls(difference / size)
