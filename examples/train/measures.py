"""Signal-to-distortion ratios of estimates, and of the mixture taken for an estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SILENT = 1e-3  # of the mixture's deviation


def sdr(reference: Tensor, estimate: Tensor) -> float:
    """``10 log10(|s|^2 / |s - e|^2)`` over all channels and samples, in dB."""
    error = float((reference - estimate).double().square().sum())
    power = float(reference.double().square().sum())
    return 10 * math.log10(max(power, 1e-20) / max(error, 1e-20))


def improvement(
    estimates: Sequence[Tensor], references: Sequence[Tensor], sources: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Medians per source over items ``[sources, 2, samples]``, without those where the source is silent.

    Returns:
        ``sdr``, that of the mixture as estimate, and ``gain``, the median difference; sources that never
        sound are left out.
    """
    found = {}
    for index, source in enumerate(sources):
        pairs = [
            (sdr(stems[index], estimate[index]), sdr(stems[index], stems.sum(dim=0)))
            for estimate, stems in zip(estimates, references, strict=True)
            if float(stems[index].std()) > _SILENT * float(stems.sum(dim=0).std())
        ]
        if pairs:
            found[source] = {
                "sdr": _median([ours for ours, _ in pairs]),
                "mixture": _median([theirs for _, theirs in pairs]),
                "gain": _median([ours - theirs for ours, theirs in pairs]),
            }
    return found


def _median(values: Sequence[float]) -> float:
    return round(float(torch.tensor(values, dtype=torch.float64).quantile(0.5)), 2)
