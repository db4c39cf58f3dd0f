"""Convolutional layers of the Demucs family: DConv, encoder and decoder layers, frequency embedding.

Parameter names are those of the published checkpoints. Spectrogram features are ``[B, C, F, T]``
(batch, channels, bins, frames), waveform features ``[B, C, T]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.layer_config import LayerConfig
from mrsep_deploy.export.families.demucs.sequence import BiLSTM, LocalAttention

LONGEST = 200
"""Frames that an LSTM in a :class:`DConv` runs over at once (the published value)."""


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
    """Residual branch of dilated convolutions along time, for ``[B, C, T]`` or every bin of ``[B, C, F, T]``.

    Each layer computes ``x + s GLU(GN(W2 GELU(GN(W1 x))))`` with ``W1`` a convolution of kernel 3 and
    dilation ``2^d`` into ``C / compress`` channels, ``W2`` pointwise, ``GN`` group norm of one group. An LSTM and a
    local attention follow the ``GELU`` where they are asked for.
    """

    def __init__(
        self, channels: int, depth: int, compress: float, lstm: bool = False, attention: bool = False
    ) -> None:
        super().__init__()
        hidden = int(channels / compress)
        self.layers = nn.ModuleList()
        for d in range(abs(depth)):
            # A negative depth is the published way to ask for no dilation.
            dilation = 2**d if depth > 0 else 1
            inner: list[nn.Module] = [BiLSTM(hidden, 2, longest=LONGEST, residual=True)] if lstm else []
            inner += [LocalAttention(hidden)] if attention else []
            self.layers.append(
                nn.Sequential(
                    nn.Conv1d(channels, hidden, 3, dilation=dilation, padding=dilation),
                    nn.GroupNorm(1, hidden),
                    nn.GELU(),
                    *inner,
                    nn.Conv1d(hidden, 2 * channels, 1),
                    nn.GroupNorm(1, 2 * channels),
                    nn.GLU(1),
                    LayerScale(channels),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        # Bins are items of their own: a norm is over the channels and frames of one.
        y = x if x.dim() == 3 else x.permute(0, 2, 1, 3).flatten(0, 1)
        for layer in self.layers:
            y = y + layer(y)
        return y if x.dim() == 3 else y.view(-1, x.shape[2], *y.shape[1:]).permute(0, 2, 1, 3)


@dataclass(frozen=True)
class LayerShape:
    """What distinguishes one encoder/decoder layer pair from the others.

    ``frequency`` tells whether the strided axis is frequency; ``pad`` is the padding of that axis on
    each side; ``empty`` marks the innermost waveform layer of a merging model, a lone convolution. ``lstm`` and
    ``attention`` say what the layer's DConv has besides convolutions, ``across`` whether the decoder's GLU sees
    neighbouring bins.
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
    lstm: bool = False
    attention: bool = False
    across: bool = True

    def axes(self, strided: int, other: int) -> tuple[int, ...]:
        """A kernel, stride or padding: along the strided axis, and along time where that is frequency."""
        return (strided, other) if self.frequency else (strided,)

    def reduced(self, length: int) -> int:
        """Bins, frames or samples after the encoder's convolution; along time, padded to the stride first."""
        if not self.frequency:
            length = -(-length // self.stride) * self.stride
        return (length + 2 * self.pad - self.kernel) // self.stride + 1

    def restored(self, length: int) -> int:
        """What the decoder's convolution makes of ``length``, without the padding on both sides."""
        return (length - 1) * self.stride + self.kernel - 2 * self.pad


class _Layer(nn.Module):
    """What encoder and decoder layers share: a DConv, and a pointwise GLU with a norm in it.

    Attributes:
        glu_norm: name of the norm between the GLU's convolution, ``rewrite``, and its gate.
        glu: what a rewrite for export puts in place of both.
    """

    glu_norm: ClassVar[str]

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        self.rewrite: nn.Module | None = None
        self.glu: nn.Module | None = None

    def _norm(self, channels: int, config: LayerConfig) -> nn.Module:
        return nn.GroupNorm(config.norm_groups, channels) if self.shape.norm else nn.Identity()

    def _add_inside(self, config: LayerConfig, context: int, dconv: bool) -> None:
        channels, shape = self.shape.inner, self.shape
        if config.rewrite:
            conv: Any = nn.Conv2d if shape.frequency else nn.Conv1d
            pad = shape.axes(context if shape.across else 0, context)
            self.rewrite = conv(channels, 2 * channels, [1 + 2 * p for p in pad], 1, pad)
            self.add_module(self.glu_norm, self._norm(2 * channels, config))
        self.dconv: nn.Module = nn.Identity()
        if dconv:
            self.dconv = DConv(channels, config.dconv_depth, config.dconv_comp, shape.lstm, shape.attention)

    def _gated(self, x: Tensor) -> Tensor:
        if self.rewrite is not None:
            return F.glu(getattr(self, self.glu_norm)(self.rewrite(x)), dim=1)
        return x if self.glu is None else self.glu(x)


class EncoderLayer(_Layer):
    """Strided convolution, GELU, DConv, pointwise GLU; ``[B, C, F, T] -> [B, C', F/stride, T]``
    along frequency, or ``[B, C, T] -> [B, C', T/stride]`` along time."""

    glu_norm = "norm2"

    def __init__(self, shape: LayerShape, config: LayerConfig) -> None:
        super().__init__(shape)
        conv: Any = nn.Conv2d if shape.frequency else nn.Conv1d
        sizes = shape.axes(shape.kernel, 1), shape.axes(shape.stride, 1), shape.axes(shape.pad, 0)
        self.conv: nn.Module = conv(shape.outer_in, shape.inner, *sizes)
        if not shape.empty:
            self.norm1 = self._norm(shape.inner, config)
            self._add_inside(config, config.context_enc, bool(config.dconv_mode & 1))

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        """``inject`` is the waveform branch joining a spectrogram branch that has shrunk to one bin."""
        if not self.shape.frequency:
            x = x.flatten(1, 2) if x.dim() == 4 else x
            missing = -x.shape[-1] % self.shape.stride
            x = F.pad(x, (0, missing)) if missing else x
        y: Tensor = self.conv(x)
        if self.shape.empty:
            return y
        if inject is not None:
            y = y + (inject[:, :, None] if y.dim() == 4 else inject)
        return self._gated(self.dconv(F.gelu(self.norm1(y))))


class DecoderLayer(_Layer):
    """Mirror of :class:`EncoderLayer`: skip connection, GLU, DConv, transposed convolution, GELU.

    Attributes:
        crop: what is cut off both ends of the transposed convolution's output.
    """

    glu_norm = "norm1"

    def __init__(self, shape: LayerShape, config: LayerConfig) -> None:
        super().__init__(shape)
        conv: Any = nn.ConvTranspose2d if shape.frequency else nn.ConvTranspose1d
        sizes = shape.axes(shape.kernel, 1), shape.axes(shape.stride, 1)
        self.conv_tr: nn.Module = conv(shape.inner, shape.outer_out, *sizes)
        self.norm2 = self._norm(shape.outer_out, config)
        self.crop = shape.pad
        if not shape.empty:
            self._add_inside(config, config.context, bool(config.dconv_mode & 2))

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
        x = self.inside(x, skip)
        return self.outside(x, length), x

    def inside(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """The layer up to its transposed convolution."""
        if self.shape.frequency and x.dim() == 3:
            x = x[:, :, None]
        return x if self.shape.empty else self.dconv(self._gated(x if skip is None else x + skip))

    def outside(self, x: Tensor, length: int) -> Tensor:
        """The transposed convolution, the crop of its output and the activation."""
        y: Tensor = self.norm2(self.conv_tr(x))
        if self.shape.frequency:
            y = y[..., self.crop : -self.crop, :] if self.crop else y
        elif self.crop or y.shape[-1] != length:
            y = y[..., self.crop : self.crop + length]
        return y if self.shape.last else F.gelu(y)


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
