"""Separates and scores every track on every engine, one after the other, and continues an earlier run.

Engines take turns as a whole, not track by track: only one model is in memory at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines import AUTO, engine_class
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import AudioError, EngineUnavailableError, EvaluationError, UsageError
from mrsep_deploy.evaluation.metrics import bss_eval, mdx_sdr, require_metrics
from mrsep_deploy.evaluation.scores import Conditions, TrackScores, read_scores, write_scores
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.verification.multitrack import Multitrack, TrackFiles, read_multitrack

Progress = Callable[[str, int, int], None]


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


@dataclass(frozen=True)
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
    scores: Mapping[str, Sequence[TrackScores]]
    kept: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def evaluate(request: Request, progress: Progress) -> Evaluation:
    """Separates and scores every track.

    Raises:
        UsageError: an engine is named twice, or does not exist.
        EngineUnavailableError: an engine does not work here; found before the first track.
        EvaluationError: the package of a metric is missing, or no track could be read.
        OutputError: scores cannot be written.
    """
    require_metrics(request.metrics)
    return _Run(request, progress).run()


class _Run:
    def __init__(self, request: Request, progress: Progress) -> None:
        self.request = request
        self.engines = engine_facts(request.engines, request.threads)
        self.progress = progress
        self.steps = len(self.engines) * len(request.tracks)
        self.done = 0
        self.kept = 0
        self.failed: dict[str, str] = {}
        self.remarks: dict[str, None] = {}
        self._audio: dict[str, str] = {}

    def run(self) -> Evaluation:
        scores = {engine: self._engine(engine) for engine in self.engines}
        readable = {
            engine: [track for track in tracks if track.track not in self.failed]
            for engine, tracks in scores.items()
        }
        if not any(readable.values()):
            raise EvaluationError(
                f"none of the tracks could be read; the first: {next(iter(self.failed.values()))}"
            )
        return Evaluation(self.request, self.engines, readable, self.kept, self.failed, tuple(self.remarks))

    def _engine(self, engine: str) -> list[TrackScores]:
        """The scores of all tracks; the model is loaded when the first track needs it."""
        separator: Separator | None = None
        found: list[TrackScores] = []
        try:
            for track in self.request.tracks:
                self.progress(f"{engine}: {track.name}", self.done, self.steps)
                self.done += 1
                if track.name in self.failed:
                    continue
                try:
                    conditions = self._conditions(engine, track)
                    scores = read_scores(self._place(engine, track), conditions, self.request.metrics)
                    if scores is not None:
                        self.kept += 1
                    else:
                        heard = read_multitrack(track, self.request.bundle.manifest.model, every_source=True)
                        self.remarks.update(dict.fromkeys(heard.remarks))
                        separator = separator or self._separator(engine)
                        scores = self._score(separator, track, heard)
                        write_scores(self._place(engine, track), conditions, scores)
                    found.append(scores)
                except AudioError as error:  # one bad track does not cost the others
                    self.failed[track.name] = str(error)
        finally:
            if separator is not None:
                separator.close()
        return found

    def _separator(self, engine: str) -> Separator:
        request = self.request
        return Separator(
            request.bundle,
            engine=engine,
            threads=request.threads,
            overlap=request.overlap,
            checkpoint=request.checkpoint,
        )

    def _score(self, separator: Separator, files: TrackFiles, track: Multitrack) -> TrackScores:
        began = time.perf_counter()
        stems = separator.separate(track.mix)
        elapsed = time.perf_counter() - began
        rate = separator.sample_rate
        with np.errstate(all="ignore"):  # ratios to nothing come out as infinity or NaN, which is meant
            return TrackScores(
                track=files.name,
                seconds=track.mix.shape[1] / rate,
                mixture=track.mixture,
                elapsed_seconds=elapsed,
                museval=bss_eval(stems, track.truth, rate) if "museval" in self.request.metrics else {},
                mdx={source: mdx_sdr(stems[source], truth) for source, truth in track.truth.items()}
                if "mdx" in self.request.metrics
                else {},
            )

    def _conditions(self, engine: str, track: TrackFiles) -> Conditions:
        if track.name not in self._audio:
            self._audio[track.name] = track.digest(self.request.bundle.manifest.model)
        version = self.engines[engine].version
        return Conditions(
            self.request.bundle.digest, engine, version, self.request.used_overlap, self._audio[track.name]
        )

    def _place(self, engine: str, track: TrackFiles) -> Path:
        folder = self.request.out / "tracks" / track.name
        return folder / f"{engine}.json"


def engine_facts(names: Sequence[str], threads: int) -> dict[str, EngineFacts]:
    """Every engine that was asked for, ``auto`` as the one that it stands for.

    Raises:
        UsageError: an engine is named twice, or does not exist.
        EngineUnavailableError: one does not work here.
    """
    facts: dict[str, EngineFacts] = {}
    for asked in names:
        name = _chosen(threads) if asked == AUTO else asked
        found = engine_class(name).availability()
        if not found.works:
            raise EngineUnavailableError(f"engine {name} does not work here: {found.reason}", found.fix)
        if name in facts:
            raise UsageError(
                f"the engine {name} is named twice", "Name every engine once; auto is one of them."
            )
        facts[name] = EngineFacts(found.version, found.device)
    return facts


def _chosen(threads: int) -> str:
    return choose(AUTO, EngineOptions(threads)).engine.name
