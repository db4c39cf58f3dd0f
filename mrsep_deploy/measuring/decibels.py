"""Energy ratios in dB."""

from __future__ import annotations

import math
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
