"""The one rule by which a stem passes: limits of its error in dB, each with its reason.

An error passes if it lies far enough below the stem, or ``BELOW_MIX_DB`` farther below the mix of the track:

    precision   below the stem (SNR)                                    below the mix
    float16     60 dB                                                   85 dB
    bfloat16    42 dB                                                   67 dB
    float32     100 dB, or 3 times PyTorch's own float32 loss           125 dB

The second way is for stems that are nearly empty, such as the vocals of an instrumental song: rounding errors follow
the level of the mix that goes through the model, not that of the stem. In a mix that is itself as good as silent
(``SILENT_DBFS``), an error also passes if 16 bits of full scale do not hold it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mrsep_deploy.errors import UsageError
from mrsep_deploy.measuring.deviation import Deviation, ratio_db

FLOAT32_DB = 100.0
FLOAT16_DB = 60.0
BFLOAT16_DB = 42.0
LOSS_FACTOR = 3.0
"""A float32 result may be this many times as far from float64 as PyTorch's own float32."""
BELOW_MIX_DB = 25.0
"""What an error must lie farther below the mix than below its stem, which makes 85 dB in float16.

Rounding full scale to 16 bits costs ``ROUNDED_DBFS``; that is 85 dB below a song of usual loudness, -16 dBFS. The other
precisions get the same distance from their own limits. So float32 faults are not hidden by float16's 85 dB: an error
125 dB below the mix is as small as what PyTorch's own float32 loses in stems as loud as the mix.
"""
SILENT_DBFS = -60.0
"""A mix below this level is silence to anyone; ratios to silence tell nothing."""
ROUNDED_DBFS = 20 * math.log10(2**-15 / math.sqrt(12))
"""RMS of the error of rounding to 16 bits, -101 dBFS: a step over the root of 12."""
SDR_CHANGE_DB = 0.005
COARSE_SDR_CHANGE_DB = 0.02
"""The same where the limit is below float16's: an error 40 dB below a stem moves an SDR of 15 dB by 0.014 dB."""
WORST_STEM = "of the worst stem that does not pass by the mix"
"""How tables and pages describe the stem that :func:`worst_stem` returns."""

Way = Literal["SNR", "mix", "silence"]
"""What a stem passes by."""

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
class Powers:
    """Mean squares over the same samples and channels, relative to full scale.

    Attributes:
        stem: of the reference.
        error: of the difference from it; infinite where values are not finite.
        mix: of the track that the stem was separated from.
    """

    stem: float
    error: float
    mix: float

    @property
    def snr(self) -> float:
        """Stem over error in dB."""
        return ratio_db(self.stem, self.error)

    @property
    def below_mix(self) -> float:
        """Mix over error in dB."""
        return ratio_db(self.mix, self.error)


@dataclass(frozen=True)
class Limit:
    """The least SNR of a stem in dB, and why it is that."""

    decibels: float
    reason: str

    @property
    def below_mix(self) -> float:
        """How far below the mix an error passes, in dB."""
        return self.decibels + BELOW_MIX_DB

    @property
    def sdr_change(self) -> float:
        """How much the SDR of a stem that counts may change, in dB."""
        return _sdr_change(self.decibels)

    def for_stem(self, yardstick: float | None = None) -> float:
        """The least SNR of one stem; ``yardstick`` is that of PyTorch's own float32 in dB, where it was measured."""
        if yardstick is None:
            return self.decibels
        allowed = LOSS_FACTOR * 10 ** (-yardstick / 20)
        return min(self.decibels, Deviation(allowed).snr)

    def judge(self, powers: Powers, least: float | None = None) -> Judgement:
        """Judges one stem; ``least`` is its SNR limit in dB if that is not the general one."""
        return Judgement(powers, self.decibels if least is None else least, self.below_mix)


@dataclass(frozen=True)
class Judgement:
    """One stem and its limits.

    Attributes:
        least: the least SNR in dB.
        below_mix: how far below the mix its error passes otherwise, in dB.
    """

    powers: Powers
    least: float
    below_mix: float

    @property
    def sdr_change(self) -> float:
        """How much the SDR of a stem that counts may change, in dB."""
        return _sdr_change(self.least)

    @property
    def in_silence(self) -> bool:
        """The mix is as good as silent."""
        return ratio_db(self.powers.mix, 1.0) <= SILENT_DBFS

    @property
    def _ways(self) -> Mapping[Way, float]:
        """The largest error, as a mean square, that passes each way."""
        stem, mix = self.powers.stem, self.powers.mix
        ways: dict[Way, float] = {"SNR": _below(stem, self.least), "mix": _below(mix, self.below_mix)}
        if self.in_silence:
            ways["silence"] = _below(1.0, -ROUNDED_DBFS)
        return ways

    @property
    def allowed(self) -> float:
        """The largest error that passes, as a mean square."""
        return max(self._ways.values())

    @property
    def passes_by(self) -> Way | None:
        """The first way by which it passes; None if it fails."""
        error = self.powers.error
        ways = self._ways.items() if math.isfinite(error) else ()
        return next((way for way, most in ways if error <= most), None)

    @property
    def margin(self) -> float:
        """How many dB larger its error may be; negative if it fails, infinite without error."""
        return ratio_db(self.allowed, self.powers.error)


def _sdr_change(least: float) -> float:
    return COARSE_SDR_CHANGE_DB if least < FLOAT16_DB else SDR_CHANGE_DB


def _below(power: float, decibels: float) -> float:
    """A power less so many dB; nothing stays nothing, and 3,000 dB more is as good as any limit, and no overflow."""
    return power * 10 ** (-max(decibels, -3000.0) / 10)


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
    """Returns the stem with the lowest SNR of those whose SNR counts, which have a limit; None if there is none.

    It does not count where a stem passes by the mix, or in silence. Both are in dB by stem; an SNR is infinite where
    stems are equal, minus infinity where values are not finite.
    """
    judged = [stem for stem, limit in limits.items() if limit is not None]
    return min(judged, key=lambda stem: snr[stem], default=None)
