"""One stem file, written block by block, that appears whole under its name or not at all."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from mrsep_deploy.audio.compress import Compressed
from mrsep_deploy.audio.encode import WAV_16, WAV_FLOAT, Encoding
from mrsep_deploy.audio.info import Samples
from mrsep_deploy.audio.tags import Tags, info_chunk
from mrsep_deploy.errors import OutputError, UsageError
from mrsep_deploy.files.abandoned import lock
from mrsep_deploy.files.parts import open_place, output_error, part_of

Clip: TypeAlias = Literal["rescale", "rescale-each", "clamp", "none"]
CLIP_MODES: tuple[Clip, ...] = ("rescale", "rescale-each", "clamp", "none")

AnyEncoding: TypeAlias = Encoding | Compressed

CLAMP = 0.99
"""Largest absolute sample of the clip mode ``clamp``, which is Demucs'."""
_CHUNK_FRAMES = 65536
_RESCALING = ("rescale", "rescale-each")


class Cancelled(Exception):
    """The file was not finished because the run was cancelled; nothing is left of it."""


@dataclass(frozen=True)
class WrittenStem:
    """A finished file.

    Attributes:
        frames: samples per channel.
        peak: largest absolute sample that was given, before any clipping.
        gain: what every sample was multiplied by; 1.0 unless the stem had to be rescaled.
        clipped: samples, of all channels together, that were cut off at the limit of the clip mode or format.
    """

    path: Path
    frames: int
    peak: float
    gain: float
    clipped: int = 0

    @property
    def decibels(self) -> float:
        """The gain in dB, to two decimals; 0.0 unless the stem had to be rescaled."""
        return round(20 * math.log10(self.gain), 2) if self.gain != 1 else 0.0


def bytes_needed(frames: int, channels: int, encoding: AnyEncoding = WAV_16, clip: Clip = "rescale") -> int:
    """Disk space one stem takes at most while it is written, in bytes, without its tags."""
    working = _working_encoding(encoding, clip)
    size = len(working.header(1, channels, frames)) + frames * working.frame_bytes(channels) + 1
    # A compressed file is made beside the samples it is made of.
    return size + (frames * encoding.frame_bytes(channels) if isinstance(encoding, Compressed) else 0)


