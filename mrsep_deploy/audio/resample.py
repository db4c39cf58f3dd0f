"""Change the sample rate, in one piece or as a stream of pieces.

The result has ``frames * rate_out / rate_in`` samples, halves rounded up, and is aligned: sample n is
the sound at ``n / rate_out`` seconds. The filter is libsoxr's VHQ, linear phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .info import Samples

QUALITY = "VHQ"


def resampled_length(frames: int, rate_in: int, rate_out: int) -> int:
    """Frames at ``rate_out`` of a song with ``frames`` at ``rate_in``.

    >>> resampled_length(48000, 48000, 44100)
    44100
    """
    return (2 * frames * rate_out + rate_in) // (2 * rate_in)


def resample(samples: Samples, rate_in: int, rate_out: int) -> Samples:
    """Resample ``[channels, frames]`` to ``[channels, resampled_length(frames)]``."""
    pieces = list(resample_stream([samples], rate_in, rate_out, samples.shape[0]))
    return np.concatenate(pieces, axis=1)


def resample_stream(
    pieces: Iterable[Samples], rate_in: int, rate_out: int, channels: int
) -> Iterator[Samples]:
    """Resample ``[channels, n]`` pieces of one signal; yields ``[channels, m]`` pieces, m as it comes."""
    if rate_in == rate_out:
        yield from pieces
        return
    import soxr

    stream = soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32", quality=QUALITY)
    given = made = 0
    for piece in pieces:
        out = stream.resample_chunk(np.ascontiguousarray(piece.T, dtype=np.float32))
        given += piece.shape[1]
        made += len(out)
        yield out.T
    tail = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)
    missing = resampled_length(given, rate_in, rate_out) - made
    # soxr rounds the same way, on a ratio in floating point: over hours it could be one sample off.
    padding = np.zeros((channels, max(missing - len(tail), 0)), np.float32)
    yield np.concatenate([tail.T[:, :missing], padding], axis=1)
