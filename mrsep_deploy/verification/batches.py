"""Cuts a track into batches of segments, as the model takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.separation.segments import Segment, cut_segments, grouped, stride_of
from mrsep_deploy.verification.tracks import Track

ISOLATED = 4
"""Batches of one track, spread over it, on which what is expensive is measured."""

Span = tuple[int, int]
"""From which sample to which, the second excluded."""

Progress = Callable[[str, int, int], None]
"""Called with what happens now, how many steps are done and how many there are."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Reports no progress."""


@dataclass(frozen=True)
class Batch:
    """Segments of one track.

    Attributes:
        segments: as many as the bundle's batch, or fewer at the end of the track.
        mix: what the model gets, ``[B, C, L]``, filled up with silence.
        spans: the part of every segment that is song.
        isolated: whether it is one of the batches on which what is expensive is measured.
    """

    segments: Sequence[Segment]
    mix: NDArray[np.float32]
    isolated: bool

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple((segment.cut, segment.cut + segment.length) for segment in self.segments)


def count_batches(track: Track, manifest: Manifest) -> int:
    """Returns how many batches a track has."""
    stride = stride_of(manifest.model.segment_samples, manifest.application.overlap)
    return math.ceil(math.ceil(track.statistics.frames / stride) / manifest.batch)


def batches(track: Track, manifest: Manifest) -> Iterator[Batch]:
    """Yields the batches of a track, normalised as the model takes it."""
    samples, application = manifest.model.segment_samples, manifest.application
    count = count_batches(track, manifest)
    # evenly from the first to the last
    isolated = set(np.linspace(0, count - 1, min(count, ISOLATED)).round().astype(int).tolist())
    song = track.statistics.normalised(track.blocks())
    segments = cut_segments(song, samples, stride_of(samples, application.overlap), application.last)
    for index, group in enumerate(grouped(segments, manifest.batch)):
        mix = np.zeros((manifest.batch, *group[0].samples.shape), np.float32)
        for item, segment in zip(mix, group, strict=False):
            item[:] = segment.samples
        yield Batch(group, mix, index in isolated)
