"""Many songs through one scheduler without a pause between them.

Segments of the next song are under way before the last ones of this song are collected, so that between two
songs no device waits for a disk. What fails, fails for its own song only, except for a GPU that is lost.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mrsep_deploy.audio.blocks import BlockQueue, Float32
from mrsep_deploy.bundle.manifest import Application, ModelInfo
from mrsep_deploy.errors import DeviceLostError, UsageError
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


@dataclass(eq=False)
class Song:
    """A song to be separated: its statistics, and its blocks ``[C, n]``, which are read once.

    Attributes:
        segments, in_float32: how many have been computed so far, and how many of them in float32 where the others
            are of lower precision (see ``separation.gate``).
    """

    statistics: SongStatistics
    blocks: Iterable[Float32]
    segments: int = 0
    in_float32: int = 0


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
        leads: for each take of a song, samples of silence before it (see ``draw_leads``).
        application: of the model.
    """

    segment: int
    stride: int
    leads: tuple[int, ...] = (0,)
    application: Application = field(default_factory=Application)


def draw_leads(shifts: int, sample_rate: int, source: random.Random) -> tuple[int, ...]:
    """Samples of silence before the song, one number for each time it is separated; their takes are averaged.

    A model's answer depends on where in a segment a sound falls; averaging over positions makes it depend less
    (the "shift trick" of Demucs, Défossez et al. 2019). As in Demucs, half a second of silence goes before and
    after the normalised song, which is then read from a random point of the first half second on.

    They are drawn as Demucs draws them. (After ``random.seed(n)`` it draws the same first number; its model draws
    from the same source before the second one.)

    Args:
        shifts: how often to separate; 0 for once, from the first sample on.
        source: drawn from ``shifts`` times.

    Raises:
        UsageError: ``shifts`` is negative.
    """
    if shifts < 0:
        raise UsageError(f"{shifts} shifts were asked for", "Give 0 (none) or more.")
    longest = sample_rate // 2
    return tuple(longest - source.randint(0, longest) for _ in range(shifts)) or (0,)


class Runs(Protocol):
    """What runs segments: a scheduler, or something in its place."""

    capacity: int
    """Tickets that may be open at once."""

    def submit(self, mix: Float32) -> Any:
        """Starts segments ``[b, C, L]``; returns a ticket."""

    def result(self, ticket: Any) -> Float32:
        """The stems ``[b, S, C, L]`` of a ticket, in the order in which they were given out."""


class _TakeAverage:
    """Averages the takes of one song as they come, each at its own pace.

    Args:
        early: for each take, how many of its first samples come before the song.
        frames: samples of the song; what a take has beyond them is left out.
    """

    def __init__(self, early: Sequence[int], frames: int) -> None:
        self._early = list(early)
        self._missing = [frames] * len(early)
        self._held = [BlockQueue() for _ in early]

    def add(self, take: int, done: Float32) -> Float32 | None:
        """Append samples ``[S, C, n]`` to a take; returns the average of what all takes have, if any."""
        skipped = min(self._early[take], done.shape[-1])
        self._early[take] -= skipped
        done = done[..., skipped : skipped + self._missing[take]]
        self._missing[take] -= done.shape[-1]
        if not done.shape[-1]:
            return None
        if len(self._held) == 1:
            return done
        self._held[take].push(done)
        ready = min(map(len, self._held))
        if not ready:
            return None
        total, *others = (held.take(ready) for held in self._held)
        for other in others:
            total += other
        total /= len(self._held)
        return total


