"""One song in: opened, measured, and read ahead of the separation."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mrsep_deploy.audio.encode import Encoding
from mrsep_deploy.audio.info import Samples
from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.audio.tags import read_tags
from mrsep_deploy.audio.write import Cancelled
from mrsep_deploy.errors import AudioError
from mrsep_deploy.files.parts import explained
from mrsep_deploy.process.interrupts import breakable
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.songs.tracks import Track

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
    cleanup: contextlib.ExitStack

    def blocks(self) -> Iterator[Samples]:
        """The song from its start, ``[C, n]`` at the model's rate."""
        return iter(self.held) if self.held is not None else _read_ahead(self.source.blocks())

    def close(self) -> None:
        """Forget samples and temporary files."""
        self.held = None
        self.cleanup.close()


def load(
    track: Track,
    sample_rate: int,
    channels: int,
    cancel: threading.Event,
    raw: RawForm | None,
    allow_damaged: bool,
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
        source = AudioSource(path, sample_rate, channels, allow_damaged=allow_damaged)
        held: list[Samples] = []
        size = 0

        def passing() -> Iterator[Samples]:
            nonlocal size
            for block in source.blocks():
                if cancel.is_set():
                    raise Cancelled(str(track.path))
                size += block.nbytes
                held.append(block)
                if size > KEPT_BYTES:
                    held.clear()
                yield block

        statistics = SongStatistics.measure(passing())
        kept = held if size <= KEPT_BYTES else None
        assert source.decoded is not None
        return LoadedSong(track, source, statistics, read_tags(path), source.decoded, kept, stack.pop_all())


@contextlib.contextmanager
def _spooled_stdin(raw: RawForm | None) -> Iterator[Path]:
    """What comes through stdin, as a file: a song is read twice, a pipe once. Its errors speak of stdin."""
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
        try:
            yield path
        except AudioError as error:
            error.message = error.message.replace(str(path), "stdin")
            raise


def _read_ahead(blocks: Iterator[Samples]) -> Iterator[Samples]:
    """The same blocks, decoded by a thread that is up to ``AHEAD`` of them ahead."""
    with ThreadPoolExecutor(1, "decode") as decoder:
        ahead = deque(decoder.submit(next, blocks, None) for _ in range(AHEAD))
        try:
            while True:
                with breakable():
                    block = ahead[0].result()
                if block is None:
                    return
                ahead.popleft()
                ahead.append(decoder.submit(next, blocks, None))
                yield block
        finally:
            for each in ahead:
                each.cancel()
