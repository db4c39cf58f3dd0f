"""Many songs through one scheduler without a pause between them.

Segments of the next song are under way before the last ones of this song are collected, so that between two
songs no device waits for a disk. What fails, fails for its own song only.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Application, ModelInfo
from mrsep_deploy.separation.segments import (
    OverlapAdd,
    Segment,
    SongStatistics,
    applied,
    border_of,
    cut_segments,
    grouped,
    reflected,
)
from mrsep_deploy.separation.shifts import TakeAverage

Float32 = NDArray[np.float32]


@dataclass(eq=False)
class Song:
    """A song to be separated: its statistics, and its blocks ``[C, n]``, which are read once."""

    statistics: SongStatistics
    blocks: Iterable[Float32]


@dataclass(frozen=True)
class Separated:
    """What became of a song: its next stems ``[S, C, n]``, or, where ``stems`` is None, its end.

    ``error`` is why it ended early.
    """

    song: Song
    stems: Float32 | None = None
    error: Exception | None = None


def stems_of(events: Iterable[Separated]) -> Iterator[Float32]:
    """The stems of one song ``[S, C, n]`` in order; raises the error that ended it early.

    All events are taken before that, so that whatever they come from is free for another song.
    """
    error: Exception | None = None
    for event in events:
        error = error or event.error
        if event.stems is not None:
            yield event.stems
    if error is not None:
        raise error


@dataclass(frozen=True)
class Cutting:
    """How songs become segments.

    Attributes:
        segment: samples of a segment; what the model takes beyond that is filled with zeros, as HTDemucs does.
        stride: samples from one segment's start to the next.
        leads: for each take of a song, samples of silence before it (see ``shifts``).
        application: of the model.
    """

    segment: int
    stride: int
    leads: tuple[int, ...] = (0,)
    application: Application = field(default_factory=Application)


@dataclass(frozen=True)
class _Group:
    """Segments that run together, each with the take it belongs to."""

    under_way: _UnderWay
    members: list[tuple[int, Segment]]


class Runs(Protocol):
    """What runs segments: a scheduler, or something in its place."""

    @property
    def capacity(self) -> int:
        """Tickets that may be open at once."""

    def submit(self, mix: Float32) -> Any:
        """Starts segments ``[b, C, L]``; returns a ticket."""

    def result(self, ticket: Any) -> Float32:
        """The stems ``[b, S, C, L]`` of a ticket, in the order in which they were given out."""


@dataclass
class _Pending:
    group: _Group
    ticket: Any


@dataclass
class _UnderWay:
    """One song: what cuts it into segments and puts its stems together again."""

    song: Song
    model: ModelInfo
    cutting: Cutting
    open_groups: int = 0
    cut: bool = False
    ended: bool = False
    level: SongStatistics = field(init=False)
    borders: list[int] = field(init=False)
    adders: list[OverlapAdd] = field(init=False)
    average: TakeAverage = field(init=False)

    def __post_init__(self) -> None:
        sources, channels = len(self.model.sources), self.model.audio_channels
        cutting, frames = self.cutting, self.song.statistics.frames
        application = cutting.application
        self.level = applied(self.song.statistics, application)
        self.borders = [
            border_of(application, cutting.segment, cutting.stride, frames + lead) for lead in cutting.leads
        ]
        self.adders = [OverlapAdd(sources, channels, cutting.segment, application) for _ in cutting.leads]
        self.average = TakeAverage(
            tuple(map(sum, zip(cutting.leads, self.borders, strict=True))), self.level.frames
        )

    def segments(self) -> Iterator[tuple[int, Segment]]:
        """Segments of all takes in turn, so that every take is at about the same place of the song."""
        cutting = self.cutting
        copies = itertools.tee(self.level.normalised(self.song.blocks), len(cutting.leads))
        takes = [
            cut_segments(
                reflected(_after_silence(lead, blocks), border),
                cutting.segment, cutting.stride, cutting.application.last,
            )
            for lead, border, blocks in zip(cutting.leads, self.borders, copies, strict=True)
        ]  # fmt: skip
        running = dict(enumerate(takes))
        while running:
            for take, segments in list(running.items()):
                segment = next(segments, None)
                if segment is None:
                    del running[take]
                else:
                    yield take, segment

    def add(self, take: int, segment: Segment, output: Float32) -> Iterator[Float32]:
        """Add a segment's output ``[S, C, L]``; yields what is finished."""
        cut = output[..., segment.cut : segment.cut + segment.length]
        yield from self._restored(take, self.adders[take].add(segment.start, cut))

    def finish(self) -> Iterator[Float32]:
        """The rest of every take."""
        for take, lead in enumerate(self.cutting.leads):
            end = self.level.frames + lead + self.borders[take]
            yield from self._restored(take, self.adders[take].finish(end))

    def _restored(self, take: int, done: Float32 | None) -> Iterator[Float32]:
        averaged = None if done is None else self.average.add(take, done)
        if averaged is None:
            return
        averaged *= np.float32(self.level.scale)
        averaged += np.float32(self.level.mean)
        yield averaged


