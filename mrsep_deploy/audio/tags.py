"""What a file says about the music in it: title, artist and the like, read and written as plain text."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from mrsep_deploy.audio.decode_av import PYAV_ERRORS, open_container
from mrsep_deploy.audio.info import native
from mrsep_deploy.process.muted import muted

Tags: TypeAlias = Mapping[str, str]
"""Text by name; the names are those of ``NAMES``."""

NAMES = ("title", "artist", "album", "date", "genre", "tracknumber", "comment", "copyright", "license")
MAX_CHARACTERS = 2000
"""Longer ones are lyrics or pictures, not names."""

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""libsndfile's wrapper takes all text for UTF-8; this is what it makes of other bytes."""
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


_ID3 = {
    "title": b"TIT2",
    "artist": b"TPE1",
    "album": b"TALB",
    "date": b"TDRC",
    "genre": b"TCON",
    "tracknumber": b"TRCK",
    "comment": b"COMM",
    "copyright": b"TCOP",
    "license": b"TXXX",
}
_ID3_BEFORE = {"comment": b"und\0", "license": b"license\0"}
"""What comes before the text: a language and a description, a name."""


def read_tags(path: Path) -> dict[str, str]:
    """The tags of an audio file; none where there are none or they cannot be read.

    A damaged tag is no reason to refuse a song, so this never raises for one.
    """
    import soundfile

    found: dict[str, str] = {}
    with (
        suppress(soundfile.LibsndfileError, TypeError, OSError),
        muted(),
        soundfile.SoundFile(native(path)) as file,
    ):
        found = file.copy_metadata()
        if not any(_UNREADABLE in text for text in found.values()):
            return _cleaned(found)
    with suppress(ImportError):
        import av

        with (
            suppress(av.FFmpegError, *PYAV_ERRORS),
            open_container(path, "latin-1" if found else "utf-8") as container,
        ):
            streams = container.streams.audio[:1]
            told = {**container.metadata, **(streams[0].metadata if streams else {})}
            lower = {name.lower(): text for name, text in told.items()}
            found = {_FFMPEG_NAMES.get(name, name): text for name, text in lower.items()}
    return _cleaned(found)


def _cleaned(found: Mapping[str, Any]) -> dict[str, str]:
    cleaned = {}
    for name in NAMES:
        text = "".join(c for c in _repaired(str(found.get(name, ""))) if c.isprintable()).strip()
        if 0 < len(text) <= MAX_CHARACTERS:
            cleaned[name] = text
    return cleaned


def _repaired(text: str) -> str:
    """Text as it was meant: many programs put UTF-8 or Windows-1252 where Latin-1 is declared."""
    try:
        data = text.encode("latin-1")
    except UnicodeEncodeError:
        return text
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def id3_tag(tags: Tags) -> bytes:
    """Tags as an ID3v2.4 tag, which begins an MP3 file, with its text in UTF-8; empty if there are none."""
    frames = b""
    for name, identifier in _ID3.items():
        if name in tags:
            content = b"\x03" + _ID3_BEFORE.get(name, b"") + tags[name].encode()
            frames += identifier + _seven_bits(len(content)) + bytes(2) + content
    return b"ID3\x04\0\0" + _seven_bits(len(frames)) + frames if frames else b""


def _seven_bits(size: int) -> bytes:
    """A size as ID3v2.4 has it: in four bytes whose highest bits are 0."""
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


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
