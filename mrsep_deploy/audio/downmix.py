"""Mixes a file of more channels than the model takes, and says what is left out.

Two channels are mixed from more as ITU-R BS.775 has it: left and right as they are, what is in the middle on both
sides and what is at the side or behind on its own side, 3 dB lower. The sum is divided by its weights, so that it
stays within full scale. The low-frequency channel is left out, as BS.775 leaves it.
"""

from __future__ import annotations

import numpy as np

from mrsep_deploy.audio.info import AudioInfo, Samples

_ORDERS = {
    3: ("FL FR FC", "FL FC FR"),
    4: ("FL FR BL BR", "FL FR BL BR"),
    5: ("FL FR FC BL BR", "FL FC FR BL BR"),
    6: ("FL FR FC LFE BL BR", "FL FC FR BL BR LFE"),
    7: ("FL FR FC LFE BC SL SR", "FL FC FR SL SR BC LFE"),
    8: ("FL FR FC LFE BL BR SL SR", "FL FC FR SL SR BL BR LFE"),
}
"""Channels in the order of WAV and FLAC, and in that of Vorbis and Opus."""


def usual_layout(channels: int, vorbis: bool = False) -> tuple[str, ...]:
    """Names of channels, in FFmpeg's words, in the order of WAV and FLAC or of Vorbis and Opus; empty if unknown."""
    return tuple(_ORDERS[channels][vorbis].split()) if channels in _ORDERS else ()


class Downmix:
    """``[n, frames]`` to ``[channels, frames]``, channels ≤ n; see ``read`` for the rules.

    Attributes:
        remark: how the result differs from the file; empty if every channel is kept.
    """

    def __init__(self, info: AudioInfo, channels: int) -> None:
        self._channels = channels
        self._weights: Samples | None = None
        self.remark = ""
        if not 1 < channels < info.channels:
            return
        if channels > 2:
            self.remark = f"has {info.channels} channels, of which the model hears the first {channels}"
        elif (weights := _stereo_weights(info.layout)) is not None:
            self._weights = weights
            without = [name for name in info.layout if name.startswith("LFE")]
            left_out = f", without {', '.join(without)}" if without else ""
            names = " ".join(info.layout)
            self.remark = f"has {info.channels} channels ({names}), mixed down to 2 by ITU-R BS.775{left_out}"
        else:
            self._weights = np.full((2, info.channels), 1 / info.channels, np.float32)
            self.remark = f"has {info.channels} channels in no known order, both of the 2 used are their mean"

    def __call__(self, piece: Samples) -> Samples:
        if self._channels == 1 < piece.shape[0]:
            mono: Samples = piece.mean(axis=0, keepdims=True)
            return mono
        if self._weights is None:
            return piece[: self._channels]
        heard = self._weights.any(axis=0)  # NaN in what is left out stays out
        mixed: Samples = self._weights[:, heard] @ piece[heard]
        return mixed


def _stereo_weights(layout: tuple[str, ...]) -> Samples | None:
    """Weights ``[2, n]``, each row's sum 1; None for no layout, and for one with nothing on a side."""
    weights = np.array([_weights_of(name) for name in layout], np.float64).reshape(-1, 2).T
    sums = weights.sum(axis=1, keepdims=True)
    return (weights / sums).astype(np.float32) if sums.all() else None


def _weights_of(name: str) -> tuple[float, float]:
    """On the left and on the right. FFmpeg's names end in the side; C after one of FL and FR is "of centre"."""
    if name.startswith("LFE"):
        return 0.0, 0.0
    weight = 1.0 if name in ("FL", "FR", "DL", "DR") else 0.5**0.5
    side = name.removesuffix("C")[-1:] if name in ("FLC", "FRC") else name[-1:]
    return (0.0 if side == "R" else weight), (0.0 if side == "L" else weight)
