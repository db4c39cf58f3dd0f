"""Audio in and out, in blocks: a song never has to fit in memory.

Read in this order: ``info`` (what a file says about itself), ``decode_soundfile`` and ``decode_av``
(bytes to samples), ``resample``, ``read`` (a song as the model wants it), ``encode`` (samples to the
bytes of a WAV file), ``write`` (one stem file, whole or not at all).

    >>> from mrsep_deploy.audio import WAV_16, StemWriter, open_audio
    >>> song = open_audio("song.flac", sample_rate=44100, channels=2)       # doctest: +SKIP
    >>> with StemWriter("vocals.wav", 44100, 2, WAV_16) as stem:            # doctest: +SKIP
    ...     for block in song.blocks():
    ...         stem.write(block)
"""

from __future__ import annotations

from .encode import ENCODINGS, WAV_16, WAV_24, WAV_FLOAT, Encoding
from .info import AudioInfo, Samples
from .read import AudioSource, audio_streams, open_audio
from .resample import resample, resampled_length
from .write import CLIP_MODES, Clip, StemWriter, WrittenStem, bytes_needed

__all__ = [
    "CLIP_MODES",
    "ENCODINGS",
    "WAV_16",
    "WAV_24",
    "WAV_FLOAT",
    "AudioInfo",
    "AudioSource",
    "Clip",
    "Encoding",
    "Samples",
    "StemWriter",
    "WrittenStem",
    "audio_streams",
    "bytes_needed",
    "open_audio",
    "resample",
    "resampled_length",
]
