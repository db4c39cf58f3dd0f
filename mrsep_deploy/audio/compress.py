"""Samples to FLAC, Ogg Vorbis and MP3, with the encoders inside libsndfile."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mrsep_deploy.audio.encode import WAV_16, WAV_24, WAV_FLOAT, Encoding
from mrsep_deploy.audio.info import Samples, native
from mrsep_deploy.audio.tags import Tags, id3_tag
from mrsep_deploy.errors import OutputError

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
MP3_BITRATES = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
"""Those of MPEG-1 whose frames have room for the header that says how long the song is."""


@dataclass(frozen=True)
class Compressed:
    """A kind of compressed file.

    Attributes:
        name: as users type it.
        samples: what the encoder is given. For FLAC these integers are kept, the same as in a WAV file.
        bitrate: of MP3, in kbit/s.
        quality: of Ogg Vorbis, 0 to 10.
    """

    name: str
    samples: Encoding
    container: str
    subtype: str
    suffix: str
    bitrate: int = 0
    quality: float = 0.0

    def frame_bytes(self, channels: int) -> int:
        """Bytes a sample of every channel takes at most."""
        # The highest bit rates, 320 kbit/s of MP3 at 8 kHz among them, stay below 16 bits a sample.
        return self.samples.frame_bytes(channels) if self.container == "FLAC" else channels * 2

    def check(self, path: Path, sample_rate: int, channels: int) -> None:
        """Raises ``OutputError`` for a sample rate or a number of channels that the format does not have."""
        fits = {
            "FLAC": sample_rate <= 655_350 and channels <= 8,
            "OGG": sample_rate <= 192_000,
            "MP3": sample_rate in MP3_RATES and channels <= 2,
        }
        if not fits[self.container]:
            raise OutputError(
                f"{path} would have {sample_rate} Hz and {channels} channels, which {self.name} has not",
                "Choose another format, or --sample-rate model.",
            )

    def encode(
        self,
        chunks: Iterable[Samples],
        part: IO[bytes],
        path: Path,
        sample_rate: int,
        channels: int,
        tags: Tags,
    ) -> None:
        """Encode ``[channels, n]`` chunks into ``part``, and force it to the disk.

        ``part`` is a new file, open for reading and writing; ``path`` is the name it will have, for messages.

        Raises:
            OutputError: the encoder failed, or the file does not hold what was given.
            OSError: it cannot be written.
        """
        import soundfile

        frames = 0
        advice = "Free some space, or choose another place or format."
        try:
            with (
                contextlib.ExitStack() as stack,
                soundfile.SoundFile(
                    self._target(part, tags, stack),
                    "w",
                    sample_rate,
                    channels,
                    self.subtype,
                    format=self.container,
                    compression_level=self._level(sample_rate),
                    bitrate_mode="CONSTANT" if self.container == "MP3" else None,
                ) as file,
            ):
                if self.container != "MP3":
                    for name, text in tags.items():
                        setattr(file, name, text)
                for chunk in chunks:
                    file.write(self._given(chunk))
                    frames += chunk.shape[1]
            held = soundfile.info(_for_libsndfile(part)).frames
        # libsndfile calls a full disk a system error, or writes less than it was asked to.
        except (soundfile.LibsndfileError, AssertionError) as error:
            raise OutputError(
                f"{path} cannot be written as {self.name}: {str(error) or 'the encoder wrote less than it was given'}",
                advice,
            ) from error
        if held != frames:
            raise OutputError(f"{path} holds {held} frames as {self.name}, expected {frames}", advice)
        os.fsync(part.fileno())

    def _target(self, part: IO[bytes], tags: Tags, stack: contextlib.ExitStack) -> int | str | bytes | _After:
        """Where libsndfile is to write. Into an MP3 it writes an ID3v1 tag: 30 bytes a name, in no known encoding."""
        if self.container != "MP3" or not tags:
            return _for_libsndfile(part)
        return _After(stack.enter_context(io.FileIO(os.dup(part.fileno()), "wb")), id3_tag(tags))

    def _given(self, chunk: Samples) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """``[channels, n]`` as ``[n, channels]``: the very integers of a WAV file, or floats in ±1."""
        if self.samples.floating:
            return np.clip(chunk, -1, 1).T
        # libsndfile takes the uppermost bits of 32.
        return (self.samples.integers(chunk) << (32 - self.samples.bits)).astype(np.int32)

    def _level(self, sample_rate: int) -> float | None:
        """libsndfile's compression level, 0 to 1, which for lossy formats is the way to name a rate."""
        if self.container == "OGG":
            return 1 - self.quality / 10
        if self.container != "MP3":
            return None
        # MPEG-1, MPEG-2 and MPEG-2.5: what libsndfile takes level 0 and 1 for, in kbit/s
        low, high = (32, 320) if sample_rate >= 32000 else (8, 160) if sample_rate >= 16000 else (8, 64)
        return (high - min(max(self.bitrate, low), high)) / (high - low)


class _After:
    """What follows the first bytes of a file, as a file; it must not raise, for libsndfile calls it."""

    def __init__(self, file: io.FileIO, before: bytes) -> None:
        self._file, self._start = file, len(before)
        file.seek(0)
        file.write(before)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset + (self._start if whence == os.SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError:  # libsndfile then has written less than it was given, as on a full disk
            return 0


def _for_libsndfile(file: IO[bytes]) -> int | str | bytes:
    """An open file from its start, as a descriptor that libsndfile closes: its name may be another's by now.

    Windows' descriptors belong to one library; there it gets the name.
    """
    if os.name == "nt":
        return native(Path(file.name))
    descriptor = os.dup(file.fileno())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def flac(bits: int = 16) -> Compressed:
    """FLAC of 16 or 24 bits."""
    return Compressed("FLAC", WAV_24 if bits == 24 else WAV_16, "FLAC", f"PCM_{bits}", ".flac")


def mp3(bitrate: int = 320) -> Compressed:
    """MP3 of a constant bit rate in kbit/s; below 32 kHz at most 160, below 16 kHz at most 64."""
    return Compressed("MP3", WAV_FLOAT, "MP3", "MPEG_LAYER_III", ".mp3", bitrate=bitrate)


def ogg(quality: float = 6.0) -> Compressed:
    """Ogg Vorbis of a quality from 0 to 10, the scale of its encoders; 6 is about 192 kbit/s."""
    return Compressed("Ogg Vorbis", WAV_FLOAT, "OGG", "VORBIS", ".ogg", quality=quality)
