"""Compares a bundle on an engine with its reference: every stage by itself, and every stem from end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import STEMS, Manifest
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.measuring.limits import Limit, limit_for
from mrsep_deploy.separation.segments import OverlapAdd, Segment
from mrsep_deploy.verification.batches import batches, groups, spread, stacked
from mrsep_deploy.verification.chain import Chain, first_items
from mrsep_deploy.verification.excerpt import ExcerptKeeper
from mrsep_deploy.verification.figures import Difference
from mrsep_deploy.verification.probes import ProbeKeeper
from mrsep_deploy.verification.reference import Reference
from mrsep_deploy.verification.results import StageResult, StemResult, Verification
from mrsep_deploy.verification.tracks import Track

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]
"""Called with what happens now, how many steps are done and how many there are."""


def verify(
    candidate: Bundle,
    engine: Engine,
    reference: Reference,
    tracks: Sequence[Track],
    limit: float | None = None,
    progress: Progress | None = None,
    excerpt: bool = False,
) -> Verification:
    """Compare a bundle with its reference.

    Args:
        candidate: the bundle to judge.
        engine: what runs it; the caller closes its device.
        reference: what is right.
        tracks: what to listen to.
        limit: the least SNR in dB of every audible stem; by default that of the bundle's precision.
        progress: called before every batch of segments.
        excerpt: also keep the stem it did worst on, by candidate and reference, to be looked at.

    Raises:
        EngineError: a stage cannot be prepared or fails.
        UsageError: no limit is known for the bundle's precision.
    """
    manifest = candidate.manifest
    bound = limit_for(manifest.precision, limit)
    low = manifest.precision != "float32"
    stages = _Stages(manifest, all_kinds=reference.transforms or engine.graph_transforms)
    total = sum(batches(track, manifest) for track in tracks)
    done, stems, probes = 0, [], ProbeKeeper(manifest)
    model, titles = manifest.model, (f"{manifest.precision} on {engine.title}", reference.title)
    keeper = ExcerptKeeper(model.sources, model.sample_rate, titles) if excerpt else None
    with Chain(candidate, engine) as chain:
        for track in tracks:
            listener = _Listener(
                track, manifest, bound, use_yardstick=not low and limit is None, keeper=keeper
            )
            isolated = spread(batches(track, manifest))
            for index, group in enumerate(groups(track, manifest)):
                if progress is not None:
                    progress(track.name, done, total)
                done += 1
                mix = stacked(group, manifest)
                exact = reference.tensors(mix)
                if index in isolated:
                    stages.measure(chain, exact, len(group))
                found = chain.run(mix)[STEMS]
                listener.hear(group, found, exact[STEMS], reference, mix)
                probes.note(group, mix, found, exact[STEMS])
            results = listener.results()
            stems += results
            probes.settle(track, results)
            if keeper is not None:
                keeper.settle(results)
    if progress is not None:
        progress("done", total, total)
    return Verification(
        model=manifest.name,
        digest=candidate.digest,
        precision=manifest.precision,
        engine=engine.title,
        note=_note(engine) if low else "",
        reference=reference.title,
        limit=bound,
        stages=stages.results(),
        stems=tuple(stems),
        segments=done,
        probes=probes.worst(),
        excerpt=None if keeper is None else keeper.worst,
    )


def _note(engine: Engine) -> str:
    """What is to be said of an engine that does not compute low precision itself."""
    if not engine.emulation:
        return ""
    return f"No GPU has run this: {engine.title} computes low-precision graphs {engine.emulation}."


# --- what is gathered


class _Stages:
    """Every stage on the reference's inputs.

    Where reference and candidate share the host's transforms, comparing these would tell nothing.
    """

    def __init__(self, manifest: Manifest, all_kinds: bool) -> None:
        self.manifest = manifest
        self.stages = [stage for stage in manifest.stages if all_kinds or stage.kind == "graph"]
        self.found = {stage.name: {name: Difference() for name in stage.outputs} for stage in self.stages}

    def measure(self, chain: Chain, exact: Mapping[str, Array], count: int) -> None:
        for stage in self.stages:
            for name, value in chain.stage(stage.name, exact).items():
                spec = self.manifest.tensor(name)
                found, wanted = (
                    first_items(array, spec, count, self.manifest.batch) for array in (value, exact[name])
                )
                self.found[stage.name][name].add(found, wanted)

    def results(self) -> tuple[StageResult, ...]:
        return tuple(
            StageResult(stage, {name: difference.figures() for name, difference in tensors.items()})
            for stage, tensors in self.found.items()
        )


class _Song:
    """Segments' stems ``[S, C, L]`` added up to the song's, as the separator does it."""

    def __init__(self, track: Track, manifest: Manifest) -> None:
        model = manifest.model
        self.track = track
        self.adder = OverlapAdd(
            len(model.sources), model.audio_channels, model.segment_samples, manifest.application
        )

    def add(self, segment: Segment, stems: Array) -> Array | None:
        """What is finished before this segment, if anything."""
        cut = stems[..., segment.cut : segment.cut + segment.length]
        return self._restored(self.adder.add(segment.start, cut))

    def finish(self) -> Array | None:
        return self._restored(self.adder.finish(self.track.statistics.frames))

    def _restored(self, block: NDArray[np.float32] | None) -> Array | None:
        if block is None:
            return None
        restored: Array = block.astype(np.float64) * self.track.scale + self.track.statistics.mean
        return restored


@dataclass
class _Stem:
    """What is gathered of one stem: against the reference, and against the truth where it is known."""

    candidate: Difference
    yardstick: Difference
    candidate_truth: Difference
    reference_truth: Difference


class _Listener:
    """End to end, one track: the song's stems by candidate, reference and yardstick, compared as they come."""

    def __init__(
        self,
        track: Track,
        manifest: Manifest,
        limit: Limit,
        use_yardstick: bool,
        keeper: ExcerptKeeper | None = None,
    ) -> None:
        self.track, self.model, self.limit = track, manifest.model, limit
        self.keeper = keeper
        self.use_yardstick = use_yardstick
        self.candidate, self.reference, self.yardstick = (_Song(track, manifest) for _ in range(3))
        self.stems = [_Stem(*(Difference() for _ in range(4))) for _ in self.model.sources]
        self.position = 0
        self.measured_yardstick = False

    def hear(
        self, group: Sequence[Segment], found: Array, exact: Array, reference: Reference, mix: Array
    ) -> None:
        """Take in the stems ``[B, S, C, L]`` of one batch."""
        yardstick = reference.yardstick(mix) if self.use_yardstick else None
        self.measured_yardstick = yardstick is not None
        for item, segment in enumerate(group):
            blocks = (self.candidate.add(segment, found[item]), self.reference.add(segment, exact[item]))
            other = None if yardstick is None else self.yardstick.add(segment, yardstick[item])
            self._compare(*blocks, other)

    def _compare(self, candidate: Array | None, reference: Array | None, yardstick: Array | None) -> None:
        if candidate is None or reference is None:
            return
        start, self.position = self.position, self.position + candidate.shape[-1]
        if self.keeper is not None:
            self.keeper.hear(candidate, reference)
        for index, (source, stem) in enumerate(zip(self.model.sources, self.stems, strict=True)):
            stem.candidate.add(candidate[index], reference[index], start)
            if yardstick is not None:
                stem.yardstick.add(yardstick[index], reference[index], start)
            if source in self.track.truth:
                truth = self.track.truth[source][:, start : self.position]
                stem.candidate_truth.add(candidate[index], truth, start)
                stem.reference_truth.add(reference[index], truth, start)

    def results(self) -> list[StemResult]:
        """The figures of every stem, once all segments have been heard."""
        other = self.yardstick.finish() if self.measured_yardstick else None
        self._compare(self.candidate.finish(), self.reference.finish(), other)
        return [
            self._result(source, stem) for source, stem in zip(self.model.sources, self.stems, strict=True)
        ]

    def _result(self, source: str, stem: _Stem) -> StemResult:
        figures = stem.candidate.figures()
        yardstick = stem.yardstick.figures().snr if self.measured_yardstick else None
        sdr, change = _sdr(stem) if source in self.track.truth else (None, None)
        return StemResult(
            track=self.track.name,
            source=source,
            figures=figures,
            yardstick=yardstick,
            limit=self.limit.for_stem(yardstick),
            sdr=sdr,
            sdr_change=change,
            seconds=figures.worst_at[-1] / self.model.sample_rate,
        )


def _sdr(stem: _Stem) -> tuple[float | None, float | None]:
    """SDR of the reference in dB, and the candidate's less that; none where the true stem is silent."""
    if stem.reference_truth.signal == 0:
        return None, None
    before, after = stem.reference_truth.figures().snr, stem.candidate_truth.figures().snr
    return before, after - before
