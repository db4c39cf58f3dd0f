"""Convolutional layers of the Demucs family: DConv, encoder and decoder layers, frequency embedding.

Parameter names are those of the published checkpoints. Spectrogram features are ``[B, C, F, T]``
(batch, channels, bins, frames), waveform features ``[B, C, T]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.config import ModelConfig


class LayerScale(nn.Module):
    """Learnt gain per channel, ``scale``; channels come first (``[B, C, T]``) or last (``[B, T, C]``)."""

    untrained = 0.1  # what untrained models have: with less, their residual branches carry no signal

    def __init__(self, channels: int, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.scale = nn.Parameter(torch.full((channels,), 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale if self.channels_last else self.scale[:, None])


class DConv(nn.Module):
    """Residual branch of dilated convolutions, ``[N, C, T] -> [N, C, T]``.

    Each layer computes ``x + s GLU(GN(W2 GELU(GN(W1 x))))`` with ``W1`` a convolution of kernel 3 and
    dilation ``2^d`` into ``C / compress`` channels, ``W2`` pointwise, ``GN`` group norm of one group.
    """

    def __init__(self, channels: int, depth: int, compress: float) -> None:
        super().__init__()
        hidden = int(channels / compress)
        self.layers = nn.ModuleList()
        for d in range(abs(depth)):
            # A negative depth is the published way to ask for no dilation.
            dilation = 2**d if depth > 0 else 1
            self.layers.append(
                nn.Sequential(
                    nn.Conv1d(channels, hidden, 3, dilation=dilation, padding=dilation),
                    nn.GroupNorm(1, hidden),
                    nn.GELU(),
                    nn.Conv1d(hidden, 2 * channels, 1),
                    nn.GroupNorm(1, 2 * channels),
                    nn.GLU(1),
                    LayerScale(channels),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@dataclass(frozen=True)
class LayerShape:
    """What distinguishes one encoder/decoder layer pair from the others.

    ``frequency`` tells whether the strided axis is frequency; ``pad`` is the padding of that axis on
    each side; ``empty`` marks the innermost waveform layer of a merging model, a lone convolution.
    """

    inner: int
    outer_in: int
    outer_out: int
    kernel: int
    stride: int
    pad: int
    frequency: bool
    norm: bool
    last: bool
    empty: bool = False


def _norm(shape: LayerShape, groups: int, channels: int) -> nn.Module:
    return nn.GroupNorm(groups, channels) if shape.norm else nn.Identity()


def per_bin(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a ``[N, C, T]`` module to every bin of ``[B, C, F, T]`` on its own."""
    b, c, f, t = x.shape
    y: Tensor = module(x.permute(0, 2, 1, 3).reshape(b * f, c, t))
    return y.view(b, f, c, t).permute(0, 2, 1, 3)