class StemWriter:
    """Writes one stem.

    Everything goes to ``.NAME.PID.RANDOM.part`` in the same directory, which ``close`` renames to
    ``path``; until then a file that was there before stays as it is. A link with that name is replaced,
    never written through. The directory is held open: what is put in its place meanwhile changes nothing.

    What keeps a stem from clipping:

    - ``rescale`` divides the whole stem by ``1.01 * peak`` if that is above 1. ``close`` is told the peak of
      the song's loudest stem, so that all stems get one gain and still add up. Peaks are known at the
      end, so samples wait on disk as float32 and are encoded, in place, by ``close``.
    - ``rescale-each`` takes the stem's own peak, as Demucs does.
    - ``clamp`` clamps every sample to ±0.99.
    - ``none`` changes nothing; integer and lossy encodings still saturate at full scale and never wrap.

    ``WrittenStem.clipped`` counts what the last two cut off.

    FLAC, Ogg Vorbis and MP3 are encoded by ``close``, from float32 samples on disk, and read back as far as
    their length goes.

    As a context manager it closes at the end of the block, and removes what it wrote if the block raises.

    Attributes:
        peak: largest absolute sample so far.
        written: the finished file; None before ``close``.

    Args:
        sample_rate: in Hz.
        tags: written into the file; raw samples and RF64 have no place for them.
        cancel: once it is set, ``close`` gives up between two chunks and raises ``Cancelled``.
        root: the output folder, at or above ``path``; folders between the two must not be links. None: all
            folders of ``path`` may be.

    Raises:
        OutputError: ``path`` is not a place for a file, or not writable, or a folder below ``root`` is a
            link, or the format does not have this sample rate or number of channels.
        UsageError: there is no such clip mode.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        encoding: AnyEncoding = WAV_16,
        clip: Clip = "rescale",
        tags: Tags | None = None,
        cancel: threading.Event | None = None,
        root: Path | None = None,
    ) -> None:
        if clip not in CLIP_MODES:
            raise UsageError(f"there is no clip mode {clip!r}", f"Take one of {', '.join(CLIP_MODES)}")
        self.path = Path(path)
        self.sample_rate = sample_rate
        self.channels = channels
        self.encoding = encoding
        self.clip = clip
        self.tags = tags or {}
        self.written: WrittenStem | None = None
        self.peak = 0.0
        self._cancel = cancel or threading.Event()
        self._parts = [part_of(self.path)]
        if isinstance(encoding, Compressed):
            encoding.check(self.path, sample_rate, channels)
        self._working = _working_encoding(encoding, clip)
        self._frames = self._clipped = 0
        # the largest absolute sample that is written as it is
        kept = clip in _RESCALING or (isinstance(encoding, Encoding) and encoding.floating)
        self._limit = CLAMP if clip == "clamp" else math.inf if kept else 1.0
        with self._clean_up_on_error():
            self._folder = open_place(self.path, root)
            self._file = open(self._parts[0], "xb+", opener=self._folder.opener)  # noqa: SIM115 - closed by close or abort
            lock(self._file)
            self._file.write(self._working.header(sample_rate, channels, 0))

    def write(self, block: Samples) -> None:
        """Append ``[channels, n]`` float32 samples.

        Raises:
            OutputError: the disk is full or fails, or a sample is not a finite number. The writer has
                then removed what it wrote.
        """
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise ValueError(f"a block of shape {block.shape}, expected [{self.channels}, frames]")
        if self._file.closed:
            raise ValueError(f"{self.path} is already closed")
        block = np.asarray(block, dtype=np.float32)
        with self._clean_up_on_error():
            peak = float(np.abs(block).max(initial=0.0))
            if not np.isfinite(peak):
                at = self._frames / self.sample_rate
                raise OutputError(
                    f"samples for {self.path} are NaN or infinite after {at:.2f} s",
                    "The engine failed; try another one, or float32",
                )
            self.peak = max(self.peak, peak)
            self._frames += block.shape[1]
            if peak > self._limit:
                self._clipped += int(np.count_nonzero(np.abs(block) > self._limit))
            clipped = np.clip(block, -CLAMP, CLAMP) if self.clip == "clamp" else block
            self._file.write(self._working.data(clipped))

    def close(self, song_peak: float | None = None) -> WrittenStem:
        """Finish the file and put it under its name. A second call does nothing.

        Args:
            song_peak: for ``rescale``, the largest ``peak`` of the song's stems; None for a stem by itself.

        Raises:
            OutputError: the disk is full or fails, or the place was taken; nothing is left behind.
        """
        if self.written is not None:
            return self.written
        if self._file.closed:
            raise ValueError(f"{self.path} was aborted")
        with self._clean_up_on_error():
            peak = max(self.peak, song_peak or 0.0) if self.clip == "rescale" else self.peak
            # In float32, as Demucs computes it, so that files come out the same to the last bit.
            rescaled = max(np.float32(1.01) * np.float32(peak), np.float32(1))
            divisor = rescaled if self.clip in _RESCALING else np.float32(1)
            if isinstance(self.encoding, Compressed):
                self._compress(self.encoding, divisor)
            else:
                self._seal(self.encoding, divisor)
            self._folder.replace(self._parts[-1].name, self.path.name)
            self._remove_parts()
        self.written = WrittenStem(self.path, self._frames, self.peak, float(1 / divisor), self._clipped)
        return self.written

    def abort(self) -> None:
        """Remove what was written so far. After ``close`` it does nothing: the file stays."""
        if self.written is None and hasattr(self, "_file"):
            with suppress(OSError):  # a full disk fails once more when buffers are flushed
                self._file.close()
            self._remove_parts()

    def _remove_parts(self) -> None:
        for part in self._parts:
            with suppress(OSError):
                self._folder.unlink(part.name)
        self._folder.close()

    def __enter__(self) -> StemWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _compress(self, encoding: Compressed, divisor: np.float32) -> None:
        """Encode the samples into a second part."""
        self._parts.append(part_of(self.path))
        with open(self._parts[-1], "xb+", opener=self._folder.opener) as part:
            lock(part)
            encoding.encode(
                self._samples(divisor), part, self.path, self.sample_rate, self.channels, self.tags
            )
        self._file.close()

    def _seal(self, encoding: Encoding, divisor: np.float32) -> None:
        """Make the part a WAV file that is whole and on the disk, not only in its cache."""
        header = encoding.header(self.sample_rate, self.channels, self._frames)
        if self._working is not encoding or divisor != 1:
            # In place, from front to back: a sample never gets longer nor does the header, so what is written ends
            # before what is still to be read.
            at = len(header)
            for samples in self._samples(divisor):
                self._file.seek(at)
                at += self._file.write(encoding.data(samples))
            self._file.truncate(at)
        # RF64 files are for machines; few of their readers expect chunks after the data.
        chunk = info_chunk(self.tags) if header[:4] == b"RIFF" else b""
        self._file.seek(0, os.SEEK_END)
        odd = self._frames * encoding.frame_bytes(self.channels) % 2
        self._file.write(
            (bytes(odd) if header else b"") + chunk
        )  # a RIFF chunk of odd size ends with a zero byte
        self._file.seek(0)
        self._file.write(encoding.header(self.sample_rate, self.channels, self._frames, len(chunk)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _samples(self, divisor: np.float32) -> Iterator[Samples]:
        """The samples on the disk, divided, as ``[channels, n]`` chunks."""
        size = self._working.frame_bytes(self.channels)
        start = len(self._working.header(self.sample_rate, self.channels, self._frames))
        for done in range(0, self._frames, _CHUNK_FRAMES):
            if self._cancel.is_set():
                raise Cancelled(str(self.path))
            self._file.seek(start + done * size)
            data = self._file.read(min(_CHUNK_FRAMES, self._frames - done) * size)
            samples = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
            yield samples.reshape(-1, self.channels).T / divisor

    @contextmanager
    def _clean_up_on_error(self) -> Iterator[None]:
        """Whatever goes wrong, an interrupt from the keyboard too: no part is left, and disks explain."""
        try:
            yield
        except OSError as error:
            self.abort()
            needed = bytes_needed(self._frames, self.channels, self.encoding, self.clip)
            raise output_error(error, self.path, needed) from error
        except BaseException:
            self.abort()
            raise


def _working_encoding(encoding: AnyEncoding, clip: Clip) -> Encoding:
    """How samples wait on disk for ``close``."""
    return WAV_FLOAT if clip in _RESCALING or isinstance(encoding, Compressed) else encoding
