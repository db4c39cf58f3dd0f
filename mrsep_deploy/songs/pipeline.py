"""A catalogue: while one song is separated, the next ones are decoded and the last ones encoded.

    loading threads  ->  the engine, song after song without a pause  ->  encoding threads  ->  journal

At most ``jobs`` songs are loaded ahead and ``jobs`` wait for their encoders, so memory does not grow with the
number of songs. A song that fails is reported, and the others go on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from mrsep_deploy.audio.info import Samples
from mrsep_deploy.process.interrupts import breakable
from mrsep_deploy.separation.stream import Separated, Song
from mrsep_deploy.songs.journal import Journal
from mrsep_deploy.songs.loading import LoadedSong, RawForm, load
from mrsep_deploy.songs.outcome import Outcome, Summary
from mrsep_deploy.songs.track import Track
from mrsep_deploy.songs.writing import MixBuffer, SongWriter, WriteOptions

DEFAULT_JOBS = 2


class SeparatesSongs(Protocol):
    """What a catalogue needs of a separator."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def audio_channels(self) -> int: ...

    def separate_songs(self, songs: Iterable[Song | None]) -> Iterator[Separated]: ...


class Reporter(Protocol):
    """Receives progress and results. All calls come from the thread that runs the catalogue."""

    def progress(self, track: Track, done: int, total: int, elapsed: float) -> None:
        """A song has come so far, in samples at the model's rate, in so many seconds since its own begin."""

    def ended(self, outcome: Outcome) -> None:
        """A song has ended, one way or another."""


@dataclass(eq=False)
class _Active:
    """A song between its first segment and its last file."""

    loaded: LoadedSong
    writer: SongWriter
    mix: MixBuffer
    began: float
    done: int = 0
    failed: Exception | None = None
    files: list[Future[None]] = field(default_factory=list)
    unfinished: int = 0


