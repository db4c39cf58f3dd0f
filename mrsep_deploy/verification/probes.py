"""Keeps the segments that a candidate did worst on, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.separation.segments import Segment
from mrsep_deploy.verification.results import Probe, Span, StemResult, error_energies, excess
from mrsep_deploy.verification.tracks import Track

KEPT = 2
"""Probes in the end; each costs a run of the model at every step of a bisection."""


@dataclass(frozen=True)
class _Heard:
    mix: NDArray[np.float32]
    spans: tuple[Span, ...]
    energies: NDArray[np.float64]


class ProbeKeeper:
    """Notes every batch, keeps the worst of every source until its track is over, and the worst of all."""

    def __init__(self, manifest: Manifest) -> None:
        self.model = manifest.model
        self.heard: list[_Heard] = []
        self.found: list[Probe] = []

    def note(
        self,
        group: Sequence[Segment],
        mix: NDArray[np.float32],
        stems: NDArray[Any],
        exact: NDArray[Any],
    ) -> None:
        """Take in a batch of segments and its stems ``[B, S, C, L]``."""
        spans = tuple((segment.cut, segment.cut + segment.length) for segment in group)
        self.heard.append(_Heard(mix, spans, error_energies(stems, exact, spans)))
        worst = {int(np.argmax([each.energies[s] for each in self.heard])) for s in range(len(stems[0]))}
        self.heard = [self.heard[index] for index in sorted(worst)]

    def settle(self, track: Track, results: list[StemResult]) -> None:
        """The track is over: its stems' levels say how much error each allows."""
        powers = np.array([10 ** (result.figures.level / 10) for result in results]) / track.scale**2
        judged = np.array([result.judged for result in results])
        limits = np.array([10 ** (-result.limit / 10) for result in results])
        for each in self.heard:
            values = self.model.audio_channels * sum(end - start for start, end in each.spans)
            allowed = np.where(judged, powers * limits * values, np.inf)
            found = excess(each.energies, allowed)
            self.found.append(Probe(track.name, each.mix, each.spans, allowed, found))
        self.heard = []

    def worst(self) -> tuple[Probe, ...]:
        """The worst probes, at most ``KEPT``: first the worst of each track, then the others."""
        ranked = sorted(self.found, key=lambda probe: -probe.excess)
        first = [p for index, p in enumerate(ranked) if p.track not in {q.track for q in ranked[:index]}]
        others = [p for p in ranked if all(p is not q for q in first)]
        return tuple(sorted((*first, *others)[:KEPT], key=lambda probe: -probe.excess))
