"""Scores of one track on one engine, the file that keeps them, and figures over all tracks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from mrsep_deploy.evaluation.metrics import BssScore
from mrsep_deploy.files.parts import make_folder, write_file
from mrsep_deploy.files.reading import read_start
from mrsep_deploy.files.strict_json import MAX_BYTES, dumped, parse
from mrsep_deploy.files.typed_json import typed

FORMAT = "mrsep-deploy track scores 1"
ALL = "all"
"""The mean over the sources."""


@dataclass(frozen=True)
class Conditions:
    """Everything a track's scores depend on; ``model`` and ``audio`` are digests of the bundle and the audio files."""

    model: str
    engine: str
    version: str
    overlap: float
    audio: str


@dataclass(frozen=True)
class TrackScores:
    """Scores of one track on one engine.

    Attributes:
        seconds: length of the track.
        mixture: whether the mix is a file, or the sum of the stems.
        elapsed_seconds: that the separation took.
        museval: by source; None for a source without a score. Empty if the metric was not asked for.
        mdx: SDR by source in dB; empty if not asked for.
    """

    track: str
    seconds: float
    mixture: str
    elapsed_seconds: float
    museval: Mapping[str, BssScore | None]
    mdx: Mapping[str, float]

    def sdr(self, metric: str) -> dict[str, float | None]:
        """Returns SDR in dB by source."""
        if metric == "mdx":
            return dict(self.mdx)
        return {source: score.sdr if score else None for source, score in self.museval.items()}


def write_scores(path: Path, conditions: Conditions, scores: TrackScores) -> None:
    """Writes scores to ``path``; they appear whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    make_folder(path.parent)
    text = dumped({"format": FORMAT, "conditions": conditions, "scores": scores})
    write_file(path, f"{text}\n".encode())


def read_scores(path: Path, conditions: Conditions, metrics: tuple[str, ...]) -> TrackScores | None:
    """Returns the scores kept at ``path``, if they are of these conditions and of all these metrics; else None.

    A file that is cut or was changed by hand counts as none: the track is evaluated again.
    """
    try:
        found: Any = parse(read_start(path, MAX_BYTES), str(path), "")
        if found["format"] != FORMAT or found["conditions"] != asdict(conditions):
            return None
        for score in filter(None, found["scores"]["museval"].values()):
            # an estimate that is the truth itself has no distortion, which JSON has no word for
            score.update({name: math.inf for name, value in score.items() if value is None})
        scores = typed(found["scores"], TrackScores, "scores", "")
    except Exception:  # whatever is wrong with it, it is worked out anew
        return None
    return scores if all(getattr(scores, metric) for metric in metrics) else None


class Difference(msgspec.Struct, frozen=True, rename={"first": "from"}):
    """How far an engine's SDR is from the first engine's, in dB, signed.

    Attributes:
        summary: of the figures over all tracks, by source.
        largest: of one source of one track, by magnitude; the others say which.
    """

    first: str
    summary: Mapping[str, float | None]
    largest: float
    largest_track: str
    largest_source: str


def summarise(scores: Sequence[TrackScores], metric: str) -> dict[str, float | None]:
    """Returns SDR in dB by source over all tracks, and the mean of the sources as ``all``.

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


def differences(scores: Mapping[str, Sequence[TrackScores]], metric: str) -> dict[str, Difference]:
    """Returns every engine but the first against the first, on the tracks both have."""
    (first, reference), *others = scores.items()
    exact = summarise(reference, metric)
    found = {}
    for engine, tracks in others:
        ours = summarise(tracks, metric)
        summary = {source: _minus(ours[source], exact[source]) for source in exact}
        apart = [
            (difference, one.track, source)
            for one, other in zip(tracks, reference, strict=True)
            for source, value in one.sdr(metric).items()
            if (difference := _minus(value, other.sdr(metric)[source])) is not None
        ]
        largest = max(apart, key=lambda each: abs(each[0]), default=(0.0, "", ""))
        found[engine] = Difference(first, summary, *largest)
    return found


def _minus(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return 0.0 if one == other else one - other  # two infinities have no difference