@dataclass(eq=False)
class Catalogue:
    """Separates many songs.

    Attributes:
        separator: ready to run.
        options: what is written, and where.
        reporter: is told of progress and ends.
        journal: where finished songs are noted, and which of them are skipped.
        skip_done: skip what the journal says is done.
        jobs: songs that are decoded ahead, and songs that are encoded, at the same time.
        raw: what stdin is, if it has no header.
        allow_damaged: separate what is there of a song that is cut or damaged.
    """

    separator: SeparatesSongs
    options: WriteOptions
    reporter: Reporter
    journal: Journal | None = None
    skip_done: bool = False
    jobs: int = DEFAULT_JOBS
    raw: RawForm | None = None
    allow_damaged: bool = False

    def __post_init__(self) -> None:
        self._cancel = threading.Event()
        self._lock = threading.Lock()
        self._outcomes: list[Outcome] = []
        self._active: dict[Song, _Active] = {}
        self._encoding: deque[_Active] = deque()
        self._loading: deque[tuple[Track, Future[LoadedSong]]] = deque()
        self._tracks: Sequence[Track] = ()
        self._began = time.perf_counter()

    def run(self, tracks: Sequence[Track]) -> Summary:
        """Separate all of them. An interruption leaves finished songs and removes unfinished ones."""
        self._tracks = tracks
        self._began = time.perf_counter()
        with (
            ThreadPoolExecutor(self.jobs, "load") as loaders,
            ThreadPoolExecutor(self.jobs, "encode") as encoders,
            self._cleaned_up(loaders, encoders),
        ):
            for separated in self.separator.separate_songs(self._songs(tracks, loaders)):
                self._take(self._active[separated.song], separated, encoders)
            while self._encoding:
                self._complete_oldest()
        return self.summary()

    def summary(self) -> Summary:
        """What became of every song, after ``run``; after an interruption too, some then being unfinished."""
        ended = {outcome.track for outcome in self._outcomes}
        unfinished = tuple(Outcome(track, "unfinished") for track in self._tracks if track not in ended)
        elapsed = time.perf_counter() - self._began
        return Summary((*self._outcomes, *unfinished), elapsed, interrupted=bool(unfinished))

    # --- songs in

    def _songs(self, tracks: Sequence[Track], loaders: ThreadPoolExecutor) -> Iterator[Song | None]:
        waiting = iter(tracks)
        while True:
            self._load_ahead(waiting, loaders)
            if not self._loading:
                return
            track, loading = self._loading[0]
            if not loading.done():
                yield None  # what is under way gets finished while the song is not there yet
                self._wait_for(loading)
            self._loading.popleft()
            try:
                song = self._begin(loading.result())
            except Exception as error:
                self._end(Outcome(track, "failed", error=error))
                continue
            yield song

    def _load_ahead(self, waiting: Iterator[Track], loaders: ThreadPoolExecutor) -> None:
        rate, channels = self.separator.sample_rate, self.separator.audio_channels
        while len(self._loading) < self.jobs:
            track = next(waiting, None)
            if track is None:
                return
            paths = self.options.naming.paths(track, self.options.outputs)
            if self.skip_done and self.journal is not None and self.journal.is_done(track, paths):
                self._end(Outcome(track, "skipped", tuple(paths)))
                continue
            arguments = track, rate, channels, self._cancel, self.raw, self.allow_damaged
            if track.is_stdin:  # read by this thread: one that waits for a pipe could not be interrupted
                self._loading.append((track, _called(lambda given=arguments: load(*given))))  # type: ignore[misc]
            else:
                self._loading.append((track, loaders.submit(load, *arguments)))

    def _wait_for(self, loading: Future[LoadedSong]) -> None:
        while not loading.done():
            awaited: list[Future[Any]] = [loading]
            awaited += [file for active in self._encoding for file in active.files if not file.done()]
            with breakable():
                wait(awaited, return_when=FIRST_COMPLETED)
            self._complete_finished()

    def _begin(self, loaded: LoadedSong) -> Song:
        try:
            writer = SongWriter(loaded, self.options, self._cancel)
        except BaseException:
            loaded.close()
            raise
        wanted = any(output.from_mix for output in self.options.outputs)
        mix = MixBuffer(loaded.blocks(self._cancel), wanted)
        active = _Active(loaded, writer, mix, time.perf_counter())
        song = Song(loaded.statistics, self._unless_failed(active))
        self._active[song] = active
        return song

    def _unless_failed(self, active: _Active) -> Iterator[Samples]:
        """The song's blocks, as long as its stems can be written."""
        for block in active.mix:
            if active.failed is not None:
                raise active.failed
            yield block

    # --- stems out

    def _take(self, active: _Active, separated: Separated, encoders: ThreadPoolExecutor) -> None:
        self._complete_finished()
        if separated.stems is not None:
            self._write(active, separated)
            return
        del self._active[separated.song]
        active.failed = active.failed or separated.error
        try:
            if active.failed is None:
                active.writer.flush()
        except Exception as error:
            active.failed = error
        if active.failed is not None:
            self._give_up(active, active.failed)
            return
        active.loaded.close()
        active.unfinished = len(active.writer.paths)
        active.files = [encoders.submit(self._finish, active, n) for n in range(active.unfinished)]
        self._encoding.append(active)
        while len(self._encoding) > self.jobs:
            self._complete_oldest()

    def _finish(self, active: _Active, index: int) -> None:
        """Encode one output; the last one of a song notes it down, at once: a kill may come at any time."""
        active.writer.finish(index)
        with self._lock:
            active.unfinished -= 1
            last = not active.unfinished
        if last:
            active.writer.sync()
            if self.journal is not None:
                self.journal.add(active.loaded.track, active.writer.paths)

    def _write(self, active: _Active, separated: Separated) -> None:
        assert separated.stems is not None
        count = separated.stems.shape[-1]
        if active.failed is None:
            try:
                active.writer.write(separated.stems, active.mix.take(count))
            except Exception as error:
                active.failed = error
        active.done += count
        elapsed = time.perf_counter() - active.began
        self.reporter.progress(active.loaded.track, active.done, active.loaded.statistics.frames, elapsed)

    def _complete_finished(self) -> None:
        while self._encoding and all(file.done() for file in self._encoding[0].files):
            self._complete_oldest()

    def _complete_oldest(self) -> None:
        """Wait for a song's files. An interruption leaves the song where ``abandon`` finds it."""
        active = self._encoding[0]
        try:
            with breakable():
                for file in active.files:
                    file.result()
        except Exception as error:
            self._encoding.popleft()
            self._give_up(active, error)
            return
        self._encoding.popleft()
        self._end(self._done(active))

    def _done(self, active: _Active) -> Outcome:
        seconds = active.loaded.statistics.frames / self.separator.sample_rate
        elapsed = time.perf_counter() - active.began
        loaded, writer = active.loaded, active.writer
        return Outcome(
            loaded.track,
            "done",
            tuple(writer.paths),
            seconds,
            elapsed,
            remarks=(*loaded.source.remarks, *filter(None, [writer.remark])),
            gains=writer.gains,
        )

    def _give_up(self, active: _Active, error: Exception) -> None:
        for file in active.files:
            file.cancel()
        for file in active.files:
            with contextlib.suppress(Exception):
                if not file.cancelled():
                    file.result()
        active.writer.abort()
        active.loaded.close()
        self._end(Outcome(active.loaded.track, "failed", error=error))

    def _end(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self.reporter.ended(outcome)

    @contextlib.contextmanager
    def _cleaned_up(self, *pools: ThreadPoolExecutor) -> Iterator[None]:
        """However it ends: threads are asked to stop, and what is not finished is removed."""
        try:
            yield
        except BaseException:
            self._cancel.set()
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove what is not finished. An end that no thread waits for calls it from a thread of its own."""
        self._cancel.set()
        for active in (*self._active.values(), *self._encoding):
            if _is_whole(active):
                self._outcomes.append(self._done(active))
            active.writer.abort()
            active.loaded.close()
        self._active.clear()
        self._encoding.clear()
        for _, loading in self._loading:
            with contextlib.suppress(Exception):
                loading.result(timeout=0).close()
        self._loading.clear()


def _is_whole(active: _Active) -> bool:
    """Whether all files of a song are finished, and noted down."""
    return bool(active.files) and all(
        file.done() and not file.cancelled() and file.exception() is None for file in active.files
    )


def _called(function: Callable[[], LoadedSong]) -> Future[LoadedSong]:
    """What a function gives or raises, as a future that is done."""
    future: Future[LoadedSong] = Future()
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
    return future
