"""Decode WAV, FLAC, Ogg, Opus, MP3, AIFF and the rest of what libsndfile knows."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, BinaryIO

from mrsep_deploy.audio.downmix import usual_layout
from mrsep_deploy.audio.headers import stated_frames
from mrsep_deploy.audio.info import AudioInfo, DamagedAudio, Samples, native
from mrsep_deploy.audio.ogg_pages import OPUS_CLOCK, Link, find_links, first_damage
from mrsep_deploy.process.muted import muted

BLOCK = 65536
SEARCH_BLOCK = 256  # where a block is damaged, what comes before the damage is read in pieces of this
MAX_TAGS = 64  # of empty ones, a file could be full
MORE_BYTES = 4096  # after an MP3's stated end: more than a frame that a writer forgot to count
_UNKNOWN = 1 << 62  # libsndfile says SF_COUNT_MAX for a FLAC stream whose encoder wrote to a pipe


class Unsupported(Exception):
    """libsndfile does not take this file; the message says why. Another decoder may."""


class SoundfileDecoder:
    """A file that libsndfile opens.

    Raises:
        Unsupported: libsndfile does not know the format, or cannot tell where the song ends.
    """

    def __init__(self, path: Path) -> None:
        import soundfile

        try:
            with muted(), soundfile.SoundFile(native(path)) as file:
                rate, channels, frames = file.samplerate, file.channels, file.frames
                container, codec = file.format, file.subtype
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
            reason = getattr(error, "error_string", "no header to read")
            raise Unsupported(f"libsndfile: {reason.rstrip('.')}") from error
        if container == "MP3":
            _check_length_of_mp3(path)
        self._noisy = container == "MP3"
        self._links = find_links(path) if container == "OGG" else []
        self._clock = OPUS_CLOCK if codec == "OPUS" else rate  # of positions in an Ogg file, in Hz
        # libsndfile shortens what a header says to what is in the file, and tells of the first link only.
        stated = None if frames >= _UNKNOWN else stated_frames(path, frames)
        if len(self._links) > 1:
            stated = round(sum(link.granule for link in self._links) * rate / self._clock)
        layout = usual_layout(channels, vorbis=container == "OGG" and codec != "FLAC")
        self.info = AudioInfo(path, rate, channels, stated, f"{container} {codec}", layout)

    def pieces(self) -> Iterator[Samples]:
        """Yield ``[channels, n]``, n at most ``BLOCK``; every call decodes the file again from the start.

        Raises:
            DamagedAudio: after what can be decoded.
            AudioError: another link of an Ogg file has another rate or other channels.
        """
        done = 0
        for link in self._links if len(self._links) > 1 else (None,):
            for piece in self._pieces_of(link, done):
                done += piece.shape[1]
                yield piece
        if (damage := first_damage(self._links, self._clock)) is not None:
            raise DamagedAudio(self.info.path, damage)

    def _pieces_of(self, link: Link | None, begun: int) -> Iterator[Samples]:
        """A whole file, or one link of it, ``begun`` frames after the start of the song."""
        import soundfile

        blocks = done = 0
        try:
            for piece in self._decoded(link, begun, repeat(BLOCK)):
                blocks += 1
                done += piece.shape[1]
                yield piece
        except soundfile.LibsndfileError as error:
            # what is whole of the block that could not be read
            sizes = chain(repeat(BLOCK, blocks), repeat(SEARCH_BLOCK))
            with contextlib.suppress(soundfile.LibsndfileError):
                for piece in islice(self._decoded(link, begun, sizes), blocks, None):
                    done += piece.shape[1]
                    yield piece
            seconds = (begun + done) / self.info.sample_rate
            reason = error.error_string.rstrip(".").removeprefix("Error : ")
            raise DamagedAudio(self.info.path, f"is damaged after {seconds:.2f} s: {reason}") from error

    def _decoded(self, link: Link | None, begun: int, sizes: Iterable[int]) -> Iterator[Samples]:
        """One pass from start to end: ``[channels, n]`` of these sizes; a smaller one is the last."""
        import soundfile

        with contextlib.ExitStack() as stack:
            source: str | bytes | _Range = native(self.info.path)
            if link is not None:
                source = _Range(stack.enter_context(open(self.info.path, "rb")), link.start, link.end)
            with muted():
                file = stack.enter_context(soundfile.SoundFile(source))
            # ``SoundFile.read`` seeks to the place it has just reached, after every block, unless the file says that
            # it cannot seek. An MP3 decoder restarts at a seek without the bits it had in reserve, so blocks come
            # out wrong by up to full scale; a FLAC of unknown length cannot seek at all.
            file.seekable = lambda: False
            self.info.check_unchanged(file.samplerate, file.channels, begun)
            for size in sizes:
                with muted() if self._noisy else contextlib.nullcontext():
                    piece = file.read(size, dtype="float32", always_2d=True)
                if not len(piece):
                    return
                yield piece.T


class _Range:
    """Some of a file's bytes, as a file that libsndfile reads."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._end = file, start, end
        file.seek(start)

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._end - self._start}[whence]
        return self._file.seek(self._start + max(base + offset, 0)) - self._start

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), max(self._end - self._file.tell(), 0)))
        buffer[: len(data)] = data
        return len(data)


def _check_length_of_mp3(path: Path) -> None:
    """Refuse an MP3 that does not state how long it is, or that goes on after that.

    The first MPEG frame may be a Xing, Info or VBRI header with a frame count in it. Without one libsndfile guesses
    the length from the bit rate of the first frame, and it stops at the length in any case: the end of a
    song that gets busier would be lost, and what was appended to a song.

    Raises:
        Unsupported: it is one of these.
    """
    with open(path, "rb") as file:
        start = 0
        for _ in range(MAX_TAGS):
            file.seek(start)
            tag = file.read(10)
            if len(tag) < 10 or tag[:3] != b"ID3":
                break
            # size in 4 × 7 bits, without these 10 bytes
            start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
        file.seek(start)
        head = file.read(4096)
        if b"VBRI" in head:
            return
        at = max(head.find(b"Xing"), head.find(b"Info"))
        if at < 0 or len(head) < at + 16 or not head[at + 7] & 1:
            raise Unsupported("an MP3 that does not state its length")
        if head[at + 7] & 2:  # and its size in bytes
            end = start + int.from_bytes(head[at + 12 : at + 16], "big")
            file.seek(end)
            more = file.read(MORE_BYTES)
            if len(more) == MORE_BYTES and (more[:3] == b"ID3" or (more[0] == 0xFF and more[1] >= 0xE0)):
                raise Unsupported("an MP3 with more after its stated end")
