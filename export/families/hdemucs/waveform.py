"""``Demucs`` (Défossez 2021) on the waveform alone: strided convolutions along time, at twice the sample rate.

Layers are sequences whose positions are the published parameter names, ``encoder.0.3.layers.0``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.layer_config import layer_channels
from mrsep_deploy.export.families.demucs.layers import DConv
from mrsep_deploy.export.families.demucs.rewrite_layers import mean_in_steps
from mrsep_deploy.export.families.demucs.sequence import BiLSTM
from mrsep_deploy.export.families.hdemucs.config import WaveformConfig, valid_length
from mrsep_deploy.transforms.spectrogram import NORMALISE_EPS

ZEROS, ROLLOFF = 24, 0.945
"""Zero crossings of the resampling filter at either side, and its corner as a share of the lower Nyquist frequency."""


class Demucs(nn.Module):
    """The parts that stages are made of (``stages``).

    Attributes:
        config: the structure.
        inner: how many layers stand before the first one with an LSTM or an attention.
    """

    def __init__(self, config: WaveformConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        stems = config.audio_channels * len(config.sources)
        widths = layer_channels(config.channels, config.growth, config.depth)
        for index, width in enumerate(widths):
            outer = (widths[index - 1],) * 2 if index else (config.audio_channels, stems)
            self.encoder.append(self._encoder_layer(index, outer[0], width))
            self.decoder.insert(0, self._decoder_layer(index, width, outer[1]))
        self.lstm = BiLSTM(widths[-1], config.lstm_layers) if config.lstm_layers else None
        inside = config.dconv_mode and config.dconv_depth
        self.inner = min(config.dconv_attn, config.dconv_lstm, config.depth) if inside else config.depth
        # Constants, no parameters: they have values where a model is made without any.
        self.up, self.down = (resampling_filter(up) for up in (True, False))

    # --- construction

    def _encoder_layer(self, index: int, outer: int, width: int) -> nn.Sequential:
        config = self.config
        strided = nn.Conv1d(outer, width, config.kernel_size, config.stride)
        parts: list[nn.Module] = [strided, self._norm(index, width), self._activation()]
        if config.dconv_mode & 1:
            parts.append(self._dconv(index, width))
        return nn.Sequential(*parts, *self._pointwise(index, width, 0))

    def _decoder_layer(self, index: int, width: int, outer: int) -> nn.Sequential:
        config = self.config
        parts = self._pointwise(index, width, config.context)
        if config.dconv_mode & 2:
            parts.append(self._dconv(index, width))
        parts.append(nn.ConvTranspose1d(width, outer, config.kernel_size, config.stride))
        return nn.Sequential(*parts, *([self._norm(index, outer), self._activation()] if index else []))

    def _pointwise(self, index: int, width: int, context: int) -> list[nn.Module]:
        if not self.config.rewrite:
            return []
        wide = 2 * width if self.config.glu else width
        conv = nn.Conv1d(width, wide, 2 * context + 1, padding=context)
        return [conv, self._norm(index, wide), nn.GLU(1) if self.config.glu else nn.ReLU()]

    def _norm(self, index: int, channels: int) -> nn.Module:
        normed = index >= self.config.norm_starts
        return nn.GroupNorm(self.config.norm_groups, channels) if normed else nn.Identity()

    def _activation(self) -> nn.Module:
        return nn.GELU() if self.config.gelu else nn.ReLU()

    def _dconv(self, index: int, width: int) -> DConv:
        config = self.config
        lstm, attention = index >= config.dconv_lstm, index >= config.dconv_attn
        return DConv(width, config.dconv_depth, config.dconv_comp, lstm, attention)

    # --- the parts

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Mix ``[B, C, L]`` -> its level ``[B, 2]`` where that is taken out, and outputs of the outer layers.

        Where there is no outer layer, the resampled mix.
        """
        found: list[Tensor] = []
        if self.config.normalize:
            mono = x.mean(1, keepdim=True)
            mean = mean_in_steps(mono, 2)
            centred = mono - mean
            std = torch.sqrt(mean_in_steps(centred * centred, 2) * (mono.shape[2] / (mono.shape[2] - 1)))
            x = (x - mean) / (NORMALISE_EPS + std)
            found.append(torch.cat([mean, std], dim=1).flatten(1))
        missing = valid_length(self.config, x.shape[-1]) - x.shape[-1]
        x = F.pad(x, (missing // 2, missing - missing // 2)) if missing else x
        x = doubled(x, self.up) if self.config.resample else x
        for layer in self.encoder[: self.inner]:
            x = layer(x)
            found.append(x)
        return tuple(found if self.inner else [*found, x])

    def bottleneck(self, x: Tensor) -> tuple[Tensor]:
        """The layers with an LSTM or an attention, and the LSTM at the bottom."""
        skips: list[Tensor] = []
        for layer in self.encoder[self.inner :]:
            x = layer(x)
            skips.append(x)
        x = self.lstm(x) if self.lstm is not None else x
        return (self._decoded(x, self.decoder[: len(skips)], skips),)

    def decode(self, *inputs: Tensor) -> tuple[Tensor]:
        """Level, what comes from inside (the last layer's output if nothing does), outer layers' outputs -> stems."""
        given = list(inputs)
        statistics = given.pop(0) if self.config.normalize else None
        x, skips = given[0], given[len(given) - self.inner :]
        if len(given) == self.inner:
            x = given[-1]
        x = self._decoded(x, self.decoder[len(self.decoder) - self.inner :], skips)
        x = halved(x, self.down) if self.config.resample else x
        if statistics is not None:
            mean, std = (statistics[:, i : i + 1, None] for i in range(2))
            x = x * std + mean
        return (trimmed(x, self.config.segment_samples),)

    def _decoded(self, x: Tensor, layers: nn.ModuleList, skips: list[Tensor]) -> Tensor:
        for layer, skip in zip(layers, reversed(skips), strict=True):
            x = layer(x + trimmed(skip, x.shape[-1]))
        return x


def trimmed(x: Tensor, length: int) -> Tensor:
    """The middle of ``[B, C, T]``; of an odd number of samples too many, one more is cut off behind it."""
    start = (x.shape[-1] - length) // 2
    return x[..., start : start + length] if x.shape[-1] > length else x


def resampling_filter(up: bool) -> Tensor:
    """Filters that double (``[2, 1, K]``) or halve (``[1, 1, K]``) a sample rate, in float32 as published (julius).

    A windowed sinc, ``sinc(t) cos^2(t / 48)`` for ``|t| <= 24 pi``, with a sum of one.
    """
    old, new = (1, 2) if up else (2, 1)
    corner = min(old, new) * ROLLOFF
    width = math.ceil(ZEROS * old / corner)
    index = torch.arange(-width, width + old, dtype=torch.float32, device="cpu")
    filters = []
    for phase in range(new):
        t = ((-phase / new + index / old) * corner).clamp(-ZEROS, ZEROS) * math.pi
        window = torch.cos(t / ZEROS / 2) ** 2
        sinc = torch.where(t == 0, torch.ones_like(t), torch.sin(t) / t)
        filters.append(sinc * window)
    return torch.stack([each / each.sum() for each in filters])[:, None]


def doubled(x: Tensor, filters: Tensor) -> Tensor:
    """``[B, C, T]`` -> ``[B, C, 2T]``."""
    b, channels, samples = x.shape
    width = filters.shape[-1] // 2
    padded = F.pad(x, (width, width + 1), mode="replicate").flatten(0, 1)[:, None]
    both = F.conv1d(padded, filters.to(x))[..., :samples]
    return both.transpose(1, 2).flatten(1).view(b, channels, 2 * samples)


def halved(x: Tensor, filters: Tensor) -> Tensor:
    """``[B, C, T]`` -> ``[B, C, T / 2]``."""
    b, channels, samples = x.shape
    width = filters.shape[-1] // 2 - 1
    padded = F.pad(x, (width, width + 2), mode="replicate").flatten(0, 1)[:, None]
    half = samples // 2
    return F.conv1d(padded, filters.to(x), stride=2)[..., :half].reshape(b, channels, half)
