"""Separates and scores every track on every engine, one after the other, and continues an earlier run.

Engines take turns as a whole, not track by track: only one model is in memory at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines import AUTO, engine_class
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import AudioError, EngineUnavailableError, EvaluationError, UsageError
from mrsep_deploy.evaluation.metrics import bss_eval, mdx_sdr, museval_metrics
from mrsep_deploy.evaluation.scores import Conditions, TrackScores, read_scores, write_scores
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.verification.multitrack import Multitrack, TrackFiles, read_multitrack
from mrsep_deploy.verification.tracks import Progress


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        engines: names; the first is what the others are compared with.
        out: the folder of the results; scores of single tracks are kept in ``out/tracks``.
        overlap: share of a segment that the next one repeats; None for the model's own.
        checkpoint: for the torch engine, the checkpoint if it has moved since the export.
    """

    bundle: Bundle
    tracks: Sequence[TrackFiles]
    engines: tuple[str, ...]
    metrics: tuple[str, ...]
    out: Path
    overlap: float | None = None
    threads: int = 0
    checkpoint: Path | None = None

    @property
    def used_overlap(self) -> float:
        """The overlap that was asked for, or else the model's own."""
        return self.bundle.manifest.application.overlap if self.overlap is None else self.overlap


@dataclass(frozen=True)
class EngineFacts:
    """What an engine is here: its version, and the device it runs on."""

    version: str
    device: str


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        engines: in the order in which they were asked for.
        scores: by engine; the tracks that could be read, in the order of the request.
        kept: how many of the scores were there from an earlier run.
        failed: why, by the name of a track that could not be read.
        remarks: how what was read differs from what is in the files, with their paths.
    """

    request: Request
    engines: Mapping[str, EngineFacts]
    scores: dict[str, list[TrackScores]] = field(default_factory=dict)
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, None] = field(default_factory=dict)


def evaluate(request: Request, progress: Progress) -> Evaluation:
    """Separates and scores every track.

    Raises:
        UsageError: an engine is named twice, or does not exist.
        EngineUnavailableError: an engine does not work here; found before the first track.
        EvaluationError: the package of a metric is missing, or no track could be read.
        OutputError: scores cannot be written.
    """
    if "museval" in request.metrics:
        museval_metrics()  # before the first track, not after it
    found = Evaluation(request, engine_facts(request.engines, request.threads))
    digests: dict[str, str] = {}
    for engine in found.engines:
        found.scores[engine] = _scores(engine, found, digests, progress)
    for engine, scores in found.scores.items():
        found.scores[engine] = [track for track in scores if track.track not in found.failed]
    if not any(found.scores.values()):
        raise EvaluationError(
            f"none of the tracks could be read; the first: {next(iter(found.failed.values()))}"
        )
    return found


def _scores(engine: str, found: Evaluation, digests: dict[str, str], progress: Progress) -> list[TrackScores]:
    """The scores of all tracks; the model is loaded when the first track needs it."""
    request, model, scores = found.request, found.request.bundle.manifest.model, []
    steps, before = len(found.engines) * len(request.tracks), len(found.scores) * len(request.tracks)
    with contextlib.ExitStack() as stack:
        separator: Separator | None = None
        for done, track in enumerate(request.tracks, before):
            progress(f"{engine}: {track.name}", done, steps)
            if track.name in found.failed:
                continue
            try:
                if track.name not in digests:
                    digests[track.name] = track.digest(model)
                version, digest = found.engines[engine].version, digests[track.name]
                overlap = request.used_overlap
                conditions = Conditions(request.bundle.digest, engine, version, overlap, digest)
                place = request.out / "tracks" / track.name / f"{engine}.json"
                kept = read_scores(place, conditions, request.metrics)
                if kept is not None:
                    found.kept += 1
                    scores.append(kept)
                    continue
                heard = read_multitrack(track, model, every_source=True)
                found.remarks.update(dict.fromkeys(heard.remarks))
                if separator is None:
                    separator = stack.enter_context(
                        Separator(
                            request.bundle,
                            engine=engine,
                            threads=request.threads,
                            overlap=request.overlap,
                            checkpoint=request.checkpoint,
                        )
                    )
                scores.append(_score(separator, track.name, heard, request.metrics))
                write_scores(place, conditions, scores[-1])
            except AudioError as error:  # one bad track does not cost the others
                found.failed[track.name] = str(error)
    return scores


def _score(separator: Separator, name: str, track: Multitrack, metrics: Sequence[str]) -> TrackScores:
    began = time.perf_counter()
    stems = separator.separate(track.mix)
    elapsed = time.perf_counter() - began
    rate, truth = separator.sample_rate, track.truth
    with np.errstate(all="ignore"):  # ratios to nothing come out as infinity or NaN, which is meant
        museval = bss_eval(stems, truth, rate) if "museval" in metrics else {}
        mdx = {source: mdx_sdr(stems[source], truth[source]) for source in truth if "mdx" in metrics}
    return TrackScores(name, track.mix.shape[1] / rate, track.mixture, elapsed, museval, mdx)


def engine_facts(names: Sequence[str], threads: int) -> dict[str, EngineFacts]:
    """Every engine that was asked for, ``auto`` as the one that it stands for.

    Raises:
        UsageError: an engine is named twice, or does not exist.
        EngineUnavailableError: one does not work here.
    """
    facts: dict[str, EngineFacts] = {}
    for asked in names:
        name = choose(AUTO, EngineOptions(threads)).engine.name if asked == AUTO else asked
        found = engine_class(name).availability()
        if not found.works:
            raise EngineUnavailableError(f"engine {name} does not work here: {found.reason}", found.fix)
        if name in facts:
            raise UsageError(
                f"the engine {name} is named twice", "Name every engine once; auto is one of them."
            )
        facts[name] = EngineFacts(found.version, found.device)
    return facts
