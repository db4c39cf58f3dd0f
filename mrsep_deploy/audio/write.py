"""One stem file, written block by block, that appears whole under its name or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np

from ..errors import OutputError, UsageError
from .encode import WAV_16, WAV_FLOAT, Encoding
from .info import Samples

Clip: TypeAlias = Literal["rescale", "clamp", "none"]
CLIP_MODES: tuple[Clip, ...] = ("rescale", "clamp", "none")

_CHUNK_FRAMES = 65536
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class WrittenStem:
    """A finished file.

    Attributes:
        frames: samples per channel.
        peak: largest absolute sample that was given, before any clipping.
        gain: what every sample was multiplied by; 1.0 unless the stem had to be rescaled.
    """

    path: Path
    frames: int
    peak: float
    gain: float


def bytes_needed(frames: int, channels: int, encoding: Encoding = WAV_16, clip: Clip = "rescale") -> int:
    """Disk space one stem takes at most while it is written, in bytes."""
    working = _working_encoding(encoding, clip)
    return len(working.header(1, channels, frames)) + frames * working.frame_bytes(channels) + 1


class StemWriter:
    """Writes one stem.

    Everything goes to ``.NAME.PID.RANDOM.part`` in the same directory, which ``close`` renames to
    ``path``; until then a file that was there before stays as it is. A symbolic link is followed.

    What keeps a stem from clipping, as in Demucs:

    - ``rescale`` divides the whole stem by ``1.01 * peak`` if that is above 1. The peak is known at the
      end, so samples wait on disk as float32 and are encoded, in place, by ``close``.
    - ``clamp`` clamps every sample to ±0.99.
    - ``none`` changes nothing; integer encodings still saturate at full scale and never wrap.

    As a context manager it closes at the end of the block, and removes what it wrote if the block raises.

    Args:
        sample_rate: in Hz.

    Raises:
        OutputError: ``path`` is not a place for a file, or not writable.
        UsageError: there is no such clip mode.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        encoding: Encoding = WAV_16,
        clip: Clip = "rescale",
    ) -> None:
        if clip not in CLIP_MODES:
            raise UsageError(f"there is no clip mode {clip!r}", f"Take one of {', '.join(CLIP_MODES)}")
        self.path = Path(path)
        self.sample_rate = sample_rate
        self.channels = channels
        self.encoding = encoding
        self.clip = clip
        self.written: WrittenStem | None = None
        self._working = _working_encoding(encoding, clip)
        self._frames = 0
        self._peak = 0.0
        with self._clean_up_on_error():
            self._target = _prepare_target(self.path)
            self._part = self._target.with_name(_part_name(self._target.name))
            self._file = open(self._part, "xb+")  # noqa: SIM115 - closed by close or abort
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
            self._peak = max(self._peak, peak)
            self._frames += block.shape[1]
            clipped = np.clip(block, -0.99, 0.99) if self.clip == "clamp" else block
            self._file.write(self._working.data(clipped))

    def close(self) -> WrittenStem:
        """Finish the file and put it under its name. A second call does nothing.

        Raises:
            OutputError: the disk is full or fails, or the place was taken; nothing is left behind.
        """
        if self.written is not None:
            return self.written
        if self._file.closed:
            raise ValueError(f"{self.path} was aborted")
        with self._clean_up_on_error():
            divisor = self._divisor()
            if self._working is not self.encoding or divisor != 1:
                self._encode_in_place(divisor)
            self._seal()
            os.replace(self._part, self._target)
        self.written = WrittenStem(self.path, self._frames, self._peak, float(1 / divisor))
        return self.written

    def abort(self) -> None:
        """Remove what was written so far. After ``close`` it does nothing: the file stays."""
        if self.written is None and hasattr(self, "_file"):
            with suppress(OSError):  # a full disk fails once more when buffers are flushed
                self._file.close()
            with suppress(OSError):
                self._part.unlink()

    def __enter__(self) -> StemWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _divisor(self) -> np.float32:
        # In float32, as Demucs computes it, so that files come out the same to the last bit.
        scaled = np.float32(1.01) * np.float32(self._peak)
        return max(scaled, np.float32(1)) if self.clip == "rescale" else np.float32(1)

    def _encode_in_place(self, divisor: np.float32) -> None:
        """Turn the float32 samples of the file into ``encoding``, from front to back.

        A sample never gets longer nor does the header, so what is written ends before what is still to
        be read, and a stem needs no second file.
        """
        size_in, size_out = (e.frame_bytes(self.channels) for e in (self._working, self.encoding))
        start_in, start_out = (len(self._header(e)) for e in (self._working, self.encoding))
        for done in range(0, self._frames, _CHUNK_FRAMES):
            self._file.seek(start_in + done * size_in)
            count = min(_CHUNK_FRAMES, self._frames - done)
            samples = np.frombuffer(self._file.read(count * size_in), "<f4").astype(np.float32, copy=False)
            scaled = samples.reshape(-1, self.channels).T / divisor
            self._file.seek(start_out + done * size_out)
            self._file.write(self.encoding.data(scaled))
        self._file.truncate(start_out + self._frames * size_out)

    def _seal(self) -> None:
        """Header and padding now that the length is known; then to the disk, not only to its cache."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(self.encoding.padding(self.channels, self._frames))
        self._file.seek(0)
        self._file.write(self._header(self.encoding))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _header(self, encoding: Encoding) -> bytes:
        return encoding.header(self.sample_rate, self.channels, self._frames)

    @contextmanager
    def _clean_up_on_error(self) -> Iterator[None]:
        """Whatever goes wrong, an interrupt from the keyboard too: no part is left, and disks explain."""
        try:
            yield
        except OSError as error:
            self.abort()
            needed = bytes_needed(self._frames, self.channels, self.encoding, self.clip)
            raise _explained(error, self.path, needed) from error
        except BaseException:
            self.abort()
            raise


def _working_encoding(encoding: Encoding, clip: Clip) -> Encoding:
    return WAV_FLOAT if clip == "rescale" else encoding


def _prepare_target(path: Path) -> Path:
    """The place the file will really be at, its directory made. Raises OSError or OutputError."""
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} holds a NUL character", "Choose another output path")
    target = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        # Asked of the final name too: it may be too long where the temporary one is not.
        mode = os.stat(target).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise OutputError(f"{path} is {what}, expected a place for a file", "Choose another output path")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _part_name(name: str) -> str:
    # 40 characters: a name of the greatest length a file system takes leaves no room for more.
    return f".{name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.part"


def _explained(error: OSError, path: Path, needed: int) -> OutputError:
    if error.errno in _FULL:
        return OutputError(
            f"no space left for {path}: it needs at least {needed} bytes{_free(path)}",
            "Free some space, or choose an output directory on another disk",
        )
    if error.errno in _FORBIDDEN:
        return OutputError(
            f"{path} may not be written by this user ({error.strerror})",
            "Change the permissions, or choose another output directory",
        )
    return OutputError(f"{path} cannot be written: {error.strerror or error}", "Choose another output path")


def _free(path: Path) -> str:
    try:
        return f", {shutil.disk_usage(path.parent).free} are free"
    except OSError:
        return ""
