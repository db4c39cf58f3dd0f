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
from mrsep_deploy.measuring.limits import LOSS_FACTOR, Judgement, Limit, Powers, worst_stem

Stems = NDArray[Any]

WRONG = "wrong stems"


@dataclass(frozen=True)
class Reference:
    """What stems are compared with: stems ``[..., S, C, n]``, ``exact`` where they are in float64.

    Attributes:
        yardstick: SNR in dB by source of PyTorch's own float32; empty where it is not known.
        scale: what a sample of 1 means in full scale.
        mix: mean square of the mix, relative to full scale.
    """

    title: str
    stems: Stems
    exact: bool
    yardstick: Mapping[str, float]
    mix: float
    scale: float = 1.0


@dataclass(frozen=True)
class Parity:
    """Stems against a reference, in dB by source.

    Attributes:
        reference: what that is.
        judgements: of each stem; its error is infinite where there is no number in it.
        mark: what is wrong, for a cell of a table: ``wrong stems: 38.5 dB, limit 60``; empty if nothing is.
        where: which stem that is, or what else there is to say of it.
    """

    reference: str
    judgements: Mapping[str, Judgement]
    mark: str = ""
    where: str = ""

    @property
    def passes(self) -> bool:
        return not self.mark

    @property
    def snr(self) -> Mapping[str, float]:
        """SNR in dB of each stem."""
        return {name: each.powers.snr for name, each in self.judgements.items()}

    @property
    def limit(self) -> Mapping[str, float | None]:
        """The least SNR of each stem; None where it does not count, as the stem passes by the mix, or in silence."""
        return {
            name: each.least if each.passes_by in ("SNR", None) else None
            for name, each in self.judgements.items()
        }

    @property
    def worst(self) -> str | None:
        """The stem that stands for all of them, :func:`mrsep_deploy.measuring.limits.worst_stem`."""
        return worst_stem(self.snr, self.limit)

    @property
    def reason(self) -> str:
        """All that is wrong, in words; empty if nothing is."""
        return f"{self.mark} ({self.where})" if self.mark else ""

    def plain(self) -> dict[str, object]:
        """Returns the figures as JSON has them."""
        below = {name: each.powers.below_mix for name, each in self.judgements.items()}
        return {
            "reference": self.reference,
            "snr_db": {name: finite(value) for name, value in self.snr.items()},
            "exact": [name for name, value in self.snr.items() if value == math.inf],
            "limit_db": {name: finite(value) for name, value in self.limit.items()},
            "below_mix_db": {name: finite(value) for name, value in below.items()},
            "passes_by": {name: each.passes_by for name, each in self.judgements.items()},
            "passes": self.passes,
            "reason": self.reason,
        }


def compare(stems: Stems, reference: Reference, sources: Sequence[str], limit: Limit) -> Parity:
    """Judges every stem of a contender, ``[..., S, C, n]``, by a reference on the same mix and a limit."""
    if stems.shape != reference.stems.shape:
        mark = f"{WRONG}: shape {list(stems.shape)}, expected {list(reference.stems.shape)}"
        return Parity(reference.title, {}, mark, f"against {reference.title}")
    judgements: dict[str, Judgement] = {}
    for index, name in enumerate(sources):
        exact = reference.stems[..., index, :, :]
        powers = _powers(stems[..., index, :, :], exact, reference)
        judgements[name] = limit.judge(powers, allowed(limit, reference, reference.yardstick.get(name)))
    if not np.isfinite(stems).all():
        return Parity(reference.title, judgements, f"{WRONG}: no finite numbers", "some values at least")
    failed = {name: each for name, each in judgements.items() if each.passes_by is None}
    if not failed:
        return Parity(reference.title, judgements)
    worst = min(failed, key=lambda name: failed[name].powers.snr)
    found = failed[worst]
    least = f"{found.least:.1f}".removesuffix(".0")
    mark = f"{WRONG}: {found.powers.snr:.1f} dB, limit {least}"
    below = f"its error {found.powers.below_mix:.1f} dB below the mix, limit {found.below_mix:g}"
    return Parity(reference.title, judgements, mark, f"{worst}, against {reference.title}, {below}")


def _powers(stem: Stems, exact: Stems, reference: Reference) -> Powers:
    """Of one stem ``[..., C, n]``, in full scale."""
    right = exact.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        signal, error = (float(np.mean(np.square(each))) for each in (right, stem.astype(np.float64) - right))
    full_scale = reference.scale**2
    return Powers(
        signal * full_scale, error * full_scale if math.isfinite(error) else math.inf, reference.mix
    )


def allowed(limit: Limit, reference: Reference, yardstick: float | None) -> float:
    """The least SNR of a stem in dB."""
    least = limit.for_stem(yardstick)
    if reference.exact or yardstick is None:
        return least
    return min(least, yardstick - 20 * math.log10(LOSS_FACTOR + 1))
