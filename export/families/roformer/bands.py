"""Bands of a spectrogram: runs of neighbouring bins, side by side or overlapping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from mrsep_deploy.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE_BY_SIDE = (*(2,) * 24, *(4,) * 12, *(12,) * 8, *(24,) * 8, *(48,) * 8, 128, 129)
"""Widths of the published 62 bands of 1025 bins (Lu et al. 2023, "Music Source Separation with Band-Split RoPE
Transformer")."""

_LINEAR_HZ, _HZ_PER_MEL, _LOG_STEP = 1000.0, 200.0 / 3, math.log(6.4) / 27
"""Slaney's mel scale: linear below 1000 Hz, then 27 mels for a factor of 6.4."""


@dataclass(frozen=True)
class Band:
    """``width`` bins from ``start`` on."""

    start: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + self.width


def side_by_side(widths: Sequence[int], bins: int) -> tuple[Band, ...]:
    """Bands of these widths, one after the other.

    Raises:
        CheckpointError: they do not add up to ``bins``.
    """
    if sum(widths) != bins:
        raise CheckpointError(
            f"freqs_per_bands adds up to {sum(widths):,} bins, expected the {bins:,} of stft_n_fft",
            "Correct the model section of the configuration.",
        )
    starts = accumulate(widths, initial=0)
    return tuple(Band(start, width) for start, width in zip(starts, widths, strict=False))


def mel_bands(count: int, n_fft: int, sample_rate: int) -> tuple[Band, ...]:
    """Bands of the bins that the triangles of a mel filter bank weigh above 0 (Wang et al. 2023, "Mel-Band RoFormer").

    The first band also has the lowest bin, the last one the highest, which the triangles leave out.

    Args:
        count: of bands.
        n_fft: of the spectrogram.
        sample_rate: that bins are at, in Hz.

    Raises:
        CheckpointError: a bin is in no band, or a band has none.
    """
    weighed = _filter_bank(count, n_fft, sample_rate) > 0
    weighed[0, 0] = weighed[-1, -1] = True
    if not (weighed.any(axis=0).all() and weighed.any(axis=1).all()):
        raise CheckpointError(
            f"num_bands is {count}: of the {weighed.shape[1]:,} bins at {sample_rate:,} Hz some are in no band, or "
            "some bands have none",
            "Give a num_bands that covers all bins.",
        )
    starts = weighed.argmax(axis=1)
    stops = weighed.shape[1] - weighed[:, ::-1].argmax(axis=1)
    if not (weighed.sum(axis=1) == stops - starts).all():
        raise CheckpointError(f"num_bands is {count}: bands have gaps", "Give another num_bands.")
    return tuple(Band(int(start), int(stop - start)) for start, stop in zip(starts, stops, strict=True))


def _filter_bank(count: int, n_fft: int, sample_rate: int) -> NDArray[np.float64]:
    """Heights ``[count, bins]`` of triangles that are equally wide on Slaney's mel scale, each 1 at its peak."""
    import numpy as np  # takes longer to import than the table of families may

    top, knee = sample_rate / 2, _LINEAR_HZ / _HZ_PER_MEL
    highest = top / _HZ_PER_MEL if top < _LINEAR_HZ else knee + math.log(top / _LINEAR_HZ) / _LOG_STEP
    mels = np.linspace(0.0, highest, count + 2)
    corners = np.where(
        mels < knee, _HZ_PER_MEL * mels, _LINEAR_HZ * np.exp(_LOG_STEP * np.maximum(mels - knee, 0))
    )
    distance = corners[:, None] - np.fft.rfftfreq(n_fft, 1 / sample_rate)
    widths = np.diff(corners)[:, None]
    triangles: NDArray[np.float64] = np.minimum(-distance[:-2] / widths[:-1], distance[2:] / widths[1:])
    return triangles


def memberships(bands: Sequence[Band], bins: int) -> list[list[int]]:
    """For every bin, the places where it stands when the bins of all bands are written one band after the other."""
    places: list[list[int]] = [[] for _ in range(bins)]
    place = 0
    for band in bands:
        for each in range(band.start, band.stop):
            places[each].append(place)
            place += 1
    return places