class _UnderWay:
    """One song: what cuts it into segments and puts its stems together again."""

    def __init__(self, song: Song, model: ModelInfo, cutting: Cutting) -> None:
        self.song = song
        self.open_groups = 0
        self.cut = self.ended = False
        self._cutting = cutting
        self._channels = model.audio_channels
        application, leads = cutting.application, cutting.leads
        self._level = applied(song.statistics, application)
        frames = self._level.frames
        self._borders = [
            border_of(application, cutting.segment, cutting.stride, frames + lead) for lead in leads
        ]
        self._adders = [
            OverlapAdd(len(model.sources), model.audio_channels, cutting.segment, application) for _ in leads
        ]
        self._average = _TakeAverage([sum(pair) for pair in zip(leads, self._borders, strict=True)], frames)

    def segments(self) -> Iterator[tuple[int, Segment]]:
        """Segments of all takes in turn, so that every take is at about the same place of the song."""
        cutting = self._cutting
        copies = itertools.tee(self._level.normalised(self.song.blocks), len(cutting.leads))
        running = {}
        for take, blocks in enumerate(copies):
            silence = np.zeros((self._channels, cutting.leads[take]), np.float32)
            whole = reflected(itertools.chain([silence], blocks), self._borders[take])
            running[take] = cut_segments(
                whole, cutting.segment, cutting.stride, cutting.application.last, cutting.application.context
            )
        while running:
            for take, segments in list(running.items()):
                segment = next(segments, None)
                if segment is None:
                    del running[take]
                else:
                    yield take, segment

    def collect(
        self, members: Iterable[tuple[int, Segment]], outputs: Iterable[Float32]
    ) -> Iterator[Separated]:
        """Adds outputs ``[S, C, L]`` of segments; yields what is finished, and the end if they are the last ones."""
        if self.ended:
            return
        whole = self.cut and not self.open_groups
        try:
            done = [
                (take, self._adders[take].add(each.start, output[..., each.cut : each.cut + each.length]))
                for (take, each), output in zip(members, outputs, strict=True)
            ]
            if whole:
                leads = zip(self._adders, self._cutting.leads, self._borders, strict=True)
                rests = [adder.finish(self._level.frames + lead + border) for adder, lead, border in leads]
                done += enumerate(rests)
            ready = [self._restored(take, stems) for take, stems in done if stems is not None]
        except Exception as error:
            yield from self.end(error)
            return
        yield from (Separated(self.song, stems) for stems in ready if stems is not None)
        if whole:
            yield from self.end()

    def _restored(self, take: int, stems: Float32) -> Float32 | None:
        averaged = self._average.add(take, stems)
        if averaged is not None:
            averaged *= np.float32(self._level.scale)
            averaged += np.float32(self._level.mean)
        return averaged

    def end(self, error: Exception | None = None) -> Iterator[Separated]:
        """Yields the song's end, once."""
        if not self.ended:
            self.ended = True
            yield Separated(self.song, error=error)


@dataclass
class _Group:
    """Segments that run together, each with the take it belongs to."""

    under_way: _UnderWay
    members: list[tuple[int, Segment]]
    ticket: Any = None


class SongStream:
    """Separates songs one after the other; see :meth:`run`."""

    def __init__(self, scheduler: Runs, model: ModelInfo, batch: int, cutting: Cutting) -> None:
        self._scheduler = scheduler
        self._model = model
        self._batch = batch
        self._cutting = cutting
        self._pending: deque[_Group] = deque()

    def run(self, songs: Iterable[Song | None]) -> Iterator[Separated]:
        """Separate songs in order.

        Args:
            songs: each is taken when the last segment of the one before has been cut; None says that the next
                one is not there yet, and finishes what is under way.

        Yields:
            For every song its stems in order, then its end. Several songs may be under way at once.

        Raises:
            DeviceLostError: no song can be separated any more.
        """
        for song in itertools.chain(songs, [None]):
            if song is not None:
                yield from self._feed(_UnderWay(song, self._model, self._cutting))
                continue
            while self._pending:
                yield from self._collect()

    def _feed(self, under_way: _UnderWay) -> Iterator[Separated]:
        groups = grouped(under_way.segments(), self._batch)
        while not under_way.ended:  # the engine may fail on an earlier segment of it
            try:
                members = next(groups, None)
            except Exception as error:  # the song cannot be read on; those around it are not to blame
                yield from under_way.end(error)
                return
            if members is None:
                under_way.cut = True
                yield from under_way.collect([], [])
                return
            if len(self._pending) == self._scheduler.capacity:
                yield from self._collect()
            under_way.open_groups += 1
            yield from self._submit(_Group(under_way, members))

    def _submit(self, group: _Group) -> Iterator[Separated]:
        """Starts a group, unless its song has ended; what fails here ends that song."""
        if group.under_way.ended:
            return
        model = self._model
        mix = np.zeros((len(group.members), model.audio_channels, model.segment_samples), np.float32)
        for row, (_, segment) in zip(mix, group.members, strict=True):
            row[:, : segment.samples.shape[1]] = segment.samples
        try:
            group.ticket = self._scheduler.submit(mix)
        except DeviceLostError:  # no song can be separated any more
            raise
        except Exception as error:
            yield from group.under_way.end(error)
        else:
            self._pending.append(group)

    def _collect(self) -> Iterator[Separated]:
        """Waits for the oldest group."""
        oldest = self._pending.popleft()
        try:
            outputs = self._scheduler.result(oldest.ticket)
        except DeviceLostError:
            raise
        except Exception as error:
            # All that was under way is lost with it; other songs' segments are started again.
            lost = list(self._pending)
            self._pending.clear()
            yield from oldest.under_way.end(error)
            for group in lost:
                yield from self._submit(group)
            return
        song = oldest.under_way.song
        song.segments += len(oldest.members)
        song.in_float32 += getattr(oldest.ticket, "in_float32", 0)  # only a gate's tickets say so
        oldest.under_way.open_groups -= 1
        yield from oldest.under_way.collect(oldest.members, outputs)
