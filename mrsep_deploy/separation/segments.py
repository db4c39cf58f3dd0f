"""A song as overlapping segments, and back, as a manifest's ``Application`` has it, in flat memory.

Segments of the model's length start every ``(1 - overlap) * segment`` samples. Outputs are weighted, added, and
divided by the summed weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mrsep_deploy.audio.blocks import BlockQueue, Float32
from mrsep_deploy.bundle.manifest import Application, Last
from mrsep_deploy.errors import UsageError

SONG_EPS = 1e-8
"""Added to the song's standard deviation (the published value)."""

LEAST_WEIGHT = 2.0**-40
"""Of a sample at the end of a linear fade: far below a rounding of what another segment gives there."""


@dataclass(frozen=True)
class SongStatistics:
    """Mean and standard deviation of the mono mix of a whole song, and its length in samples."""

    mean: float
    std: float
    frames: int

    @classmethod
    def measure(cls, blocks: Iterable[Float32]) -> SongStatistics:
        """One pass over blocks ``[C, n]``; float64, merged as in Chan et al. 1979 (no cancellation)."""
        frames, mean, power = 0, 0.0, 0.0
        for block in blocks:
            mono = block.mean(axis=0, dtype=np.float64)
            count = mono.size
            if not count:
                continue
            delta = float(mono.mean()) - mean
            power += float(np.square(mono - mono.mean()).sum()) + delta**2 * frames * count / (frames + count)
            mean += delta * count / (frames + count)
            frames += count
        return cls(mean, (power / (frames - 1)) ** 0.5 if frames > 1 else 0.0, frames)

    @classmethod
    def neutral(cls, frames: int) -> SongStatistics:
        """Statistics by which a song of ``frames`` samples is normalised to itself."""
        return cls(0.0, 1.0 - SONG_EPS, frames)

    @property
    def scale(self) -> float:
        """What a normalised song is multiplied by in the end."""
        return self.std + SONG_EPS

    def normalised(self, blocks: Iterable[Float32]) -> Iterator[Float32]:
        """The blocks less the mean, over the scale."""
        mean, factor = np.float32(self.mean), np.float32(1 / self.scale)
        return ((block - mean) * factor for block in blocks)


def applied(statistics: SongStatistics, application: Application) -> SongStatistics:
    """What a song is normalised by: its own statistics, or those that leave it as it is."""
    return statistics if application.normalise == "song" else SongStatistics.neutral(statistics.frames)


@dataclass(frozen=True)
class Segment:
    """One model input: ``samples`` ``[C, L]``, whose part ``[cut, cut + length)`` is song from ``start`` on."""

    start: int
    length: int
    cut: int
    samples: Float32


