"""Keeps the stem that a candidate did worst on, by candidate and reference, to be looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.verification.results import Excerpt, Mono, StemResult

SECONDS = 30.0
"""Of each track, from its start: a song of hours must not fill the memory."""


class ExcerptKeeper:
    """Takes in every stem of every track and keeps the one that is closest to its limit or farthest beyond it.

    Args:
        sources: of the model.
        sample_rate: of the stems.
        titles: of candidate and reference.
    """

    def __init__(self, sources: tuple[str, ...], sample_rate: int, titles: tuple[str, str]) -> None:
        self.sources, self.sample_rate, self.titles = sources, sample_rate, titles
        self.worst: Excerpt | None = None
        self._margin = np.inf
        self._blocks: list[tuple[Mono, Mono]] = []
        self._room = 0
        self._start()

    def _start(self) -> None:
        self._blocks, self._room = [], round(SECONDS * self.sample_rate)

    def hear(self, candidate: NDArray[np.floating], reference: NDArray[np.floating]) -> None:
        """Take in the next samples ``[S, C, n]`` of a track."""
        taken = min(self._room, candidate.shape[-1])
        if taken:
            self._room -= taken
            pair = (_mono(candidate[..., :taken]), _mono(reference[..., :taken]))
            self._blocks.append(pair)

    def settle(self, results: list[StemResult]) -> None:
        """The track is over: its stems' figures say which of them is worth keeping."""
        if self._blocks:
            margins = [_margin(result) for result in results]
            index = int(np.argmin(margins))
            if self.worst is None or margins[index] < self._margin:
                self._margin = margins[index]
                self.worst = self._excerpt(results[index], index)
        self._start()

    def _excerpt(self, result: StemResult, index: int) -> Excerpt:
        candidate, reference = (
            np.concatenate([block[which][index] for block in self._blocks]) for which in (0, 1)
        )
        whole = "" if self._room else f" Its first {SECONDS:g} s."
        what = (
            "Of all stems the closest to its limit."
            if result.judged
            else "All stems are too quiet to be judged."
        )
        return Excerpt(
            result.track,
            result.source,
            self.sample_rate,
            candidate,
            reference,
            *self.titles,
            f"{what}{whole}",
        )


def _mono(stems: NDArray[np.floating]) -> Mono:
    return np.asarray(stems.mean(axis=1), np.float32)


def _margin(result: StemResult) -> float:
    """dB above the limit; what is not judged comes after all that is."""
    if not result.figures.finite:
        return -np.inf
    return result.figures.snr - result.limit if result.judged else np.inf