def _after_silence(lead: int, blocks: Iterable[Float32]) -> Iterator[Float32]:
    for block in blocks:
        if lead:
            yield np.zeros((block.shape[0], lead), np.float32)
            lead = 0
        yield block


class SongStream:
    """Separates songs one after the other; see :meth:`run`."""

    def __init__(self, scheduler: Runs, model: ModelInfo, batch: int, cutting: Cutting) -> None:
        self._scheduler = scheduler
        self._model = model
        self._batch = batch
        self._cutting = cutting
        self._pending: deque[_Pending] = deque()

    def run(self, songs: Iterable[Song | None]) -> Iterator[Separated]:
        """Separate songs in order.

        Args:
            songs: each is taken when the last segment of the one before has been cut; None says that the next
                one is not there yet, and finishes what is under way.

        Yields:
            For every song its stems in order, then its end. Several songs may be under way at once.
        """
        for song in songs:
            if song is None:
                yield from self._drain()
                continue
            yield from self._feed(_UnderWay(song, self._model, self._cutting))
        yield from self._drain()

    def _feed(self, under_way: _UnderWay) -> Iterator[Separated]:
        groups = grouped(under_way.segments(), self._batch)
        while not under_way.ended:  # the engine may fail on an earlier segment of it
            try:
                members = next(groups, None)
            except Exception as error:  # the song cannot be read on; those around it are not to blame
                yield from _end(under_way, error)
                return
            if members is None:
                under_way.cut = True
                yield from self._end_if_complete(under_way)
                return
            if len(self._pending) == self._scheduler.capacity:
                yield from self._collect()
            under_way.open_groups += 1
            yield from self._submit(_Group(under_way, members))

    def _submit(self, group: _Group) -> Iterator[Separated]:
        """Starts a group, unless its song has ended; what fails here ends that song."""
        if group.under_way.ended:
            return
        mix = np.zeros(
            (len(group.members), self._model.audio_channels, self._model.segment_samples), np.float32
        )
        for row, (_, segment) in zip(mix, group.members, strict=True):
            row[:, : self._cutting.segment] = segment.samples
        try:
            ticket = self._scheduler.submit(mix)
        except Exception as error:
            yield from _end(group.under_way, error)
        else:
            self._pending.append(_Pending(group, ticket))

    def _drain(self) -> Iterator[Separated]:
        while self._pending:
            yield from self._collect()

    def _collect(self) -> Iterator[Separated]:
        """Waits for the oldest group."""
        oldest = self._pending.popleft()
        under_way = oldest.group.under_way
        try:
            outputs = self._scheduler.result(oldest.ticket)
        except Exception as error:
            # All that was under way is lost with it; other songs' segments are started again.
            lost = [each.group for each in self._pending]
            self._pending.clear()
            yield from _end(under_way, error)
            for group in lost:
                yield from self._submit(group)
            return
        if under_way.ended:
            return
        for (take, segment), output in zip(oldest.group.members, outputs, strict=True):
            yield from _stems(under_way, under_way.add(take, segment, output))
        under_way.open_groups -= 1
        yield from self._end_if_complete(under_way)

    def _end_if_complete(self, under_way: _UnderWay) -> Iterator[Separated]:
        if under_way.ended or not under_way.cut or under_way.open_groups:
            return
        yield from _stems(under_way, under_way.finish())
        yield from _end(under_way, None)


def _stems(under_way: _UnderWay, finished: Iterator[Float32]) -> Iterator[Separated]:
    """Yields what is finished of a song; what fails here ends that song."""
    try:
        ready = list(finished)
    except Exception as error:
        yield from _end(under_way, error)
        return
    for stems in ready:
        yield Separated(under_way.song, stems)


def _end(under_way: _UnderWay, error: Exception | None) -> Iterator[Separated]:
    if not under_way.ended:
        under_way.ended = True
        yield Separated(under_way.song, error=error)
