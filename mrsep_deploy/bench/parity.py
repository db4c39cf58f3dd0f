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

from mrsep_deploy.files import strict_json
from mrsep_deploy.measuring.decibels import level_db
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.limits import AUDIBLE_DBFS, LOSS_FACTOR, Limit, worst_stem

Stems = NDArray[Any]

WRONG = "wrong stems"


@dataclass(frozen=True)
class Reference:
    """What stems are compared with.

    Attributes:
        title: for people.
        stems: ``[..., S, C, n]``.
        exact: it is in float64.
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
        found: dict[str, object] = strict_json.plain(
            {
                "reference": self.reference,
                "snr_db": self.snr,
                "exact": [name for name, value in self.snr.items() if value == math.inf],
                "limit_db": self.limit,
                "passes": self.passes,
                "reason": self.reason,
            }
        )
        return found


def compare(stems: Stems, reference: Reference, sources: Sequence[str], limit: Limit) -> Parity:
    """Judge every stem.

    Args:
        stems: of a contender, ``[..., S, C, n]``.
        reference: on the same mix.
        sources: the ``S`` names.
        limit: of the contender's precision.
    """
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
    return Parity(reference.title, snr, limits, *_complaint(reference, snr, limits))


def allowed(limit: Limit, reference: Reference, yardstick: float | None) -> float:
    """The least SNR of a stem in dB."""
    least = limit.for_stem(yardstick)
    if reference.exact or yardstick is None:
        return least
    return min(least, yardstick - 20 * math.log10(LOSS_FACTOR + 1))


def _complaint(
    reference: Reference, snr: Mapping[str, float], limits: Mapping[str, float | None]
) -> tuple[str, str]:
    """The mark of the worst stem below its limit, and which stem that is; empty if all pass."""
    below = {name: least for name, least in limits.items() if least is not None and snr[name] < least}
    if not below:
        return "", ""
    worst = min(below, key=lambda name: snr[name])
    least = f"{below[worst]:.1f}".removesuffix(".0")
    return f"{WRONG}: {snr[worst]:.1f} dB, limit {least}", f"{worst}, against {reference.title}"