class EncoderLayer(nn.Module):
    """Strided convolution, GELU, DConv, pointwise GLU; ``[B, C, F, T] -> [B, C', F/stride, T]``
    along frequency, or ``[B, C, T] -> [B, C', T/stride]`` along time."""

    def __init__(self, shape: LayerShape, config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        channels = shape.inner
        conv: type[nn.Conv1d | nn.Conv2d]
        if shape.frequency:
            conv = nn.Conv2d
            self.conv: nn.Module = nn.Conv2d(
                shape.outer_in, channels, (shape.kernel, 1), (shape.stride, 1), (shape.pad, 0)
            )
        else:
            conv = nn.Conv1d
            self.conv = nn.Conv1d(shape.outer_in, channels, shape.kernel, shape.stride, shape.pad)
        self.rewrite: nn.Module | None = None
        self.dconv: DConv | None = None
        if shape.empty:
            return
        self.norm1 = _norm(shape, config.norm_groups, channels)
        if config.rewrite:
            context = config.context_enc
            self.rewrite = conv(channels, 2 * channels, 1 + 2 * context, 1, context)
            self.norm2 = _norm(shape, config.norm_groups, 2 * channels)
        if config.dconv_mode & 1:
            self.dconv = DConv(channels, config.dconv_depth, config.dconv_comp)

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        """``inject`` is the waveform branch joining a spectrogram branch that has shrunk to one bin."""
        if not self.shape.frequency:
            if x.dim() == 4:
                x = x.flatten(1, 2)
            x = F.pad(x, (0, -x.shape[-1] % self.shape.stride))
        y: Tensor = self.conv(x)
        if self.shape.empty:
            return y
        if inject is not None:
            y = y + (inject[:, :, None] if y.dim() == 4 else inject)
        y = F.gelu(self.norm1(y))
        if self.dconv is not None:
            y = per_bin(self.dconv, y) if self.shape.frequency else self.dconv(y)
        if self.rewrite is not None:
            y = F.glu(self.norm2(self.rewrite(y)), dim=1)
        return y


class DecoderLayer(nn.Module):
    """Mirror of :class:`EncoderLayer`: skip connection, GLU, DConv, transposed convolution, GELU."""

    def __init__(self, shape: LayerShape, config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        channels = shape.inner
        conv: type[nn.Conv1d | nn.Conv2d]
        if shape.frequency:
            conv = nn.Conv2d
            self.conv_tr: nn.Module = nn.ConvTranspose2d(
                channels, shape.outer_out, (shape.kernel, 1), (shape.stride, 1)
            )
        else:
            conv = nn.Conv1d
            self.conv_tr = nn.ConvTranspose1d(channels, shape.outer_out, shape.kernel, shape.stride)
        self.norm2 = _norm(shape, config.norm_groups, shape.outer_out)
        self.rewrite: nn.Module | None = None
        self.dconv: DConv | None = None
        if shape.empty:
            return
        if config.rewrite:
            context = config.context
            self.rewrite = conv(channels, 2 * channels, 1 + 2 * context, 1, context)
            self.norm1 = _norm(shape, config.norm_groups, 2 * channels)
        if config.dconv_mode & 2:
            self.dconv = DConv(channels, config.dconv_depth, config.dconv_comp)

    def forward(self, x: Tensor, skip: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        """Decode one layer.

        Args:
            x: features from inside, ``[B, C, F, T]`` or ``[B, C, T]``.
            skip: the encoder's output at the same level; none for an ``empty`` layer.
            length: samples to keep along time (waveform layers only).

        Returns:
            The layer's output, and the features just before its transposed convolution (where a
            merging model's waveform decoder sets out).
        """
        if self.shape.frequency and x.dim() == 3:
            x = x[:, :, None]
        if skip is not None:
            x = x + skip
        if self.rewrite is not None:
            x = F.glu(self.norm1(self.rewrite(x)), dim=1)
        if self.dconv is not None:
            x = per_bin(self.dconv, x) if self.shape.frequency else self.dconv(x)
        y: Tensor = self.norm2(self.conv_tr(x))
        if not self.shape.frequency:
            y = y[..., self.shape.pad : self.shape.pad + length]
        elif self.shape.pad:
            y = y[..., self.shape.pad : -self.shape.pad, :]
        return (y if self.shape.last else F.gelu(y)), x


class FrequencyEmbedding(nn.Module):
    """Learnt vector per bin, added after the first spectrogram layer: ``weight * scale``, ``[F, C]``."""

    def __init__(self, bins: int, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # As nn.Embedding draws them itself; on the meta device that would import the compiler, for seconds.
        self.embedding = nn.Embedding(bins, channels, _weight=torch.randn(bins, channels))

    def forward(self, x: Tensor, gain: float) -> Tensor:
        """``x + gain * E`` for ``x`` of shape ``[B, C, F, T]``, ``F`` at most the number of vectors."""
        weight = self.embedding.weight
        # Kernels longer than twice the stride leave fewer bins than the published class makes vectors.
        weight = weight if len(weight) == x.shape[2] else weight[: x.shape[2]]
        return x + gain * (weight * self.scale).t()[None, :, :, None]
