"""Compares a signal with its reference block by block, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.measuring.deviation import ratio_db

Samples = NDArray[Any]


@dataclass(frozen=True)
class Figures:
    """The distance of a tensor or a stem from its reference.

    Attributes:
        snr: reference over error in dB; infinite if they are equal, minus infinity with NaN or infinity.
        si_sdr: the same after the best gain, in dB: what is left if the level alone may differ.
        level: RMS of the reference in dB relative to 1 (dBFS for audio).
        worst: largest absolute error.
        worst_at: index of that value; for a signal given in blocks the last axis counts from its start.
        nan, inf: values that are so where the reference is finite.
        saturated: finite values at the largest magnitude that their element type holds.
        elements: values compared.
    """

    snr: float
    si_sdr: float
    level: float
    worst: float
    worst_at: tuple[int, ...]
    nan: int
    inf: int
    saturated: int
    elements: int

    @property
    def finite(self) -> bool:
        return not (self.nan or self.inf)

    @property
    def nonfinite(self) -> str:
        return f"{self.nan} NaN and {self.inf} infinite values"


class Difference:
    """Compares a signal with its reference, piece by piece.

    >>> difference = Difference()
    >>> difference.add(np.array([1.0, 2.1]), np.array([1.0, 2.0]))
    >>> round(difference.figures().snr, 1), difference.figures().worst_at
    (27.0, (1,))
    """

    def __init__(self) -> None:
        self.signal = self.error = self.cross = 0.0
        self.worst = 0.0
        self.worst_at: tuple[int, ...] = (0,)
        self.nan = self.inf = self.saturated = self.elements = 0

    def add(self, value: Samples, reference: Samples, start: int = 0) -> None:
        """Takes in one piece.

        Args:
            value, reference: of one shape.
            start: place of the piece's first value along the last axis of the whole signal.
        """
        if np.issubdtype(value.dtype, np.floating):
            self.saturated += int((np.abs(value) == np.finfo(value.dtype).max).sum())
        exact = reference.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            error = value.astype(np.float64) - exact
        bad = ~np.isfinite(error)
        if bad.any():
            nan = int(np.isnan(value).sum())
            self.nan += nan
            self.inf += int(bad.sum()) - nan
            error[bad] = math.inf
        flat = int(np.abs(error).argmax())
        worst = float(abs(error.flat[flat]))
        if worst > self.worst or not self.elements:
            *outer, last = (int(index) for index in np.unravel_index(flat, error.shape))
            self.worst, self.worst_at = worst, (*outer, last + start)
        self.elements += value.size
        self.signal += float(np.vdot(exact, exact))
        self.error += math.inf if bad.any() else float(np.vdot(error, error))
        self.cross += math.nan if bad.any() else float(np.vdot(error, exact))

    def figures(self) -> Figures:
        """Returns what has been found so far."""
        count = max(self.elements, 1)
        return Figures(
            snr=ratio_db(self.signal, self.error),
            si_sdr=self._si_sdr(),
            level=ratio_db(self.signal, count),
            worst=self.worst,
            worst_at=self.worst_at,
            nan=self.nan,
            inf=self.inf,
            saturated=self.saturated,
            elements=self.elements,
        )

    def _si_sdr(self) -> float:
        """Through the error rather than the value: the difference of two large sums would hold no 150 dB."""
        if not math.isfinite(self.error) or self.signal == 0:
            return ratio_db(self.signal, self.error)
        along = self.cross / self.signal
        return ratio_db((1 + along) ** 2 * self.signal, max(self.error - along * self.cross, 0.0))
