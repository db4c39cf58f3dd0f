"""What a file says about the music in it: title, artist and the like, read and written as plain text."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from ..muted import muted
from .decode_av import PYAV_ERRORS, open_container
from .info import native

Tags: TypeAlias = Mapping[str, str]
"""Text by name; the names are those of ``NAMES``."""

NAMES = ("title", "artist", "album", "date", "genre", "tracknumber", "comment", "copyright", "license")
MAX_CHARACTERS = 2000
"""Longer ones are lyrics or pictures, not names."""

_FFMPEG_NAMES = {"track": "tracknumber", "year": "date"}
_INFO = {
    "title": b"INAM",
    "artist": b"IART",
    "album": b"IPRD",
    "date": b"ICRD",
    "genre": b"IGNR",
    "tracknumber": b"ITRK",
    "comment": b"ICMT",
    "copyright": b"ICOP",
}


def read_tags(path: Path) -> dict[str, str]:
    """The tags of an audio file; none where there are none or they cannot be read.

    A damaged tag is no reason to refuse a song, so this never raises for one.
    """
    import soundfile

    with (
        suppress(soundfile.LibsndfileError, TypeError, OSError),
        muted(),
        soundfile.SoundFile(native(path)) as file,
    ):
        return _cleaned(file.copy_metadata())
    with suppress(ImportError):
        import av

        with suppress(av.FFmpegError, *PYAV_ERRORS), open_container(path) as container:
            streams = container.streams.audio[:1]
            found = {**container.metadata, **(streams[0].metadata if streams else {})}
            lower = {name.lower(): text for name, text in found.items()}
            return _cleaned({_FFMPEG_NAMES.get(name, name): text for name, text in lower.items()})
    return {}


def _cleaned(found: Mapping[str, Any]) -> dict[str, str]:
    cleaned = {}
    for name in NAMES:
        text = "".join(c for c in str(found.get(name, "")) if c.isprintable()).strip()
        if 0 < len(text) <= MAX_CHARACTERS:
            cleaned[name] = text
    return cleaned


def info_chunk(tags: Tags) -> bytes:
    """Tags as the LIST chunk that ends a WAV file (Multimedia Programming Interface 1.0, 1991); UTF-8.

    Empty if there are none that such a chunk has a name for.
    """
    parts = []
    for name, identifier in _INFO.items():
        if name in tags:
            text = tags[name].encode() + b"\0"
            parts.append(identifier + struct.pack("<I", len(text)) + text + bytes(len(text) % 2))
    content = b"INFO" + b"".join(parts)
    return b"LIST" + struct.pack("<I", len(content)) + content if parts else b""
