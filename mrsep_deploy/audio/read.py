"""A song as the model wants it: its sample rate, its channels, float32, block by block, twice the same.

How channels are matched:

    file            model           what the model gets
    n               n               the file
    any             1               the mean of the channels
    1               n               that channel, n times
    more than 2     2               a mix (see ``downmix``), and a remark says so
    more than n     n > 2           the first n channels, and a remark says so
    fewer than n    n > 1           AudioError: there is no good answer

A song of which more than ``SLACK`` is missing is an error, unless what is there is asked for; then a remark says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrsep_deploy.audio.blocks import first_nonfinite, reblock
from mrsep_deploy.audio.decode_av import AvDecoder, opened
from mrsep_deploy.audio.decode_soundfile import SoundfileDecoder, Unsupported
from mrsep_deploy.audio.downmix import Downmix
from mrsep_deploy.audio.info import AudioInfo, DamagedAudio, Samples, check_file, check_info, no_samples
from mrsep_deploy.audio.resample import Resampler
from mrsep_deploy.errors import AudioError

BLOCK_FRAMES = 65536
SLACK = 0.1
"""Seconds that a song may be shorter than its header says: formats count in frames of up to 0.1 s, or in ms."""


class AudioSource:
    """A song that can be read any number of times from the start; every pass gives the same samples.

    Args:
        path: an audio file, or a video with sound.
        sample_rate: of the samples wanted, in Hz.
        channels: of the samples wanted; see the table above.
        stream: which audio stream of a file with several, counted from 0; None is the first. In a
            ``.stem.mp4`` the first is the mix.
        allow_damaged: take what is there of a song that is cut or damaged.

    Attributes:
        info: the file as it is, before conversion.
        decoded: frames at the file's own rate that the last whole pass of ``blocks`` has read; None before.
        remarks: how what is read differs from what is in the file, such as ``has 6 channels (...), mixed down
            to 2``; whole after a pass of ``blocks``. The file is the subject of each.

    Raises:
        AudioError: not a readable audio file, or too few channels.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        channels: int,
        stream: int | None = None,
        allow_damaged: bool = False,
    ) -> None:
        if sample_rate < 1 or channels < 1:
            raise ValueError(f"sample_rate {sample_rate} and channels {channels} have to be 1 or more")
        self.sample_rate = sample_rate
        self.channels = channels
        self.decoded: int | None = None
        self.allow_damaged = allow_damaged
        self._decoder = _open_decoder(Path(path), stream or 0)
        self.info: AudioInfo = self._decoder.info
        check_info(self.info)
        if 1 < self.info.channels < channels:
            raise AudioError(
                f"{self.info.path} has {self.info.channels} channels, expected 1 or at least {channels}",
                "Mix it to mono, or add the missing channels",
            )
        self._reduce = Downmix(self.info, min(self.info.channels, channels))
        self.remarks: tuple[str, ...] = (self._reduce.remark,) if self._reduce.remark else ()

    def blocks(self, frames: int = BLOCK_FRAMES) -> Iterator[Samples]:
        """Yield the song as ``[channels, frames]`` blocks in order, without overlap; the last is shorter.

        Raises:
            DamagedAudio: part of the song is missing or cannot be decoded; all that can has been yielded.
            AudioError: a sample that is not a finite number, no samples at all.
        """
        if frames < 1:
            raise ValueError(f"a block of {frames} frames, expected 1 or more")
        # Reduce, resample, then duplicate: each channel is resampled once. Resampling is linear, so
        # the order changes nothing else.
        kept = min(self.info.channels, self.channels)
        resampler = Resampler(self.info.sample_rate, self.sample_rate, kept)
        empty = True
        for block in reblock(self._resampled(resampler), frames):
            empty = False
            yield block if kept == self.channels else np.repeat(block, self.channels, axis=0)
        if empty:
            raise no_samples(self.info.path)

    def _resampled(self, resampler: Resampler) -> Iterator[Samples]:
        """Reduces and resamples what is decoded; checks that it is finite, and as long as the header says."""
        path, stated, rate = self.info.path, self.info.frames, self.info.sample_rate
        done = 0
        try:
            for piece in map(self._reduce, self._decoder.pieces()):
                if (place := first_nonfinite(piece)) is not None:  # it would spread over every stem
                    at = done + place
                    raise AudioError(
                        f"{path} holds NaN or infinity at {at / rate:.3f} s (frame {at})",
                        "Export it again, as 16-bit or 24-bit WAV",
                    )
                done += piece.shape[1]
                yield resampler.push(piece)
            if stated is not None and not self.info.estimated and done < stated - SLACK * rate:
                raise DamagedAudio(
                    path, f"ends after {done / rate:.2f} s, its header states {stated / rate:.2f} s"
                )
        except DamagedAudio as error:
            if not self.allow_damaged:
                raise
            if error.what not in self.remarks:
                self.remarks += (error.what,)
        self.decoded = done
        yield resampler.finish()

    def read(self) -> Samples:
        """The whole song, ``[channels, frames]``. Memory grows with it: 2.5 GB per hour of stereo at peak."""
        return np.concatenate(list(self.blocks()), axis=1)


def audio_streams(path: str | os.PathLike[str]) -> int:
    """Number of audio streams in a file; 0 for a video without sound.

    Raises:
        AudioError: the file is neither audio nor video.
    """
    path = Path(path)
    check_file(path)
    try:
        SoundfileDecoder(path)
    except Unsupported as error:
        with opened(path, str(error)) as container:
            return len(container.streams.audio)
    return 1  # libsndfile knows no container with more


def _open_decoder(path: Path, stream: int) -> SoundfileDecoder | AvDecoder:
    check_file(path)
    try:
        decoder = SoundfileDecoder(path)
    except Unsupported as error:
        return AvDecoder(path, stream, str(error))
    if stream != 0:
        raise AudioError(f"{path} has no audio stream {stream}, it has 1", "Take stream 0")
    return decoder