def stride_of(segment: int, overlap: float) -> int:
    """Samples from one segment's start to the next.

    Raises:
        UsageError: the overlap is not at least 0 and below 1, or leaves no step.
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"the overlap is {overlap:g}", "Give one of at least 0 and below 1.")
    stride = int((1 - overlap) * segment)
    if stride < 1:
        raise UsageError(f"an overlap of {overlap:g} leaves no step between segments of {segment} samples")
    return stride


def border_of(application: Application, segment: int, stride: int, frames: int) -> int:
    """Samples by which a song of ``frames`` is extended at each end."""
    border = segment - stride if application.edges == "reflected" else 0
    return border if frames > 2 * border else 0


def reflected(blocks: Iterable[Float32], border: int) -> Iterator[Float32]:
    """A song ``[C, n]`` of more than ``border`` samples, with its reflection before and behind it."""
    if not border:
        yield from blocks
        return
    held = BlockQueue()
    source = iter(blocks)
    while len(held) <= border and (block := next(source, None)) is not None:
        held.push(block)
    yield held.first(border + 1)[:, :0:-1].copy()
    for block in source:
        held.push(block)
        if len(held) > border + 1:
            yield held.take(len(held) - border - 1)
    rest = held.take(len(held))
    yield rest
    yield rest[:, -2 : -border - 2 : -1].copy()


def cut_segments(
    blocks: Iterable[Float32], segment: int, stride: int, last: Last = "centred", context: int = 0
) -> Iterator[Segment]:
    """Cut a stream of blocks ``[C, n]`` into segments, holding about two segments in memory.

    Args:
        segment, stride: samples of a segment, and between the starts of two.
        last: what becomes of a segment that reaches beyond the end (see ``Application``).
        context: samples around a segment that a model input has besides, half of them before it.
    """
    whole = segment + context
    source = iter(blocks)
    held = BlockQueue()
    origin = start = 0
    while True:
        while origin + len(held) < start + whole and (block := next(source, None)) is not None:
            held.push(block)
        end = origin + len(held)
        if end <= start:
            return
        length = min(segment, end - start)
        cut = context // 2 if last == "filled" else (whole - length) // 2
        first = start - cut
        lo, hi = max(first, 0), min(first + whole, end)
        # Context before the song's first sample and after its last does not exist.
        samples = np.pad(
            held.first(hi - origin)[:, lo - origin :],
            [(0, 0), (lo - first, first + whole - hi)],
            mode="reflect" if last == "filled" and 2 * length > segment else "constant",
        )
        yield Segment(start, length, cut, samples)
        start += stride
        # A last, short segment reaches back by up to half a model input for context.
        keep = max(origin, start - whole)
        held.drop(keep - origin)
        origin = keep


Item = TypeVar("Item")


def grouped(segments: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Segments in groups of ``size``, as batches take them; the last one may have fewer."""
    remaining = iter(segments)
    while group := list(itertools.islice(remaining, size)):
        yield group


@functools.lru_cache(8)
def triangle(segment: int) -> Float32:
    """Weights of a segment's samples: rising from its ends to 1 in its middle. Not to be written to."""
    half = segment // 2
    rising = np.arange(1, half + 1, dtype=np.float32)
    falling = np.arange(segment - half, 0, -1, dtype=np.float32)
    weights: Float32 = np.concatenate([rising, falling])
    weights /= weights.max()
    weights.flags.writeable = False
    return weights


def weights_of(application: Application, segment: int) -> Float32:
    """Weights of a segment's samples, all of them positive. Not to be written to.

    A linear fade goes from 0 to 1, both included, where 0 is so little that it counts only where no other segment does.
    """
    if application.weights == "triangle":
        return triangle(segment)
    fade = min(application.fade, segment // 2)
    weights = np.ones(segment, np.float32)
    weights[:fade] = np.maximum(np.linspace(0, 1, fade), LEAST_WEIGHT)
    weights[segment - fade :] = weights[:fade][::-1]
    return weights


class OverlapAdd:
    """Adds weighted outputs ``[S, C, n]`` and hands out what no later segment will touch.

    Segments come in order of their start. With linear fades the first one is not faded in. (The last one
    fades out, but no other segment has anything there.)
    """

    def __init__(
        self, sources: int, channels: int, segment: int, application: Application | None = None
    ) -> None:
        application = application or Application()
        self.weights = self.first_weights = weights_of(application, segment)
        if application.weights == "linear":
            self.first_weights = self.weights.copy()
            self.first_weights[: segment // 2] = 1
        self.total = np.zeros((sources, channels, segment), np.float32)
        self.weight_sum = np.zeros(segment, np.float32)
        self.position = 0

    def add(self, start: int, output: Float32) -> Float32 | None:
        """Add the output of the segment at ``start``; returns the finished samples before it, if any."""
        finished, count = None, start - self.position
        if count > 0:
            finished = self._done(count)
            for buffer in (self.total, self.weight_sum):
                buffer[..., :-count] = buffer[..., count:].copy()
                buffer[..., -count:] = 0
        length = output.shape[-1]
        weights = (self.weights if start else self.first_weights)[:length]
        self.total[..., :length] += output * weights
        self.weight_sum[:length] += weights
        return finished

    def finish(self, frames: int) -> Float32 | None:
        """The rest, up to the song's ``frames``; nothing can be added after that. Some may have been given beyond."""
        count = frames - self.position
        return self._done(count) if count > 0 else None

    def _done(self, count: int) -> Float32:
        self.position += count
        done: Float32 = self.total[..., :count] / self.weight_sum[:count]
        return done
