"""Samples to the bytes of a WAV file, without a file: header and data, both the same on every run.

libsndfile writes WAV too, but puts the time of day into the header of a float file (its PEAK chunk) and
reports a full disk as "System error". Two runs that make the same stem should make the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.info import Samples

_MAX_RIFF = 0xFFFF_FFFF
_DS64 = struct.Struct("<QQQI")  # RIFF size, data size, frames, entries of a table that stays empty


@dataclass(frozen=True)
class Encoding:
    """A kind of WAV file.

    Integers follow Demucs: ``x`` is clamped to ±1, multiplied by ``2**(bits - 1) - 1`` in float32 and
    cut towards zero, without dither. Float samples are kept as they are, beyond ±1 too. ``raw`` samples have
    no header: a program that reads them has to be told what they are.
    """

    name: str
    bits: int
    floating: bool = False
    suffix: str = ".wav"
    raw: bool = False

    def frame_bytes(self, channels: int) -> int:
        """Bytes of one sample of every channel."""
        return channels * self.bits // 8

    def data(self, samples: Samples) -> bytes:
        """``[channels, frames]`` as interleaved little-endian samples; 4, 3 or 2 bytes each."""
        if self.floating:
            return np.ascontiguousarray(samples.T).astype("<f4", copy=False).tobytes()
        four_bytes = self.integers(samples).astype("<i4").view(np.uint8).reshape(-1, 4)
        return four_bytes[:, : self.bits // 8].tobytes()

    def integers(self, samples: Samples) -> NDArray[np.int32]:
        """``[channels, frames]`` floats as ``[frames, channels]`` integers of ``bits`` bits."""
        frames = np.ascontiguousarray(samples.T)
        return (np.clip(frames, -1, 1) * np.float32(2 ** (self.bits - 1) - 1)).astype(np.int32)

    def header(self, sample_rate: int, channels: int, frames: int, trailing: int = 0) -> bytes:
        """Everything before the data; 80 bytes (integers) or 92 (float), whatever ``frames`` is; raw: nothing.

        ``trailing`` is the size of whole chunks that follow the data and its padding.

        The sizes in a RIFF header end at 4 GiB. A longer file becomes RF64 (EBU Tech 3306), whose 64-bit
        sizes take the place that a shorter file fills with a JUNK chunk, which readers skip.
        """
        if self.raw:
            return b""
        frame = self.frame_bytes(channels)
        size = frames * frame
        tag = 3 if self.floating else 1  # IEEE float, PCM
        form = struct.pack("<HHIIHH", tag, channels, sample_rate, sample_rate * frame, frame, self.bits)
        fact = chunk(b"fact", struct.pack("<I", min(frames, _MAX_RIFF))) if self.floating else b""
        rest = chunk(b"fmt ", form) + fact + b"data"
        riff_size = 4 + 8 + _DS64.size + len(rest) + 4 + size + size % 2 + trailing
        if riff_size <= _MAX_RIFF:
            start = struct.pack("<4sI4s", b"RIFF", riff_size, b"WAVE") + chunk(b"JUNK", bytes(_DS64.size))
            return start + rest + struct.pack("<I", size)
        start = struct.pack("<4sI4s", b"RF64", _MAX_RIFF, b"WAVE")
        sizes = chunk(b"ds64", _DS64.pack(riff_size, size, frames, 0))
        return start + sizes + rest + struct.pack("<I", _MAX_RIFF)


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a RIFF file, without the byte that may fill it up."""
    return name + struct.pack("<I", len(content)) + content


WAV_16 = Encoding("wav16", 16)
WAV_24 = Encoding("wav24", 24)
WAV_FLOAT = Encoding("wav32f", 32, floating=True)
RAW_16 = Encoding("s16le", 16, suffix=".raw", raw=True)
RAW_24 = Encoding("s24le", 24, suffix=".raw", raw=True)
RAW_FLOAT = Encoding("f32le", 32, floating=True, suffix=".raw", raw=True)
