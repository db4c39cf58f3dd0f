"""Results of a verification as typed data, and whether they are within the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.measuring.deviation import ratio_db
from mrsep_deploy.measuring.limits import ROUNDED_DBFS, Judgement, Limit
from mrsep_deploy.terminal.tables import decibels
from mrsep_deploy.verification.figures import Figures
from mrsep_deploy.verification.tracks import Batch, Span

Mono = NDArray[np.float32]


@dataclass(frozen=True)
class StageResult:
    """One stage, given exactly what the reference gives it: the error is its own.

    Attributes:
        tensors: figures of every output, by name.
    """

    stage: str
    tensors: Mapping[str, Figures]

    @property
    def failures(self) -> list[str]:
        found = self.tensors.items()
        return [f"stage {self.stage}: {each.nonfinite} in {name}" for name, each in found if not each.finite]


@dataclass(frozen=True)
class StemResult:
    """One stem of one track, end to end.

    Attributes:
        yardstick: SNR in dB of PyTorch's own float32, where it was measured.
        judgement: whether it passes, and by what.
        sdr: of the reference against the true stem in dB, where that is known.
        sdr_change: that of the candidate less that of the reference, in dB.
        seconds: where the worst sample is.
    """

    track: str
    source: str
    figures: Figures
    yardstick: float | None
    judgement: Judgement
    sdr: float | None
    sdr_change: float | None
    seconds: float

    @property
    def counts(self) -> bool:
        """Whether its SNR counts: it does not where the stem passes by the mix, or in silence."""
        return self.judgement.passes_by in ("SNR", None)

    @property
    def failures(self) -> list[str]:
        """What is wrong with it, in words; nothing if it passes."""
        where, found = f"{self.source} of {self.track}", []
        if not self.figures.finite:
            found.append(f"{where}: {self.figures.nonfinite}")
        elif self.judgement.passes_by is None:
            found.append(f"{where}: {_missed(self.judgement)}")
        most = self.judgement.sdr_change
        if self.counts and self.sdr_change is not None and not abs(self.sdr_change) <= most:
            found.append(f"{where}: SDR changed by {self.sdr_change:+.4f} dB, expected at most {most:g} dB")
        return found


def _missed(judgement: Judgement) -> str:
    """Both limits that a stem misses, in words."""
    powers = judgement.powers
    snr = f"{decibels(powers.snr)} dB, expected at least {judgement.least:.1f} dB"
    if judgement.in_silence:
        level = decibels(ratio_db(powers.error, 1.0))
        return f"{snr}; in silence its error is at {level} dBFS, expected at most {ROUNDED_DBFS:.0f} dBFS"
    below = f"{decibels(powers.below_mix)} dB below the mix, expected at least {judgement.below_mix:.1f} dB"
    return f"{snr}; its error is {below}"


@dataclass(frozen=True)
class Probe:
    """Segments on which a candidate did badly, kept to find out why.

    Attributes:
        allowed: error energy of every source that passes, as much as its track allows so many samples of mean
            level.
        excess: largest error energy found over what is allowed.
    """

    track: str
    batch: Batch
    allowed: NDArray[np.float64]
    excess: float

    def ratio(self, stems: NDArray[Any], exact: NDArray[Any]) -> float:
        """Largest error energy over what is allowed, of stems ``[B, S, C, L]``; infinite with NaN."""
        return excess(error_energies(stems, exact, self.batch.spans), self.allowed)


def excess(energies: NDArray[np.float64], allowed: NDArray[np.float64]) -> float:
    """The largest error energy over what is allowed; what is not finite is infinite."""
    return float((energies / allowed).max())


def error_energies(stems: NDArray[Any], exact: NDArray[Any], spans: Sequence[Span]) -> NDArray[np.float64]:
    """Squared error of every source ``[S]`` within the spans, of stems ``[B, S, C, L]``; infinite with NaN."""
    energies = np.zeros(stems.shape[1])
    for item, (start, end) in enumerate(spans):
        with np.errstate(invalid="ignore", over="ignore"):
            error = stems[item, ..., start:end].astype(np.float64) - exact[item, ..., start:end]
            energies += np.square(error).sum(axis=(1, 2))
    # even outside the spans: no stem recovers from it
    broken = ~np.isfinite(stems[: len(spans)]).all(axis=(0, 2, 3))
    energies[broken | ~np.isfinite(energies)] = np.inf
    return energies


@dataclass(frozen=True)
class Excerpt:
    """One stem, its channels averaged: samples ``[n]`` of full scale, what computed them, and why it is this stem."""

    track: str
    source: str
    sample_rate: int
    candidate: Mono
    reference: Mono
    candidate_title: str
    reference_title: str
    why: str


@dataclass(frozen=True)
class GateUse:
    """Which segments ran in float32: those of burstiness above ``burstiness``, and those with NaN or infinity."""

    burstiness: float
    segments: int
    in_float32: int


@dataclass(frozen=True)
class Verification:
    """Everything that was found.

    Attributes:
        engine, reference: titles of what ran it, and of what it was compared with.
        note: what the figures stand for where they do not stand for themselves; may be empty.
        segments: batches of segments that ran, end to end.
        gate: of lower precision; None in float32, and where it was off or the bundle has no float32 graphs.
        probes: the segments it did worst on, the worst first.
        excerpt: the stem it did worst on, where it was asked for.
    """

    model: str
    digest: str
    precision: str
    engine: str
    note: str
    reference: str
    limit: Limit
    stages: tuple[StageResult, ...]
    stems: tuple[StemResult, ...]
    segments: int
    gate: GateUse | None = None
    probes: tuple[Probe, ...] = ()
    excerpt: Excerpt | None = None

    @property
    def failures(self) -> list[str]:
        """All that is wrong, in words."""
        by_stage = [text for stage in self.stages for text in stage.failures]
        return by_stage + [text for stem in self.stems for text in stem.failures]

    @property
    def passes(self) -> bool:
        return not self.failures
