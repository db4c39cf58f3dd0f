"""What a file says about the music in it: title, artist and the like, read and written as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from mrsep_deploy.audio.decode_av import PYAV_ERRORS, opened
from mrsep_deploy.audio.encode import chunk
from mrsep_deploy.audio.info import native
from mrsep_deploy.errors import AudioError
from mrsep_deploy.process.muted import muted

Tags: TypeAlias = Mapping[str, str]
"""Text by name; the names are those of ``NAMES``."""

SOFTWARE = "software"
"""Name of the tag that says what made a file: written into stems, never carried over from a song."""

NAMES = {
    "title": (b"INAM", b"TIT2", b""),
    "artist": (b"IART", b"TPE1", b""),
    "album": (b"IPRD", b"TALB", b""),
    "date": (b"ICRD", b"TDRC", b""),
    "genre": (b"IGNR", b"TCON", b""),
    "tracknumber": (b"ITRK", b"TRCK", b""),
    "comment": (b"ICMT", b"COMM", b"und\0"),
    "copyright": (b"ICOP", b"TCOP", b""),
    "license": (None, b"TXXX", b"license\0"),
    SOFTWARE: (b"ISFT", b"TSSE", b""),
}
"""What a name is called in a WAV file and in an MP3 file, and what comes before its text in the latter: a language and
a description, a name."""
MAX_CHARACTERS = 2000
"""Longer ones are lyrics or pictures, not names."""

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""libsndfile's wrapper takes all text for UTF-8; this is what it makes of other bytes."""
_FFMPEG_NAMES = {"track": "tracknumber", "year": "date"}


def read_tags(path: Path) -> dict[str, str]:
    """The tags of an audio file; none where there are none or they cannot be read.

    A damaged tag is no reason to refuse a song, so this never raises for one.
    """
    from soundfile import LibsndfileError, SoundFile

    found: dict[str, str] = {}
    with suppress(LibsndfileError, TypeError, OSError), muted(), SoundFile(native(path)) as file:
        found = file.copy_metadata()
        if not any(_UNREADABLE in text for text in found.values()):
            return _cleaned(found)
    encoding = "latin-1" if found else "utf-8"
    with suppress(AudioError, *PYAV_ERRORS), opened(path, encoding=encoding) as container:
        told = dict(container.metadata)
        for stream in container.streams.audio[:1]:
            told |= stream.metadata
        lower = {name.lower(): text for name, text in told.items()}
        found = {_FFMPEG_NAMES.get(name, name): text for name, text in lower.items()}
    return _cleaned(found)


def _cleaned(found: Mapping[str, Any]) -> dict[str, str]:
    cleaned = {}
    for name in (name for name in NAMES if name != SOFTWARE):  # in order: compressed files hold it
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
    for name, (_, identifier, before) in NAMES.items():
        if name in tags:
            content = b"\x03" + before + tags[name].encode()
            frames += identifier + _seven_bits(len(content)) + bytes(2) + content
    return b"ID3\x04\0\0" + _seven_bits(len(frames)) + frames if frames else b""


def _seven_bits(size: int) -> bytes:
    """A size as ID3v2.4 has it: in four bytes whose highest bits are 0."""
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


def info_chunk(tags: Tags) -> bytes:
    """Tags it has a name for as the LIST chunk that ends a WAV file (Multimedia Programming Interface 1.0, 1991)."""
    chunks = b""
    for name, (identifier, _, _) in NAMES.items():
        if identifier is not None and name in tags:
            text = tags[name].encode() + b"\0"
            chunks += chunk(identifier, text) + bytes(len(text) % 2)
    return chunk(b"LIST", b"INFO" + chunks) if chunks else b""
