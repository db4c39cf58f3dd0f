"""``HDemucs`` (Défossez 2021): a spectrogram and a waveform branch that share their innermost layers.

The spectrogram is reduced to one bin, where the waveform branch joins it; from there on layers run along time.
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families.demucs.layers import DecoderLayer, EncoderLayer, FrequencyEmbedding
from mrsep_deploy.export.families.demucs.rewrite_layers import mean_in_steps
from mrsep_deploy.export.families.demucs.shapes import plan_layers
from mrsep_deploy.export.families.hdemucs.bands import (
    BandedDecoder,
    BandedEncoder,
    decoder_bands,
    encoder_bands,
)
from mrsep_deploy.export.families.hdemucs.config import HybridConfig
from mrsep_deploy.transforms.spectrogram import NORMALISE_EPS


class HDemucs(nn.Module):
    """The parts that stages are made of (``stages``), and all of them in a row.

    Attributes:
        config: the structure.
        plan: the shapes of its layers.
        merge: index of the spectrogram layer that the waveform branch joins.

    Raises:
        CheckpointError: the depth leaves more than one bin, or bands do not fit.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config, self.plan = config, plan_layers(config)
        (n_fft,) = config.nfft_list
        if self.plan.merge is None or self.plan.merge < config.banded_layers:
            raise CheckpointError(
                f"depth={config.depth} and nfft={n_fft} leave the branches no layer to meet in",
                "HDemucs needs as many layers as reduce its spectrogram to one bin, none of them in bands.",
            )
        self.merge = self.plan.merge
        self.encoder, self.decoder, self.tencoder, self.tdecoder = (nn.ModuleList() for _ in range(4))
        bins = [n_fft // 2, *self.plan.bins(n_fft)]
        for index, shape in enumerate(self.plan.spectrogram):
            if index < config.banded_layers:
                bands = encoder_bands(bins[index], config.multi_freqs, shape)
                self.encoder.append(BandedEncoder(shape, config, bands))
                bands = decoder_bands(bins[index + 1], config.multi_freqs)
                self.decoder.insert(0, BandedDecoder(shape, config, bands))
            else:
                self.encoder.append(EncoderLayer(shape, config))
                self.decoder.insert(0, DecoderLayer(shape, config))
        for shape in self.plan.waveform:
            self.tencoder.append(EncoderLayer(shape, config))
            self.tdecoder.insert(0, DecoderLayer(shape, config))
        self.freq_emb: FrequencyEmbedding | None = None
        if config.freq_emb:
            vectors = 1 if bins[0] <= config.kernel_size else bins[0] // config.stride
            self.freq_emb = FrequencyEmbedding(vectors, self.plan.spectrogram[0].inner, config.emb_scale)

    def encode_spectrogram(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[B, C, F, T]`` -> outputs of the layers before the branches meet, outermost first."""
        skips: list[Tensor] = []
        for index in range(self.merge):
            x = self._encoded(index, x)
            skips.append(x)
        return tuple(skips)

    def encode_waveform(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[B, C, L]`` -> outputs of all layers, outermost first; the last one is what joins the spectrogram."""
        skips: list[Tensor] = []
        for layer in self.tencoder:
            x = layer(x)
            skips.append(x)
        return tuple(skips)

    def bottleneck(self, x: Tensor, inject: Tensor) -> tuple[Tensor]:
        """The layers from where the branches meet: encoder and decoder, up to where they part, ``[B, C, T]``."""
        lengths, skips = [], []
        for index in range(self.merge, self.config.depth):
            lengths.append(x.shape[-1])
            x = self._encoded(index, x, inject if index == self.merge else None)
            skips.append(x)
        # Features from inside are zeros: all that the innermost decoder layer gets is its skip connection.
        found: Tensor | None = None
        inner = self.config.depth - 1 - self.merge
        for layer in self.decoder[:inner]:
            skip = skips.pop()
            found, _ = layer(*((skip, None) if found is None else (found, skip)), lengths.pop())
        merging = cast(DecoderLayer, self.decoder[inner])
        skip = skips.pop()
        before = merging.inside(*((skip, None) if found is None else (found, skip)))
        return (before.flatten(1, 2),)

    def decode_spectrogram(self, hidden: Tensor, *skips: Tensor) -> tuple[Tensor]:
        """The bottleneck's result and the encoder's -> estimate ``[B, S*2C, F, T]``, or ``[B, S*C, F, T]``."""
        first, *others = self.decoder[self.config.depth - 1 - self.merge :]
        x = cast(DecoderLayer, first).outside(hidden[:, :, None], 0)
        for layer, skip in zip(others, reversed(skips), strict=True):
            x, _ = layer(x, skip, 0)
        return (x,)

    def decode_waveform(self, hidden: Tensor, *skips: Tensor) -> tuple[Tensor]:
        """The bottleneck's result and the encoder's but for the last -> estimate ``[B, S*C, L]``."""
        x, lengths = hidden, [self.config.segment_samples, *(skip.shape[-1] for skip in skips)]
        for layer, skip in zip(self.tdecoder, (None, *reversed(skips)), strict=True):
            x, _ = layer(x, skip, lengths.pop())
        return (x,)

    def _encoded(self, index: int, x: Tensor, inject: Tensor | None = None) -> Tensor:
        layer: Any = self.encoder[index]
        y: Tensor = layer(x, inject)
        return self.freq_emb(y, self.config.freq_emb) if index == 0 and self.freq_emb is not None else y


class Magnitudes(nn.Module):
    """Complex ``[B, 2C, F, T]`` -> normalised magnitudes ``[B, C, F, T]``, their mean and deviation ``[B, 2]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        size, _ = _polar(spectrogram, self.channels)
        mean = mean_in_steps(size, 3, 2, 1)
        centred = size - mean
        count = size[0].numel()
        std = torch.sqrt(mean_in_steps(centred * centred, 3, 2, 1) * (count / (count - 1)))
        return centred / (NORMALISE_EPS + std), torch.cat([mean, std], dim=1).flatten(1)


class WithPhase(nn.Module):
    """Estimates of normalised magnitudes ``[B, S*C, F, T]`` with the mix's level and phase: ``[B, S*2C, F, T]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, estimate: Tensor, statistics: Tensor, spectrogram: Tensor) -> tuple[Tensor]:
        _, phase = _polar(spectrogram, self.channels)
        mean, std = (statistics[:, i : i + 1, None, None] for i in range(2))
        b, stems, bins, frames = estimate.shape
        sources = stems // self.channels
        size = (estimate * std + mean).view(b, sources, self.channels, 1, bins, frames)
        return ((size * phase[:, None]).flatten(1, 3),)


def _polar(spectrogram: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """``[B, 2C, F, T]`` -> magnitudes ``[B, C, F, T]`` and directions ``[B, C, 2, F, T]``, (1, 0) for zeros."""
    b, _, bins, frames = spectrogram.shape
    z = spectrogram.view(b, channels, 2, bins, frames)
    # Over the larger part first, whose square would be zero where it is small.
    largest = z.abs().amax(dim=2, keepdim=True)
    silent = (largest == 0).to(z.dtype)
    scaled = z / (largest + silent)
    size = torch.sqrt((scaled * scaled).sum(dim=2, keepdim=True)) + silent
    real, imaginary = (scaled / size).chunk(2, dim=2)
    return (largest * size).squeeze(2), torch.cat([real + silent, imaginary], dim=2)
