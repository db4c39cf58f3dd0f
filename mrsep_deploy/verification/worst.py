"""Keeps what a candidate did worst on, in bounded memory: segments to bisect on, and a stem to be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import ModelInfo
from mrsep_deploy.verification.results import Excerpt, Mono, Probe, StemResult, error_energies, excess
from mrsep_deploy.verification.tracks import Batch, Track

KEPT = 2
"""Probes in the end; each costs a run of the model at every step of a bisection."""
SECONDS = 30.0
"""Of each track's stems, from its start: a song of hours must not fill the memory."""


class ProbeKeeper:
    """Notes every batch, keeps the worst of every source until its track is over, and the worst of all."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.heard: list[tuple[Batch, NDArray[np.float64]]] = []
        self.found: list[list[Probe]] = []

    def note(self, batch: Batch, stems: NDArray[Any], exact: NDArray[Any]) -> None:
        """Takes in the stems ``[B, S, C, L]`` of a batch by candidate and reference."""
        self.heard.append((batch, error_energies(stems, exact, batch.spans)))
        worst = np.argmax([energies for _, energies in self.heard], axis=0)
        self.heard = [self.heard[index] for index in sorted(set(worst))]

    def settle(self, track: Track, results: list[StemResult]) -> None:
        """Ends a track: how its stems were judged says how much error each allows."""
        # as the model gives them: the song's level is taken out
        powers = np.array([result.judgement.allowed for result in results]) / track.statistics.scale**2
        probes = []
        for batch, energies in self.heard:
            allowed = powers * self.channels * sum(end - start for start, end in batch.spans)
            probes.append(Probe(track.name, batch, allowed, excess(energies, allowed)))
        self.found.append(_ranked(probes))
        self.heard = []

    def worst(self) -> tuple[Probe, ...]:
        """Returns the worst probes, at most ``KEPT``: first the worst of each track, then the others."""
        first = _ranked([probe for probes in self.found for probe in probes[:1]])
        others = _ranked([probe for probes in self.found for probe in probes[1:]])
        return tuple(_ranked([*first, *others][:KEPT]))


def _ranked(probes: list[Probe]) -> list[Probe]:
    return sorted(probes, key=lambda probe: -probe.excess)


class ExcerptKeeper:
    """Takes in every stem of every track and keeps the one that is closest to its limit or farthest beyond it."""

    def __init__(self, model: ModelInfo, titles: tuple[str, str]) -> None:
        self.sample_rate, self.titles = model.sample_rate, titles
        self.worst: Excerpt | None = None
        self._margin = np.inf
        self._blocks: list[tuple[Mono, Mono]] = []
        self._room = round(SECONDS * self.sample_rate)

    def hear(self, candidate: NDArray[np.floating], reference: NDArray[np.floating]) -> None:
        """Takes in the next samples ``[S, C, n]`` of a track."""
        taken = min(self._room, candidate.shape[-1])
        if taken:
            self._room -= taken
            self._blocks.append((_mono(candidate[..., :taken]), _mono(reference[..., :taken])))

    def settle(self, results: list[StemResult]) -> None:
        """Ends a track: its stems' figures say which of them is worth keeping."""
        margins = [result.judgement.margin for result in results]
        index = int(np.argmin(margins))
        if self._blocks and (self.worst is None or margins[index] < self._margin):
            self._margin = margins[index]
            self.worst = self._excerpt(results[index], index)
        self._blocks, self._room = [], round(SECONDS * self.sample_rate)

    def _excerpt(self, result: StemResult, index: int) -> Excerpt:
        candidate, reference = (
            np.concatenate([stems[index] for stems in blocks]) for blocks in zip(*self._blocks, strict=True)
        )
        why = "Of all stems the closest to its limit."
        if not self._room:
            why += f" Its first {SECONDS:g} s."
        place = (result.track, result.source, self.sample_rate)
        return Excerpt(*place, candidate, reference, *self.titles, why)


def _mono(stems: NDArray[np.floating]) -> Mono:
    return np.asarray(stems.mean(axis=1), np.float32)
