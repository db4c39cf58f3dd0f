"""Judges whether a contender's stems are right; wrong stems fail it, however fast it is.

The reference of segments is PyTorch in float64 where the checkpoint is there, and PyTorch's own float32 is
the yardstick beside it; elsewhere, and for songs, the baseline's stems, whose own error then counts twice:

    |x - b| <= |x - exact| + |b - exact| <= (LOSS_FACTOR + 1) * yardstick's error
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.measuring.deviation import Deviation, level_db
from mrsep_deploy.measuring.limits import AUDIBLE_DBFS, LOSS_FACTOR, Limit, worst_stem

Stems = NDArray[Any]

WRONG = "wrong stems"


@dataclass(frozen=True)
class Reference:
    """What stems are compared with: stems ``[..., S, C, n]``, ``exact`` where they are in float64.

    Attributes:
        yardstick: SNR in dB by source of PyTorch's own float32; empty where it is not known.
        scale: what a sample of 1 means in full scale.
    """

    title: str
    stems: Stems
    exact: bool
    yardstick: Mapping[str, float]
    scale: float = 1.0


@dataclass(frozen=True)
class Parity:
    """Stems against a reference, in dB by source.

    Attributes:
        reference: what that is.
        snr: of each stem; minus infinity where there is no number in it.
        limit: the least that passes; None for a stem too quiet to be judged.
        mark: what is wrong, for a cell of a table: ``wrong stems: 38.5 dB, limit 60``; empty if nothing is.
        where: which stem that is, or what else there is to say of it.
    """

    reference: str
    snr: Mapping[str, float]
    limit: Mapping[str, float | None]
    mark: str = ""
    where: str = ""

    @property
    def passes(self) -> bool:
        return not self.mark

    @property
    def worst(self) -> str | None:
        """The stem that stands for all of them, :func:`mrsep_deploy.measuring.limits.worst_stem`."""
        return worst_stem(self.snr, self.limit)

    @property
    def reason(self) -> str:
        """All that is wrong, in words; empty if nothing is."""
        return f"{self.mark} ({self.where})" if self.mark else ""

    def plain(self) -> dict[str, object]:
        """Returns the fields as JSON has them."""
        return {
            "reference": self.reference,
            "snr_db": {name: finite(value) for name, value in self.snr.items()},
            "exact": [name for name, value in self.snr.items() if value == math.inf],
            "limit_db": dict(self.limit),
            "passes": self.passes,
            "reason": self.reason,
        }


def compare(stems: Stems, reference: Reference, sources: Sequence[str], limit: Limit) -> Parity:
    """Judge every stem of a contender, ``[..., S, C, n]``, by a reference on the same mix and its precision's limit."""
    if stems.shape != reference.stems.shape:
        mark = f"{WRONG}: shape {list(stems.shape)}, expected {list(reference.stems.shape)}"
        return Parity(reference.title, {}, {}, mark, f"against {reference.title}")
    snr: dict[str, float] = {}
    limits: dict[str, float | None] = {}
    for index, name in enumerate(sources):
        exact = reference.stems[..., index, :, :]
        snr[name] = Deviation.between(stems[..., index, :, :], exact).snr
        audible = level_db(exact) + 20 * math.log10(reference.scale) >= AUDIBLE_DBFS
        limits[name] = allowed(limit, reference, reference.yardstick.get(name)) if audible else None
    if not np.isfinite(stems).all():
        return Parity(reference.title, snr, limits, f"{WRONG}: no finite numbers", "some values at least")
    below = [name for name, least in limits.items() if least is not None and snr[name] < least]
    if not below:
        return Parity(reference.title, snr, limits)
    worst = min(below, key=lambda name: snr[name])
    least = f"{limits[worst]:.1f}".removesuffix(".0")
    mark = f"{WRONG}: {snr[worst]:.1f} dB, limit {least}"
    return Parity(reference.title, snr, limits, mark, f"{worst}, against {reference.title}")


def allowed(limit: Limit, reference: Reference, yardstick: float | None) -> float:
    """The least SNR of a stem in dB."""
    least = limit.for_stem(yardstick)
    if reference.exact or yardstick is None:
        return least
    return min(least, yardstick - 20 * math.log10(LOSS_FACTOR + 1))
