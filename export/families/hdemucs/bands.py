"""Encoder and decoder layers with weights of their own for every band of bins (``multi_freqs``).

With the same weights in every band, both are the layers without bands: bands of the encoder begin where the kernels
of the one before end, and what the transposed convolutions of two bands give of the same bins is added.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families.demucs.layer_config import LayerConfig
from mrsep_deploy.export.families.demucs.layers import DecoderLayer, EncoderLayer, LayerShape


@dataclass(frozen=True)
class Band:
    """Bins that one band reads, and zeros that stand below and above them."""

    start: int
    stop: int
    below: int = 0
    above: int = 0


def encoder_bands(bins: int, ratios: Sequence[float], shape: LayerShape) -> list[Band]:
    """The bands of an encoder layer.

    Args:
        bins: that the layer reads.
        ratios: where bands end, as shares of the bins, rising; the last one ends with them.
        shape: of the layer.

    Raises:
        CheckpointError: a band would hold no kernel.
    """
    bands: list[Band] = []
    start = 0
    for ratio in (*ratios, 1.0):
        below = shape.pad if start == 0 else 0
        if ratio == 1:
            band = Band(start, bins, below, shape.pad)
        else:
            height = round(bins * ratio) - start + below
            # Demucs rounds this number of frames; where it is a half, one more or less is another even number.
            steps = round((height - shape.kernel) / shape.stride + 1) - 1
            band = Band(start, start + steps * shape.stride + shape.kernel - below, below)
        held = band.stop - band.start + band.below + band.above
        if band.stop <= band.start or band.stop > bins or held < shape.kernel:
            raise CheckpointError(f"multi_freqs={list(ratios)} leaves a band of {bins} bins without any")
        bands.append(band)
        start = band.stop - shape.kernel + shape.stride
    return bands


def decoder_bands(bins: int, ratios: Sequence[float]) -> list[Band]:
    """The bands of a decoder layer that reads ``bins``, one after the other."""
    ends = [0, *(round(bins * ratio) for ratio in ratios), bins]
    bands = [Band(start, stop) for start, stop in itertools.pairwise(ends)]
    if any(band.stop <= band.start for band in bands):
        raise CheckpointError(f"multi_freqs={list(ratios)} leaves a band of {bins} bins without any")
    return bands


class BandedEncoder(nn.Module):
    """An :class:`EncoderLayer` along frequency with weights of its own for every band."""

    def __init__(self, shape: LayerShape, config: LayerConfig, bands: Sequence[Band]) -> None:
        super().__init__()
        self.bands = tuple(bands)
        self.layers = nn.ModuleList(EncoderLayer(replace(shape, pad=0), config) for _ in bands)

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        """``[B, C, F, T]`` -> ``[B, C', F / stride, T]``; nothing is injected into a layer with bands."""
        outputs = []
        for band, layer in zip(self.bands, self.layers, strict=True):
            y = x[:, :, band.start : band.stop]
            outputs.append(layer(F.pad(y, (0, 0, band.below, band.above)) if band.below or band.above else y))
        return torch.cat(outputs, dim=2)


class BandedDecoder(nn.Module):
    """A :class:`DecoderLayer` along frequency with weights of its own for every band."""

    def __init__(self, shape: LayerShape, config: LayerConfig, bands: Sequence[Band]) -> None:
        super().__init__()
        self.shape, self.bands = shape, tuple(bands)
        inner = replace(shape, pad=0, last=True)  # crop and activation follow when bands are together
        self.layers = nn.ModuleList(DecoderLayer(inner, config) for _ in bands)

    def forward(self, x: Tensor, skip: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """As :class:`DecoderLayer`, but for the second result, which nothing asks for here."""
        stride = self.shape.stride
        whole: Tensor | None = None
        for band, layer in zip(self.bands, self.layers, strict=True):
            one = slice(band.start, band.stop)
            y, _ = layer(x[:, :, one], skip[:, :, one], length)
            if whole is None:
                whole = y
                continue
            # Both bands have added their bias where they overlap.
            bias = cast(Tensor, cast(DecoderLayer, layer).conv_tr.bias).view(-1, 1, 1)
            both = whole[:, :, -stride:] + (y[:, :, :stride] - bias)
            whole = torch.cat([whole[:, :, :-stride], both, y[:, :, stride:]], dim=2)
        assert whole is not None
        whole = whole[:, :, stride // 2 : (-stride) // 2]
        return (whole if self.shape.last else F.gelu(whole)), whole
