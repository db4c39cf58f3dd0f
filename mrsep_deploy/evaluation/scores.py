"""Scores of one track on one engine, and the file that keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrsep_deploy.evaluation.metrics import METRICS, BssScore
from mrsep_deploy.files.parts import make_folder, write_file
from mrsep_deploy.files.strict_json import MAX_BYTES, dumped, parse
from mrsep_deploy.files.typed_json import typed

FORMAT = "mrsep-deploy track scores 1"


@dataclass(frozen=True)
class Conditions:
    """Everything a track's scores depend on: while all of it is the same, they hold.

    Attributes:
        model: digest of the bundle.
        engine, version: what ran it.
        overlap: of the segments.
        audio: digest of the audio files.
    """

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

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics there are scores of."""
        return tuple(name for name, scores in zip(METRICS, (self.museval, self.mdx), strict=True) if scores)

    def sdr(self, metric: str) -> dict[str, float | None]:
        """SDR in dB by source."""
        if metric == "mdx":
            return dict(self.mdx)
        return {source: score.sdr if score else None for source, score in self.museval.items()}


def write_scores(path: Path, conditions: Conditions, scores: TrackScores) -> None:
    """Writes scores to ``path``; they appear whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    make_folder(path.parent)
    found = {"format": FORMAT, "conditions": conditions, "scores": scores}
    write_file(path, f"{dumped(found)}\n".encode())


def read_scores(path: Path, conditions: Conditions, metrics: tuple[str, ...]) -> TrackScores | None:
    """Scores kept at ``path``, if they are of these conditions and of all these metrics; else None.

    A file that is cut or was changed by hand counts as none: the track is evaluated again.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        found: Any = parse(path.read_text(encoding="utf-8"), str(path), "")
        if found["format"] != FORMAT or found["conditions"] != asdict(conditions):
            return None
        for score in filter(None, found["scores"]["museval"].values()):
            # an estimate that is the truth itself has no distortion, which JSON has no word for
            score.update({name: math.inf for name, value in score.items() if value is None})
        scores = typed(found["scores"], TrackScores, "scores", "")
    except Exception:  # whatever is wrong with it, it is worked out anew
        return None
    return scores if set(metrics) <= set(scores.metrics) else None
