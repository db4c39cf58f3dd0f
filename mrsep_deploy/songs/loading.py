"""One song in: opened, measured, and read ahead of the separation."""

from __future__ import annotations

import contextlib
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mrsep_deploy.audio.encode import Encoding
from mrsep_deploy.audio.info import Samples
from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.audio.tags import read_tags
from mrsep_deploy.audio.write import Cancelled
from mrsep_deploy.errors import AudioError
from mrsep_deploy.files.parts import explained
from mrsep_deploy.process.interrupts import breakable
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.songs.track import Track

T = TypeVar("T")

KEPT_BYTES = 64 * 2**20
"""A song of up to this size, as float32, is decoded once and stays in memory: three minutes of stereo."""
AHEAD = 4
"""Blocks that are decoded before they are needed."""


@dataclass(frozen=True)
class RawForm:
    """What raw samples on stdin are."""

    sample_rate: int
    channels: int
    encoding: Encoding


@dataclass
class LoadedSong:
    """A song that has been read once.

    Attributes:
        frames: at the file's own rate, ``source.info.sample_rate``.
        held: its blocks, if it is short.
    """

    track: Track
    source: AudioSource
    statistics: SongStatistics
    tags: dict[str, str]
    frames: int
    held: list[Samples] | None
    cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def blocks(self, cancel: threading.Event) -> Iterator[Samples]:
        """The song from its start, ``[C, n]`` at the model's rate."""
        if self.held is not None:
            yield from self.held
        else:
            yield from _read_ahead(self.source.blocks(), cancel)

    def close(self) -> None:
        """Forget samples and temporary files."""
        self.held = None
        self.cleanup.close()


def load(
    track: Track,
    sample_rate: int,
    channels: int,
    cancel: threading.Event,
    raw: RawForm | None = None,
    allow_damaged: bool = False,
) -> LoadedSong:
    """Read a song once, for its level, length and tags.

    Args:
        sample_rate, channels: as the model wants them.
        cancel: once it is set, reading ends with ``Cancelled``.
        raw: what stdin is, if it has no header.
        allow_damaged: take what is there of a song that is cut or damaged.

    Raises:
        AudioError: it cannot be read, or part of it is missing.
        UsageError: there is none, as the track's ``problem`` says.
    """
    if track.problem is not None:
        raise track.problem
    with contextlib.ExitStack() as stack:
        path = track.path
        if track.is_stdin:
            path = stack.enter_context(_spooled_stdin(raw))
            stack.enter_context(_called_stdin(path))
        source = AudioSource(path, sample_rate, channels, allow_damaged=allow_damaged)
        held: list[Samples] | None = []
        size = 0

        def passing() -> Iterator[Samples]:
            nonlocal held, size
            for block in source.blocks():
                if cancel.is_set():
                    raise Cancelled(str(track.path))
                size += block.nbytes
                if held is not None:
                    held.append(block)
                if size > KEPT_BYTES:
                    held = None
                yield block

        statistics = SongStatistics.measure(passing())
        assert source.decoded is not None
        return LoadedSong(track, source, statistics, read_tags(path), source.decoded, held, stack.pop_all())


@contextlib.contextmanager
def _spooled_stdin(raw: RawForm | None) -> Iterator[Path]:
    """What comes through stdin, as a file: a song is read twice, a pipe once."""
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-stdin-") as folder:
        path = Path(folder) / "stdin.wav"
        with explained(path, "TMPDIR names another place."), open(path, "wb") as file:
            start = len(raw.encoding.header(raw.sample_rate, raw.channels, 0)) if raw else 0
            file.seek(start)
            with breakable():
                shutil.copyfileobj(sys.stdin.buffer, file)
            size = file.tell() - start
            if raw is not None:
                frames, rest = divmod(size, raw.encoding.frame_bytes(raw.channels))
                if rest:
                    raise AudioError(
                        f"stdin has {size} bytes, no whole number of frames of {raw.channels} channels "
                        f"in {raw.encoding.bits} bits",
                        "Check what --stdin-raw says.",
                    )
                file.seek(0)
                file.write(raw.encoding.header(raw.sample_rate, raw.channels, frames))
        if not size:
            raise AudioError("stdin is empty", "Pipe an audio file into it.")
        yield path


def _taken(ready: queue.Queue[T]) -> T:
    with breakable():
        return ready.get()


@contextlib.contextmanager
def _called_stdin(path: Path) -> Iterator[None]:
    """Errors of the file that stdin has become speak of stdin."""
    try:
        yield
    except AudioError as error:
        error.message = error.message.replace(str(path), "stdin")
        raise


def _read_ahead(blocks: Iterable[Samples], cancel: threading.Event) -> Iterator[Samples]:
    """The same blocks, decoded by a thread that is up to ``AHEAD`` of them ahead."""
    ready: queue.Queue[Samples | BaseException | None] = queue.Queue(AHEAD)
    left = threading.Event()

    def put(item: Samples | BaseException | None) -> None:
        while not left.is_set() and not cancel.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for block in blocks:
                put(block)
                if left.is_set() or cancel.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the blocks are read
            put(error)

    worker = threading.Thread(target=work, name="decode", daemon=True)
    worker.start()
    try:
        while (item := _taken(ready)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        worker.join()
