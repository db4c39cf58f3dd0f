"""Decode WAV, FLAC, Ogg, Opus, MP3, AIFF and the rest of what libsndfile knows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AudioError
from .info import AudioInfo, Samples, native

if TYPE_CHECKING:
    import soundfile

BLOCK = 65536
MAX_TAGS = 64  # of empty ones, a file could be full
_UNKNOWN = 1 << 62  # libsndfile says SF_COUNT_MAX for a FLAC stream whose encoder wrote to a pipe

log = logging.getLogger(__name__)


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
            with soundfile.SoundFile(native(path)) as file:
                name = f"{file.format} {file.subtype}"
                frames = None if file.frames >= _UNKNOWN else file.frames
                self.info = AudioInfo(path, file.samplerate, file.channels, frames, name)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
            reason = getattr(error, "error_string", "no header to read")
            raise Unsupported(f"libsndfile: {reason.rstrip('.')}") from error
        if name.startswith("MP3") and not _mp3_states_its_length(path):
            raise Unsupported("an MP3 that does not state its length")
        self._warned = False

    def pieces(self) -> Iterator[Samples]:
        """Yield ``[channels, n]``, n at most ``BLOCK``; a full block but for the last."""
        import soundfile

        done = 0
        try:
            with _open_forward(self.info.path) as file:
                while len(piece := file.read(BLOCK, dtype="float32", always_2d=True)):
                    done += len(piece)
                    yield piece.T
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{self.info.path} is damaged after {done / self.info.sample_rate:.2f} s: "
                f"{error.error_string.rstrip('.')}",
                "Get the file again, or cut it before that point",
            ) from error
        self._note_missing(done)

    def _note_missing(self, done: int) -> None:
        stated = self.info.frames
        if stated is not None and done < stated and not self._warned:
            self._warned = True
            rate = self.info.sample_rate
            log.warning(
                "%s ends after %.2f s, its header states %.2f s", self.info.path, done / rate, stated / rate
            )


def _open_forward(path: Path) -> soundfile.SoundFile:
    """Open for one pass from start to end.

    ``SoundFile.read`` seeks to the place it has just reached, after every block. An MP3 decoder restarts
    at a seek without the bits it had in reserve, so blocks of an MP3 come out wrong by up to full
    scale; a FLAC of unknown length cannot seek at all. A file that says it cannot seek is left alone.
    """
    import soundfile

    class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return ForwardSoundFile(native(path))


def _mp3_states_its_length(path: Path) -> bool:
    """Whether the first MPEG frame is a Xing, Info or VBRI header with a frame count in it.

    Without one libsndfile guesses the length from the bit rate of the first frame and stops there: the
    end of a song that gets busier would be lost.
    """
    with open(path, "rb") as file:
        start = 0
        for _ in range(MAX_TAGS):
            tag = file.read(10)
            if len(tag) < 10 or tag[:3] != b"ID3":
                break
            # size in 4 × 7 bits, without these 10 bytes
            start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
            file.seek(start)
        file.seek(start)
        head = file.read(4096)
    if b"VBRI" in head:
        return True
    at = max(head.find(b"Xing"), head.find(b"Info"))
    return at >= 0 and len(head) > at + 7 and bool(head[at + 7] & 1)
