"""What the convolutional layers of every Demucs are made by."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

HEADS = 4
"""Heads of the local attention in a DConv (the published value)."""

MAX_WIDTH = 32768
"""Channels of the widest layer that is taken for meant (the widest published has 1024)."""


@dataclass(frozen=True)
class LayerConfig:
    """Structure that all models share which are made of encoder and decoder layers. ``segment`` is seconds.

    Attributes:
        family: the variant.
        nfft_list: windows of the spectrograms in samples.
        waveform: whether there is a waveform branch beside the spectrograms.
    """

    family: str
    sources: tuple[str, ...]
    audio_channels: int = 2
    channels: int = 24
    channels_time: int | None = None
    growth: float = 2
    nfft_list: tuple[int, ...] = (2048, 4096, 8192)
    hop_divisor: int = 4
    depth: int = 4
    rewrite: bool = True
    freq_emb: float = 0.3
    emb_scale: float = 10
    kernel_size: int = 8
    stride: int = 4
    time_stride: int = 2
    context: int = 1
    context_enc: int = 0
    norm_starts: int = 4
    norm_groups: int = 4
    dconv_mode: int = 1
    dconv_depth: int = 2
    dconv_comp: float = 8
    samplerate: int = 44100
    segment: Fraction | float | int = 10
    waveform: bool = True

    @property
    def segment_samples(self) -> int:
        """Length of the input in samples, as the published ``valid_length`` rounds it."""
        return int(self.segment * self.samplerate)

    @property
    def hops(self) -> tuple[int, ...]:
        """Hop of each resolution in samples."""
        return tuple(n // self.hop_divisor for n in self.nfft_list)

    @property
    def merges(self) -> bool:
        """Whether a spectrogram that has shrunk to one bin is joined by the waveform branch."""
        return False

    @property
    def numbers(self) -> int:
        """Channels that a spectrogram has for each audio channel: real and imaginary part."""
        return 2

    @property
    def recurrent_from(self) -> int:
        """The first layer whose DConv has an LSTM."""
        return self.depth

    @property
    def attentive_from(self) -> int:
        """The first layer whose DConv has a local attention."""
        return self.depth

    @property
    def banded_layers(self) -> int:
        """How many of the outermost spectrogram layers have weights of their own for every band."""
        return 0


def layer_channels(first: int, growth: float, depth: int) -> list[int]:
    """Output channels of the encoder layers, outermost first."""
    channels = [first]
    for _ in range(depth - 1):
        channels.append(int(growth * channels[-1]))
    return channels
