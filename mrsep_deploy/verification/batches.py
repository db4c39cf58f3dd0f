"""Cuts a track into batches of segments, as the model takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.separation.segments import Segment, cut_segments, grouped, stride_of
from mrsep_deploy.verification.tracks import Track

ISOLATED = 4
"""Batches of one track, spread over it, on which what is expensive is measured."""


def groups(track: Track, manifest: Manifest) -> Iterator[list[Segment]]:
    """The track's segments, in groups of the bundle's batch."""
    samples = manifest.model.segment_samples
    application = manifest.application
    stride = stride_of(samples, application.overlap)
    segments = cut_segments(track.normalised(), samples, stride, application.last)
    return grouped(segments, manifest.batch)


def batches(track: Track, manifest: Manifest) -> int:
    """How many groups a track has."""
    stride = stride_of(manifest.model.segment_samples, manifest.application.overlap)
    return math.ceil(math.ceil(track.statistics.frames / stride) / manifest.batch)


def spread(count: int) -> frozenset[int]:
    """``ISOLATED`` of ``count`` places, evenly from the first to the last."""
    return frozenset(np.linspace(0, count - 1, min(count, ISOLATED)).round().astype(int).tolist())


def stacked(group: Sequence[Segment], manifest: Manifest) -> NDArray[np.float32]:
    """Segments as one batch ``[B, C, L]``, filled up with silence."""
    mix = np.zeros((manifest.batch, *group[0].samples.shape), np.float32)
    for item, segment in zip(mix, group, strict=False):
        item[:] = segment.samples
    return mix
