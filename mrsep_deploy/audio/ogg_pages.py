"""The pages of an Ogg file (RFC 3533): where its songs begin and end, and what is missing.

libsndfile reads the first of several songs that follow one another, and skips damaged pages, without a word.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_LINKS = 1000
OPUS_CLOCK = 48_000
"""Hz, whatever the rate of the samples."""
# magic, version, flags, granule, serial, number, checksum, lacing values
_PAGE = struct.Struct("<4sBBqIII B")
_FIRST, _LAST = 2, 4  # flags
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_STEP = 1 << 16


@dataclass
class Link:
    """One of the songs that follow one another.

    Attributes:
        start, end: its bytes in the file.
        granule: the position its last sound page states, in samples of the codec's clock.
        damage: what is wrong with its pages, and the granule before that; None if all is there.
    """

    start: int
    end: int
    granule: int = 0
    damage: tuple[str, int] | None = None


def find_links(path: Path) -> list[Link]:
    """Every song in an Ogg file, in order; none if it is no Ogg file.

    A link after one that is damaged is found where its first page is whole.
    """
    links: list[Link] = []
    numbers: dict[int, int] = {}
    open_streams: set[int] = set()
    begun = False  # the link has more than first pages
    with open(path, "rb") as file:
        end = 0  # of the last page
        for page in _pages(file):
            if links and page.start > end:
                _note(links[-1], "a page is damaged", open_streams)
            if page.flags & _FIRST and (begun or not links):
                if links:
                    _note(links[-1], "its last page is missing", open_streams)
                if len(links) == MAX_LINKS:
                    _note(links[-1], f"more than {MAX_LINKS} songs follow one another", {0})
                    return links
                links.append(Link(page.start, page.end))
                numbers, open_streams, begun = {}, set(), False
            end = page.end
            if not links:  # pages before any first one
                continue
            link = links[-1]
            if numbers.get(page.serial, page.number) != page.number:
                _note(link, "pages are missing", {0})
            numbers[page.serial] = page.number + 1
            begun |= not page.flags & _FIRST
            open_streams.add(page.serial)
            if page.flags & _LAST:
                open_streams.discard(page.serial)
            link.granule = max(link.granule, page.granule)
            link.end = end
        if links and end < os.fstat(file.fileno()).st_size:
            _note(links[-1], "the file is cut off", open_streams)
        if links:
            _note(links[-1], "its last page is missing", open_streams)
    return links


def first_damage(links: Sequence[Link], clock: int) -> str | None:
    """What is wrong with a file first, after how many seconds by its granules' clock in Hz; None if all is there."""
    before = 0
    for link in links:
        if link.damage is not None:
            what, granule = link.damage
            return f"is damaged after {(before + granule) / clock:.2f} s: {what}"
        before += link.granule
    return None


def _note(link: Link, what: str, wanting: set[int]) -> None:
    """The first damage of a link; what follows a whole stream, as tags do, is none."""
    if wanting and link.damage is None:
        link.damage = what, link.granule


@dataclass(frozen=True)
class _Page:
    start: int
    end: int
    flags: int
    granule: int
    serial: int
    number: int


def _pages(file: BinaryIO) -> Iterator[_Page]:
    """Every page that is whole."""
    at = 0
    while True:
        file.seek(at)
        header = file.read(_PAGE.size)
        if len(header) == _PAGE.size and header[:5] == b"OggS\0":
            _, _, flags, granule, serial, number, checksum, count = _PAGE.unpack(header)
            lacing = file.read(count)
            body = file.read(sum(lacing))
            data = header[:22] + bytes(4) + header[26:] + lacing + body
            if len(data) == _PAGE.size + count + sum(lacing) and _checksum(data) == checksum:
                yield _Page(at, at + len(data), flags, granule, serial, number)
                at += len(data)
                continue
        # where the next page may begin
        at += 1
        file.seek(at)
        while (found := (data := file.read(_STEP)).find(b"OggS")) < 0:
            if len(data) < 4:
                return
            at += len(data) - 3
            file.seek(at)
        at += found


def _checksum(data: bytes) -> int:
    """Ogg's CRC: zlib's polynomial, with the bits of a byte the other way round and no inversion."""
    reflected = zlib.crc32(data.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reflected:032b}"[::-1], 2)
