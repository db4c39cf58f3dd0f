"""How many bytes of samples a file's header states: libsndfile goes by the file's length, and says nothing."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_CHUNKS = 4096  # before the samples: a file could be full of empty ones


@dataclass(frozen=True)
class _Chunks:
    """How a format is made of chunks.

    Attributes:
        start: bytes before the first chunk.
        header: of a chunk: its name and its size.
        samples: the name of the chunk that holds them.
        counted: bytes of the header that the size counts.
        aligned: a chunk begins at a multiple of this after the last one.
        before: bytes in the chunk before its samples.
    """

    start: int
    header: struct.Struct
    samples: bytes
    counted: int = 0
    aligned: int = 2
    before: int = 0


_WAV = _Chunks(12, struct.Struct("<4sI"), b"data")
_FORMATS = {
    b"RIFF": _WAV,
    b"RF64": _WAV,
    b"RIFX": _Chunks(12, struct.Struct(">4sI"), b"data"),
    b"FORM": _Chunks(12, struct.Struct(">4sI"), b"SSND", before=8),
    b"riff": _Chunks(40, struct.Struct("<4s12xQ"), b"data", counted=24, aligned=8),
    b"caff": _Chunks(8, struct.Struct(">4sQ"), b"data", aligned=1, before=4),
}


def stated_frames(path: Path, present: int) -> int:
    """Frames that a file states, of which a decoder says that so many are present.

    Knows WAV, RF64, W64, AIFF, AU and CAF. Takes the decoder's word for other formats, and where the header leaves
    the length open.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        chunks = _FORMATS.get(head[:4])
        start: int
        stated: int | None
        if head[:4] in (b".snd", b"dns.") and len(head) == 12:
            start, stated = struct.unpack(">II" if head[:1] == b"." else "<II", head[4:])
        elif chunks is not None and (head[:4] != b"FORM" or head[8:] in (b"AIFF", b"AIFC")):
            stated = _size_of_samples(file, chunks)
            start = file.tell() + chunks.before
        else:
            return present
        there = file.seek(0, os.SEEK_END) - start
    if stated is None or _is_left_open(stated) or not stated > there > 0:
        return present
    return present * stated // there


def _size_of_samples(file: BinaryIO, chunks: _Chunks) -> int | None:
    """What the header says; the file is then read up to the beginning of that chunk's content."""
    at, long_size = chunks.start, 0
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        header = file.read(chunks.header.size)
        if len(header) < chunks.header.size:
            return None
        name, size = chunks.header.unpack(header)
        if name == chunks.samples:
            stated = long_size if size == 0xFFFF_FFFF else size  # RF64: "see the chunk ds64"
            return max(stated - chunks.counted - chunks.before, 0)
        if name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        at += max(size - chunks.counted, 0) + chunks.header.size
        at += -at % chunks.aligned
        if at >= 1 << 63:
            return None
    return None


def _is_left_open(stated: int) -> bool:
    """Whether a size is one that programs write into a pipe, before they know it.

    ffmpeg writes 2**32 - 1, sox a little below 2**31, arecord 2**31, CAF has -1; some leave 0.
    """
    return (
        stated == 0
        or 0x7FFF_0000 <= stated <= 0x8000_0000
        or 0xFFFF_0000 <= stated < 1 << 32
        or stated >= (1 << 64) - 64
    )
