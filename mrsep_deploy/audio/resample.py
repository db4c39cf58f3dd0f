"""Change the sample rate of a signal, piece by piece.

The result has ``frames * rate_out / rate_in`` samples, halves rounded up, never none, and is aligned: sample n is
the sound at ``n / rate_out`` seconds. The filter is libsoxr's VHQ, linear phase.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mrsep_deploy.audio.info import Samples


def resampled_length(frames: int, rate_in: int, rate_out: int) -> int:
    """Frames at ``rate_out`` of a song with ``frames`` at ``rate_in``; where there is one, at least one.

    >>> resampled_length(48000, 48000, 44100)
    44100
    """
    return max((2 * frames * rate_out + rate_in) // (2 * rate_in), min(frames, 1))


class Resampler:
    """Resamples one signal piece by piece; equal rates pass through."""

    def __init__(self, rate_in: int, rate_out: int, channels: int) -> None:
        self._rates, self._channels = (rate_in, rate_out), channels
        self._given = self._made = 0
        self._stream: Any = None
        if rate_in != rate_out:
            import soxr

            self._stream = soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32", quality="VHQ")

    def push(self, piece: Samples) -> Samples:
        """Take ``[channels, n]``; gives what is ready, ``[channels, m]``."""
        if self._stream is None:
            return piece
        out = self._stream.resample_chunk(np.ascontiguousarray(piece.T, dtype=np.float32))
        self._given += piece.shape[1]
        self._made += len(out)
        ready: Samples = out.T
        return ready

    def finish(self, frames: int | None = None) -> Samples:
        """The rest, so that there are ``frames`` in all; by default ``resampled_length`` of what was given.

        Raises:
            ValueError: more have been given out already.
        """
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        tail = self._stream.resample_chunk(np.zeros((0, self._channels), np.float32), last=True)
        missing = (resampled_length(self._given, *self._rates) if frames is None else frames) - self._made
        if missing < 0:
            raise ValueError(f"{self._made} samples are out, {frames} were wanted")
        # soxr rounds the same way, on a ratio in floating point: over hours it could be one sample off.
        padding = np.zeros((self._channels, max(missing - len(tail), 0)), np.float32)
        return np.concatenate([tail.T[:, :missing], padding], axis=1)
