"""Compares a bundle on an engine with its reference: every stage by itself, and every stem from end to end."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import STEMS, Manifest
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.measuring.limits import Limit, Powers, limit_for
from mrsep_deploy.separation.gate import Rows, gate_of
from mrsep_deploy.separation.segments import OverlapAdd
from mrsep_deploy.verification.chain import Chain, GatedChain
from mrsep_deploy.verification.figures import Difference
from mrsep_deploy.verification.reference import Reference
from mrsep_deploy.verification.results import GateUse, StageResult, StemResult, Verification
from mrsep_deploy.verification.tracks import Batch, Progress, Track, batches, count_batches, silent
from mrsep_deploy.verification.worst import ExcerptKeeper, ProbeKeeper

Array = NDArray[Any]


def verify(
    candidate: Bundle,
    engine: Engine,
    reference: Reference,
    tracks: Sequence[Track],
    limit: float | None = None,
    progress: Progress = silent,
    excerpt: bool = False,
    gate: float | None = None,
) -> Verification:
    """Compares a bundle with its reference.

    Args:
        candidate: the bundle to judge.
        engine: what runs it; the caller closes its device.
        reference: what is right.
        tracks: what to listen to.
        limit: the least SNR in dB of every stem that does not pass by the mix; by default that of the bundle's
            precision.
        progress: called before every batch of segments.
        excerpt: also keep the stem it did worst on, by candidate and reference, to be looked at.
        gate: crest factor above which segments run in float32 where the bundle is of lower precision; by default the
            bundle's (see ``separation.gate``).

    Raises:
        EngineError: a stage cannot be prepared or fails.
        UsageError: no limit is known for the bundle's precision.
    """
    manifest = candidate.manifest
    bound = limit_for(manifest.precision, limit)
    low = manifest.precision != "float32"
    stages = {
        stage.name: {name: Difference() for name in stage.outputs}
        for stage in manifest.stages
        # where both share the host's transforms, comparing these would tell nothing
        if stage.kind == "graph" or reference.transforms or engine.graph_transforms
    }
    total, done = sum(count_batches(track, manifest) for track in tracks), 0
    stems: list[StemResult] = []
    probes = ProbeKeeper(manifest.model.audio_channels)
    titles = (f"{manifest.precision} on {engine.title}", reference.title)
    keeper = ExcerptKeeper(manifest.model, titles) if excerpt else None
    crest = math.inf if not low else gate_of(manifest).crest if gate is None else gate
    segments = in_float32 = 0
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(Chain(candidate, engine))
        gated = GatedChain(chain, candidate, engine, crest, stack)
        for track in tracks:
            song = _Song(track, manifest, bound, keeper)
            for batch in batches(track, manifest):
                progress(track.name, done, total)
                done += 1
                exact = reference.tensors(batch.mix)
                if batch.isolated:
                    _compare_stages(stages, chain, exact, ~gated.fragile(batch.mix)[: len(batch.segments)])
                found, rows = gated.stems(batch.mix)
                segments += len(batch.segments)
                in_float32 += int(rows[: len(batch.segments)].sum())
                heard = [found, exact[STEMS]]
                yardstick = reference.yardstick(batch.mix) if not low and limit is None else None
                song.add(batch, heard if yardstick is None else [*heard, yardstick])
                if not rows.any():  # in float32 a segment tells nothing of nodes in lower precision
                    probes.note(batch, found, exact[STEMS])
            results = song.results()
            stems += results
            probes.settle(track, results)
            if keeper is not None:
                keeper.settle(results)
    progress("done", total, total)
    emulated = f"No GPU has run this: {engine.title} computes low-precision graphs {engine.emulation}."
    return Verification(
        model=manifest.name,
        digest=candidate.digest,
        precision=manifest.precision,
        engine=engine.title,
        note=emulated if low and engine.emulation else "",
        reference=reference.title,
        limit=bound,
        stages=tuple(
            StageResult(stage, {name: difference.figures() for name, difference in tensors.items()})
            for stage, tensors in stages.items()
        ),
        stems=tuple(stems),
        segments=done,
        gate=GateUse(gated.crest, segments, in_float32) if math.isfinite(gated.crest) else None,
        probes=probes.worst(),
        excerpt=None if keeper is None else keeper.worst,
    )


def _compare_stages(
    stages: Mapping[str, Mapping[str, Difference]], chain: Chain, exact: Mapping[str, Array], rows: Rows
) -> None:
    """Runs every stage on the reference's inputs, and compares those items of its outputs that ``rows`` names."""
    if not rows.any():
        return
    for stage, differences in stages.items():
        for name, value in chain.stage(stage, exact).items():
            differences[name].add(value[: len(rows)][rows], exact[name][: len(rows)][rows])


