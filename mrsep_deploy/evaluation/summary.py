"""Scores over all tracks, and engines side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrsep_deploy.evaluation.scores import TrackScores

ALL = "all"
"""The mean over the sources."""

Scores = Mapping[str, Sequence[TrackScores]]
"""By engine, tracks in the same order."""


@dataclass(frozen=True)
class Difference:
    """How far an engine's SDR is from the first engine's, in dB, signed.

    Attributes:
        summary: of the figures over all tracks, by source.
        largest: of one source of one track, by magnitude; ``track`` and ``source`` say which.
    """

    summary: Mapping[str, float | None]
    largest: float
    track: str
    source: str


def summarise(scores: Sequence[TrackScores], metric: str) -> dict[str, float | None]:
    """SDR in dB by source over all tracks, and the mean of the sources as ``all``.

    museval: the median over tracks (each the median over its windows). mdx: the mean over tracks. Tracks
    without a score for a source are left out of it; None if there is none at all.
    """
    average = statistics.median if metric == "museval" else statistics.fmean
    found: dict[str, float | None] = {}
    for source in scores[0].sdr(metric):
        values = [value for track in scores if (value := track.sdr(metric).get(source)) is not None]
        found[source] = average(values) if values else None
    known = [value for value in found.values() if value is not None]
    found[ALL] = statistics.fmean(known) if known else None
    return found


def differences(scores: Scores, metric: str) -> dict[str, Difference]:
    """Every engine but the first against the first, on the tracks both have."""
    (_, first), *others = scores.items()
    return {engine: _difference(theirs, first, metric) for engine, theirs in others}


def _difference(scores: Sequence[TrackScores], reference: Sequence[TrackScores], metric: str) -> Difference:
    ours, exact = summarise(scores, metric), summarise(reference, metric)
    summary = {source: _minus(ours[source], exact[source]) for source in exact}
    largest = Difference(summary, 0.0, "", "")
    for one, other in zip(scores, reference, strict=True):
        known = other.sdr(metric)
        for source, value in one.sdr(metric).items():
            apart = _minus(value, known[source])
            if apart is not None and (not largest.track or abs(apart) > abs(largest.largest)):
                largest = Difference(summary, apart, one.track, source)
    return largest


def _minus(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return 0.0 if one == other else one - other  # two infinities have no difference
