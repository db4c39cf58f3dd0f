"""Decode what libsndfile does not: AAC, m4a, mp4, WMA, WebM. FFmpeg, from the wheel of ``av``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrsep_deploy.audio.downmix import usual_layout
from mrsep_deploy.audio.headers import stated_frames
from mrsep_deploy.audio.info import AudioInfo, DamagedAudio, Samples
from mrsep_deploy.audio.ogg_pages import OPUS_CLOCK, find_links, first_damage
from mrsep_deploy.errors import AudioError

if TYPE_CHECKING:
    import av.container

_FORMATS = (
    "mov,matroska,asf,avi,flv,mpegts,mpeg,rm,mxf,nut,ogg,caf,iff,wav,w64,aiff,au,voc,mp3,aac,loas,ac3,eac3,ac4,dts,"
    "dtshd,mlp,truehd,flac,ape,wv,tta,tak,mpc,mpc8,shn,dsf,oma,amr,amrnb,amrwb,qcp,gsm,xwma,sox,ircam,adx,spdif"
)
"""FFmpeg's names of what may be opened: files with sound in them. Not what names other files (playlists, concat, a
numbered row of pictures), nor devices, descriptions of streams, subtitles, or samples without a header."""
_STATING = {"mov", "matroska", "asf", "ape", "wv", "tta", "tak", "mpc", "mpc8", "caf", "aiff", "w64", "flac"}
"""Formats whose files state how long they are. Of others FFmpeg tells what their bit rate or their end suggests."""
PYAV_ERRORS = (ValueError, LookupError, ArithmeticError, MemoryError)
"""What PyAV raises beside FFmpeg's errors: a stream that turns up in the middle of a file is an IndexError."""


class AvDecoder:
    """One audio stream of a file that FFmpeg opens.

    Silence that an encoder put before and after the song is cut where the file says how much it is
    (m4a, mp4, Opus, MP3 with a LAME header). A raw ``.aac`` stream does not say; it keeps about 1024
    frames of it at the start. An mp4 may state its length in whole milliseconds, and FFmpeg's versions
    differ in what they make of that, so the last millisecond is not worth comparing.

    Args:
        stream: counts the audio streams from 0.
        reason: why libsndfile did not take the file, for messages.

    Raises:
        AudioError: not audio, no such stream, or ``av`` is not installed.
    """

    def __init__(self, path: Path, stream: int, reason: str) -> None:
        self._stream = stream
        with opened(path, reason) as container:
            found, container_name = container.streams.audio, container.format.name
            if not found:
                raise AudioError(f"{path} has no audio stream", "Name a file with sound in it")
            if not 0 <= stream < len(found):
                raise AudioError(
                    f"{path} has no audio stream {stream}, it has {len(found)}",
                    f"Take 0 to {len(found) - 1}",
                )
            codec = found[stream].codec_context
            if codec is None:
                raise AudioError(
                    f"{path} has audio in a codec that this FFmpeg does not decode", "Convert it to WAV first"
                )
            frames = _told_frames(found[stream], container)
            named = tuple(channel.name for channel in codec.layout.channels)
            self.info = AudioInfo(
                path,
                codec.sample_rate,
                codec.channels,
                None if frames is None else stated_frames(path, frames),
                f"{container_name} {codec.name}",
                usual_layout(codec.channels) if "NONE" in named else named,
                estimated=not _STATING.intersection(container_name.split(",")),
            )

    def pieces(self) -> Iterator[Samples]:
        """Yield ``[channels, n]``, n as the codec frames it; every call decodes the file again from the start.

        Raises:
            DamagedAudio: after what can be decoded.
            AudioError: the file changes its rate or its channels.
        """
        import av

        done = 0
        with opened(self.info.path) as container:
            resampler = av.AudioResampler(format="fltp")  # changes the sample format, not the rate
            try:
                for frame, keep in _frames(container, self._stream):
                    self.info.check_unchanged(frame.sample_rate, len(frame.layout.channels), done)
                    for part in resampler.resample(frame):
                        piece: Samples = part.to_ndarray()[:, :keep]
                        done += piece.shape[1]
                        yield piece
            except (av.FFmpegError, *PYAV_ERRORS) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise DamagedAudio(
                    self.info.path, f"is damaged after {done / self.info.sample_rate:.2f} s: FFmpeg: {reason}"
                ) from error
        if self.info.format.startswith("ogg "):
            clock = OPUS_CLOCK if self.info.format.endswith("opus") else self.info.sample_rate
            if (damage := first_damage(find_links(self.info.path), clock)) is not None:
                raise DamagedAudio(self.info.path, damage)


@contextmanager
def opened(path: Path, reason: str = "", encoding: str = "utf-8") -> Iterator[av.container.InputContainer]:
    """A file as FFmpeg opens it, nothing but this file, whatever is in it.

    Args:
        reason: why libsndfile did not take the file, for messages.
        encoding: of the text in it.

    Raises:
        AudioError: it is none that may be opened, or damaged, or ``av`` is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f"{path} cannot be decoded without FFmpeg ({reason})", 'pip install "mrsep-deploy[av]"'
        ) from error
    # "file" alone keeps FFmpeg on this disk, and as a prefix keeps it from reading a protocol into an odd name.
    only = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        container = av.open(
            f"file:{path}", options=only, metadata_encoding=encoding, metadata_errors="replace"
        )
    except (av.FFmpegError, *PYAV_ERRORS) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise AudioError(
            f"{path} is not audio that can be decoded ({reason}; FFmpeg: {what})",
            "Check that the file plays; convert it to WAV",
        ) from error
    with container:
        yield container


def _frames(container: av.container.InputContainer, index: int) -> Iterator[tuple[Any, int]]:
    """Yield every decoded frame and how many of its samples belong to the song.

    An AAC frame has 1024 samples, a song any number; what is stated of the last packet's duration tells
    the rest from padding. Only a clock that ticks in samples says it exactly (mp4 does).
    """
    stream = container.streams.audio[index]
    end: int | None = None
    held: Any = None
    for packet in container.demux(stream):
        if packet.pts is not None and packet.duration:
            end = packet.pts + packet.duration
        for frame in packet.decode():
            if held is not None:
                yield held, held.samples
            held = frame
    if held is None:
        return
    keep = held.samples
    if end is not None and held.pts is not None and held.time_base == Fraction(1, held.sample_rate):
        keep = int(np.clip(end - held.pts, 1, keep))
    yield held, keep


def _told_frames(stream: Any, container: av.container.InputContainer) -> int | None:
    """The shorter one of a stream and its file: an mp4 may play a part of a stream only."""
    seconds = [Fraction(container.duration, 1_000_000)] if container.duration is not None else []
    if stream.duration is not None and stream.time_base is not None:
        seconds.append(stream.duration * stream.time_base)
    return round(min(seconds) * stream.codec_context.sample_rate) or None if seconds else None
