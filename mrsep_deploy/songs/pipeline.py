"""A catalogue: while one song is separated, the next ones are decoded and the last ones encoded.

    loading threads  ->  the engine, song after song without a pause  ->  encoding threads  ->  journal

At most ``jobs`` songs are loaded ahead and ``jobs`` wait for their encoders, so memory does not grow with the
number of songs. A song that fails is reported, and the others go on; only a GPU that is lost ends the run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from mrsep_deploy.audio.blocks import BlockQueue
from mrsep_deploy.audio.info import Samples
from mrsep_deploy.errors import DeviceLostError
from mrsep_deploy.process.interrupts import breakable
from mrsep_deploy.separation.bag import BagSeparator
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.stream import Song
from mrsep_deploy.songs.journal import Journal
from mrsep_deploy.songs.loading import LoadedSong, RawForm, load
from mrsep_deploy.songs.outcome import Outcome, Summary
from mrsep_deploy.songs.reporting import Quiet
from mrsep_deploy.songs.tracks import Track
from mrsep_deploy.songs.writing import SongWriter, WriteOptions


@dataclass(eq=False)
class _Active:
    """A song between its first segment and its last file.

    Attributes:
        mix: samples that have no stems yet, where an output is made of them.
        song: as the separator knows it.
    """

    loaded: LoadedSong
    writer: SongWriter
    mix: BlockQueue | None
    began: float
    done: int = 0
    failed: Exception | None = None
    files: list[Future[None]] = field(default_factory=list)
    unfinished: int = 0
    song: Song = field(init=False)

    @property
    def whole(self) -> bool:
        """Whether all files are finished, and noted down."""
        ended = all(file.done() and not file.cancelled() for file in self.files)
        return bool(self.files) and ended and not any(file.exception() for file in self.files)


@dataclass(eq=False)
class Catalogue:
    """Separates many songs.

    Attributes:
        reporter: is told of progress and ends, always by the thread that runs the catalogue.
        journal: where finished songs are noted, and which of them are skipped.
        skip_done: skip what the journal says is done.
        jobs: songs that are decoded ahead, and songs that are encoded, at the same time.
        raw: what stdin is, if it has no header.
        allow_damaged: separate what is there of a song that is cut or damaged.
    """

    separator: Separator | BagSeparator
    options: WriteOptions
    reporter: Quiet
    journal: Journal | None
    skip_done: bool
    jobs: int
    raw: RawForm | None
    allow_damaged: bool

    def __post_init__(self) -> None:
        self._cancel = threading.Event()
        self._lock = threading.Lock()
        self._outcomes: list[Outcome] = []
        self._active: dict[Song, _Active] = {}
        self._encoding: deque[_Active] = deque()
        self._loading: deque[tuple[Track, Future[LoadedSong] | None]] = deque()
        self._tracks: Sequence[Track] = ()
        self._began = time.perf_counter()

    def run(self, tracks: Sequence[Track]) -> Summary:
        """Separate all of them. An interruption leaves finished songs and removes unfinished ones.

        Raises:
            DeviceLostError: the GPU is lost; songs that had all their stems by then are finished.
        """
        self._tracks = tracks
        self._began = time.perf_counter()
        with (
            ThreadPoolExecutor(self.jobs, "load") as loaders,
            ThreadPoolExecutor(self.jobs, "encode") as encoders,
        ):
            try:
                for separated in self.separator.separate_songs(self._songs(tracks, loaders)):
                    self._complete_finished()
                    active = self._active[separated.song]
                    if separated.stems is not None:
                        self._write(active, separated.stems)
                    else:
                        del self._active[separated.song]
                        self._encode(active, separated.error, encoders)
                while self._encoding:
                    self._complete_oldest()
            except BaseException as error:
                try:
                    while isinstance(error, DeviceLostError) and self._encoding:
                        self._complete_oldest()  # it has all its stems
                finally:
                    self._cancel.set()
                    for pool in (loaders, encoders):
                        pool.shutdown(wait=True, cancel_futures=True)
                    self.abandon()
                raise
        return self.summary()

    def summary(self) -> Summary:
        """What became of every song, after ``run``; after an interruption too, some then being unfinished."""
        ended = {outcome.track for outcome in self._outcomes}
        unfinished = tuple(Outcome(track, "unfinished") for track in self._tracks if track not in ended)
        return Summary((*self._outcomes, *unfinished), time.perf_counter() - self._began, bool(unfinished))

    # --- songs in

    def _songs(self, tracks: Sequence[Track], loaders: ThreadPoolExecutor) -> Iterator[Song | None]:
        waiting = iter(tracks)
        while True:
            self._load_ahead(waiting, loaders)
            if not self._loading:
                return
            track, loading = self._loading[0]
            if loading is None or not loading.done():
                yield None  # what is under way gets finished while the song is not there yet
            if loading is not None:
                self._wait_for(loading)
            self._loading.popleft()
            try:
                # stdin is read by this thread: one that waits for a pipe could not be interrupted
                song = self._begin(self._load(track) if loading is None else loading.result())
            except Exception as error:
                self._end(Outcome(track, "failed", error=error))
                continue
            yield song

    def _load(self, track: Track) -> LoadedSong:
        rate, channels = self.separator.sample_rate, self.separator.audio_channels
        return load(track, rate, channels, self._cancel, self.raw, self.allow_damaged)

    def _load_ahead(self, waiting: Iterator[Track], loaders: ThreadPoolExecutor) -> None:
        while len(self._loading) < self.jobs:
            track = next(waiting, None)
            if track is None:
                return
            paths = self.options.naming.paths(track, self.options.outputs)
            if self.skip_done and self.journal is not None and self.journal.is_done(track.path, paths):
                self._end(Outcome(track, "skipped", tuple(paths)))
                continue
            loading = None if track.is_stdin else loaders.submit(self._load, track)
            self._loading.append((track, loading))

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
        mix = BlockQueue() if any(output.from_mix for output in self.options.outputs) else None
        active = _Active(loaded, writer, mix, time.perf_counter())
        active.song = Song(loaded.statistics, _blocks(active))
        self._active[active.song] = active
        return active.song

    # --- stems out

    def _write(self, active: _Active, stems: Samples) -> None:
        count = stems.shape[-1]
        if active.failed is None:
            try:
                active.writer.write(stems, None if active.mix is None else active.mix.take(count))
            except Exception as error:
                active.failed = error
        active.done += count
        elapsed = time.perf_counter() - active.began
        self.reporter.progress(active.loaded.track, active.done, active.loaded.statistics.frames, elapsed)

    def _encode(self, active: _Active, failed: Exception | None, encoders: ThreadPoolExecutor) -> None:
        """Let a song's files be finished, unless it has failed; waits if too many songs are there already."""
        failed = active.failed or failed
        if failed is None:
            try:
                active.writer.flush()
            except Exception as error:
                failed = error
        if failed is not None:
            self._give_up(active, failed)
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
            track = active.loaded.track
            if self.journal is not None and not track.is_stdin:
                self.journal.add(track.path, active.writer.paths)

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
        loaded, writer = active.loaded, active.writer
        return Outcome(
            loaded.track,
            "done",
            tuple(writer.paths),
            seconds=loaded.statistics.frames / self.separator.sample_rate,
            elapsed=time.perf_counter() - active.began,
            remarks=(*loaded.source.remarks, *filter(None, [writer.remark])),
            gains={name: stem.decibels for name, stem in writer.finished.items()},
            segments=active.song.segments,
            in_float32=active.song.in_float32,
        )

    def _give_up(self, active: _Active, error: Exception) -> None:
        wait([file for file in active.files if not file.cancel()])
        active.writer.abort()
        active.loaded.close()
        self._end(Outcome(active.loaded.track, "failed", error=error))

    def _end(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self.reporter.ended(outcome)

    def abandon(self) -> None:
        """Remove what is not finished. An end that no thread waits for calls it from a thread of its own."""
        self._cancel.set()
        for active in (*self._active.values(), *self._encoding):
            if active.whole:
                self._outcomes.append(self._done(active))
            active.writer.abort()
            active.loaded.close()
        self._active.clear()
        self._encoding.clear()
        for _, loading in self._loading:
            with contextlib.suppress(Exception):
                if loading is not None:
                    loading.result(timeout=0).close()
        self._loading.clear()


def _blocks(active: _Active) -> Iterator[Samples]:
    """The song's blocks, as long as its stems can be written."""
    for block in active.loaded.blocks():
        if active.failed is not None:
            raise active.failed
        if active.mix is not None:
            active.mix.push(block)
        yield block
