"""Audio in and out, in blocks: a song never has to fit in memory.

Read in this order: ``info`` (what a file says about itself), ``headers`` and ``ogg_pages`` (what should be in it),
``decode_soundfile`` and ``decode_av`` (bytes to samples), ``downmix``, ``resample``, ``blocks`` (samples that wait),
``read`` (a song as the model wants it), ``encode`` (samples to the bytes of a WAV file), ``compress`` (to those of
FLAC, Ogg Vorbis and MP3), ``tags``, ``write`` (one stem file, whole or not at all).

    >>> from mrsep_deploy.audio import WAV_16, AudioSource, StemWriter
    >>> song = AudioSource("song.flac", sample_rate=44100, channels=2)      # doctest: +SKIP
    >>> with StemWriter("vocals.wav", 44100, 2, WAV_16) as stem:            # doctest: +SKIP
    ...     for block in song.blocks():
    ...         stem.write(block)
"""

from __future__ import annotations

from mrsep_deploy.audio.compress import MP3_BITRATES, Compressed, flac, mp3, ogg
from mrsep_deploy.audio.encode import (
    ENCODINGS,
    RAW_16,
    RAW_24,
    RAW_ENCODINGS,
    RAW_FLOAT,
    WAV_16,
    WAV_24,
    WAV_FLOAT,
    Encoding,
)
from mrsep_deploy.audio.info import AudioInfo, DamagedAudio, Samples, check_file
from mrsep_deploy.audio.read import AudioSource, audio_streams
from mrsep_deploy.audio.resample import Resampler, resample, resampled_length
from mrsep_deploy.audio.tags import Tags, read_tags
from mrsep_deploy.audio.write import (
    CLIP_MODES,
    AnyEncoding,
    Cancelled,
    Clip,
    StemWriter,
    WrittenStem,
    bytes_needed,
)

__all__ = [
    "CLIP_MODES",
    "ENCODINGS",
    "MP3_BITRATES",
    "RAW_16",
    "RAW_24",
    "RAW_ENCODINGS",
    "RAW_FLOAT",
    "WAV_16",
    "WAV_24",
    "WAV_FLOAT",
    "AnyEncoding",
    "AudioInfo",
    "AudioSource",
    "Cancelled",
    "Clip",
    "Compressed",
    "DamagedAudio",
    "Encoding",
    "Resampler",
    "Samples",
    "StemWriter",
    "Tags",
    "WrittenStem",
    "audio_streams",
    "bytes_needed",
    "check_file",
    "flac",
    "mp3",
    "ogg",
    "read_tags",
    "resample",
    "resampled_length",
]
