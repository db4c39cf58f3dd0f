"""The bottleneck: a transformer over spectrogram tokens and waveform tokens, crossing between both."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.attention import LinearAttention, SoftmaxAttention
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.layers import LayerScale


def positions_1d(tokens: int, channels: int, max_period: float) -> Tensor:
    """Sinusoidal positions ``[N, C]``: cosines, then sines, of ``n / max_period^(i / (C/2 - 1))``."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float64) / max(half - 1, 1)
    phase = torch.arange(tokens, dtype=torch.float64)[:, None] / max_period**exponent
    return torch.cat([phase.cos(), phase.sin()], dim=-1).float()


def positions_2d(bins: int, frames: int, channels: int, max_period: float) -> Tensor:
    """Sinusoidal positions ``[T * F, C]`` in the order (time, frequency).

    The first half of the channels holds time, the second frequency, each with sines and cosines
    interleaved at periods that grow geometrically to ``max_period``.
    """
    half = channels // 2
    rate = torch.exp(torch.arange(0, half, 2, dtype=torch.float64) * -(math.log(max_period) / half))

    def interleaved(length: int) -> Tensor:
        phase = torch.arange(length, dtype=torch.float64)[:, None] * rate
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)

    time = interleaved(frames)[:, None].expand(frames, bins, half)
    frequency = interleaved(bins)[None].expand(frames, bins, half)
    return torch.cat([time, frequency], dim=-1).reshape(frames * bins, channels).float()


class TokenGroupNorm(nn.GroupNorm):
    """Group norm of one group over all tokens and channels of ``[B, N, C]``."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """One layer: attention (over itself or the other side), feed-forward, scaled residuals.

    ``cross`` decides the parameter names: ``self_attn``, ``norm1``, ``norm2`` or ``cross_attn``,
    ``norm1`` (queries), ``norm2`` (memory), ``norm3``.
    """

    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module

    def __init__(self, channels: int, config: ModelConfig, cross: bool) -> None:
        super().__init__()
        self.cross = cross
        self.norm_first = config.t_norm_first
        self.gelu = config.t_gelu
        kind = SoftmaxAttention if config.attention == "softmax" else LinearAttention
        attention: nn.Module = kind(channels, config.t_heads)
        if cross:
            self.cross_attn = attention
        else:
            self.self_attn = attention
        hidden = int(channels * config.t_hidden_scale)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        for index in range(1, 4 if cross else 3):
            norm = TokenGroupNorm(1, channels) if config.t_group_norm else nn.LayerNorm(channels)
            self.add_module(f"norm{index}", norm)
        self.norm_out: nn.Module | None = None
        if config.t_norm_first and config.t_norm_out:
            self.norm_out = TokenGroupNorm(1, channels)
        self.gamma_1: nn.Module = LayerScale(channels, True) if config.t_layer_scale else nn.Identity()
        self.gamma_2: nn.Module = LayerScale(channels, True) if config.t_layer_scale else nn.Identity()

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """``x`` ``[B, N, C]``, ``memory`` ``[B, M, C]`` for a crossing layer."""
        if not self.norm_first:
            x = self.norm1(x + self.gamma_1(self._attend(x, x if memory is None else memory)))
            y: Tensor = self.norm2(x + self.gamma_2(self._feed_forward(x)))
            return y
        q = self.norm1(x)
        x = x + self.gamma_1(self._attend(q, q if memory is None else self.norm2(memory)))
        norm = self.norm3 if self.cross else self.norm2
        x = x + self.gamma_2(self._feed_forward(norm(x)))
        return x if self.norm_out is None else self.norm_out(x)

    def _attend(self, query: Tensor, memory: Tensor) -> Tensor:
        attention = self.cross_attn if self.cross else self.self_attn
        y: Tensor = attention(query, memory)
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        h = self.linear1(x)
        y: Tensor = self.linear2(F.gelu(h) if self.gelu else F.relu(h))
        return y


class CrossTransformer(nn.Module):
    """Layers alternate between self-attention and attention to the other side.

    Without a waveform side there is nobody to attend to: every layer is self-attention.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.two_sided = config.waveform

        def norm_in() -> nn.Module:
            if config.t_norm_in:
                return nn.LayerNorm(channels)
            return TokenGroupNorm(1, channels) if config.t_norm_in_group else nn.Identity()

        def layers() -> nn.ModuleList:
            return nn.ModuleList(
                TransformerLayer(channels, config, cross) for cross in crossing_layers(config)
            )

        self.norm_in = norm_in()
        self.layers = layers()
        if self.two_sided:
            self.norm_in_t = norm_in()
            self.layers_t = layers()

    def forward(self, x: Tensor, xt: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``x`` ``[B, C, F, T]`` and ``xt`` ``[B, C, N]``; both come back in their shapes."""
        b, c, f, t = x.shape
        gain, period = self.config.t_weight_pos_embed, self.config.t_max_period
        x = self.norm_in(x.permute(0, 3, 2, 1).reshape(b, t * f, c))
        x = x + (gain * positions_2d(f, t, c, period)).to(x)
        if xt is not None:
            xt = self.norm_in_t(xt.transpose(1, 2))
            xt = xt + (gain * positions_1d(xt.shape[1], c, period)).to(xt)
        x, xt = self.run_layers(x, xt)
        x = x.view(b, t, f, c).permute(0, 3, 2, 1)
        return x, None if xt is None else xt.transpose(1, 2)

    def run_layers(self, x: Tensor, xt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """All layers on tokens ``[B, N, C]`` that carry their positions."""
        for index, layer in enumerate(self.layers):
            before = x
            x = layer(x, xt) if layer.cross else layer(x)
            if xt is not None:
                layer_t = self.layers_t[index]
                xt = layer_t(xt, before) if layer_t.cross else layer_t(xt)
        return x, xt


def crossing_layers(config: ModelConfig) -> list[bool]:
    """For each transformer layer, whether it attends to the other side."""
    own = 1 if config.t_cross_first else 0
    return [config.waveform and index % 2 != own for index in range(config.t_layers)]