class _Song:
    """Compares one track's stems from end to end, put together from segments as the separator does it."""

    def __init__(self, track: Track, manifest: Manifest, limit: Limit, keeper: ExcerptKeeper | None) -> None:
        self.track, self.limit, self.keeper = track, limit, keeper
        self.model, self.application = manifest.model, manifest.application
        self.adders: list[OverlapAdd] = []
        self.position = 0
        self.mix_power = track.power()
        # by source and by what is compared
        self.found: defaultdict[tuple[str, str], Difference] = defaultdict(Difference)

    def add(self, batch: Batch, heard: Sequence[Array]) -> None:
        """Takes in the stems ``[B, S, C, L]`` of a batch by candidate, reference and, where it is known, yardstick."""
        model = self.model
        shape = (len(model.sources), model.audio_channels, model.segment_samples)
        self.adders = self.adders or [OverlapAdd(*shape, self.application) for _ in heard]
        for item, segment in enumerate(batch.segments):
            cut = slice(segment.cut, segment.cut + segment.length)
            pairs = zip(self.adders, heard, strict=True)
            self._compare([adder.add(segment.start, stems[item][..., cut]) for adder, stems in pairs])

    def _compare(self, blocks: Sequence[Array | None]) -> None:
        """Compares what is finished, ``[S, C, n]``, if anything; all finish the same samples."""
        scale, mean = self.track.statistics.scale, self.track.statistics.mean
        done = [block.astype(np.float64) * scale + mean for block in blocks if block is not None]
        if not done:
            return
        candidate, reference, *yardsticks = done
        start, self.position = self.position, self.position + candidate.shape[-1]
        if self.keeper is not None:
            self.keeper.hear(candidate, reference)
        for index, source in enumerate(self.model.sources):
            exact = reference[index]
            self.found[source, "candidate"].add(candidate[index], exact, start)
            for yardstick in yardsticks:
                self.found[source, "yardstick"].add(yardstick[index], exact, start)
            if source in self.track.truth:
                truth = self.track.truth[source][:, start : self.position]
                self.found[source, "candidate's SDR"].add(candidate[index], truth, start)
                self.found[source, "reference's SDR"].add(exact, truth, start)

    def results(self) -> list[StemResult]:
        """Returns the figures of every stem, once all batches have been added."""
        self._compare([adder.finish(self.track.statistics.frames) for adder in self.adders])
        return [self._result(source) for source in self.model.sources]

    def _result(self, source: str) -> StemResult:
        difference = self.found[source, "candidate"]
        figures, count = difference.figures(), max(difference.elements, 1)
        measured = self.found.get((source, "yardstick"))
        yardstick = None if measured is None else measured.figures().snr
        before, after = (self.found[source, f"{name}'s SDR"] for name in ("reference", "candidate"))
        sdr = (
            before.figures().snr if before.signal else None
        )  # none where the true stem is silent, or not known
        return StemResult(
            track=self.track.name,
            source=source,
            figures=figures,
            yardstick=yardstick,
            judgement=self.limit.judge(
                Powers(difference.signal / count, difference.error / count, self.mix_power),
                self.limit.for_stem(yardstick),
            ),
            sdr=sdr,
            sdr_change=None if sdr is None else after.figures().snr - sdr,
            seconds=figures.worst_at[-1] / self.model.sample_rate,
        )
