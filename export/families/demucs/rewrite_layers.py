"""Convolutional layers rewritten for export: group norms spelled out, DConv, GLU, frequency embedding.

Every rewrite is algebra, not approximation; its docstring says which. Constants are worked out in
float64 and rounded to float32 once. :mod:`mrsep_deploy.export.families.demucs.rewrites` puts them in place.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.layers import (
    DConv,
    DecoderLayer,
    EncoderLayer,
    FrequencyEmbedding,
)
from mrsep_deploy.export.families.demucs.transformer import TokenGroupNorm


def _conv(weight: Tensor, bias: Tensor | None = None, padding: int = 0, dilation: int = 1) -> nn.Conv2d:
    """A convolution along time on ``[B, C, F, T]`` from weights ``[O, I, K]``."""
    out, inner, kernel = weight.shape
    conv = nn.Conv2d(
        inner, out, (1, kernel), padding=(0, padding), dilation=(1, dilation), bias=bias is not None
    )
    conv.weight = nn.Parameter(weight[:, :, None].float().contiguous(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.float().contiguous(), requires_grad=False)
    return conv


LONG_AXIS = 4096
CHUNK = 256


def mean_in_steps(x: Tensor, *dims: int) -> Tensor:
    """Mean over several axes, one at a time, kept as size 1.

    Engines accumulate a reduction in one float32; over millions of elements that alone costs 40 dB. One
    axis at a time, a long one in chunks, the partial sums stay short. Means and sums take turns, because
    OpenVINO makes one reduction of two means in a row, and of two sums.
    """
    averaged = False
    for dim in dims:
        size = x.shape[dim]
        if size > LONG_AXIS:
            # The last chunk is filled up with zeros.
            x = F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, -size % CHUNK)) if size % CHUNK else x
            means = x.reshape(*x.shape[:dim], -1, CHUNK, *x.shape[dim + 1 :]).mean(dim=dim + 1)
            x = means.sum(dim=dim, keepdim=True) * (CHUNK / size)
            averaged = False
        else:
            x = x.sum(dim=dim, keepdim=True) * (1 / size) if averaged else x.mean(dim=dim, keepdim=True)
            averaged = not averaged
    return x


class SteppedNorm(nn.Module):
    """Group norm of one group over chosen axes, spelled out: no engine can misread its grouping.

    ``dims`` are reduced in order; ``weight`` and ``bias`` are shaped to broadcast.
    """

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.bias = nn.Parameter(bias.float(), requires_grad=False)
        self.eps = eps
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        centred = x - mean_in_steps(x, *self.dims)
        variance = mean_in_steps(centred * centred, *self.dims)
        return centred * (torch.rsqrt(variance + self.eps) * self.weight) + self.bias


class Shift(nn.Module):
    """What a norm adds to every frame of a bin: ``weight offset r + bias`` on ``[B, C, F, 1]``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float().view(-1, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(bias.float().view(-1, 1, 1), requires_grad=False)

    def forward(self, offset: Tensor, r: Tensor) -> Tensor:
        return offset * r * self.weight + self.bias


class NormedHalf(nn.Module):
    """One half of the wide features of a :class:`DConvLayer`, normalised: ``gamma W u + gamma o r + beta``.

    Args:
        size: square root of the number of channels that the norm is over.
        weight: ``W``, ``[C, h]``.
        centred, bias: weights and bias of the offset ``o``, divided by ``size``.
        gamma, beta: scale and shift of the norm, ``[C]``.
    """

    def __init__(
        self, size: float, weight: Tensor, centred: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor
    ) -> None:
        super().__init__()
        self.offset = _conv(centred[:, :, None], bias)
        self.features = _conv((gamma[:, None] * weight)[:, :, None])
        self.shift = Shift(gamma * size, beta)

    def forward(self, u: Tensor, offset: Tensor, r: Tensor) -> Tensor:
        y: Tensor = self.features(u) + self.shift(offset, r)
        return y


class PerBin(nn.Module):
    """A module of ``[B, C, T]`` on every bin of ``[B, C, F, T]``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        b, c, f, t = x.shape
        if f == 1:
            one: Tensor = self.module(x.squeeze(2))
            return one.unsqueeze(2)
        y: Tensor = self.module(x.permute(0, 2, 1, 3).flatten(0, 1))
        return y.view(b, f, c, t).permute(0, 2, 1, 3)


class DConvLayer(nn.Module):
    """One DConv layer on ``[B, C, F, T]``, with the second norm folded into its pointwise convolution.

    Let ``g`` be the hidden features ``[h, F, T]`` of one item, ``gbar`` their mean over time, and ``y = W g + b``
    the pointwise convolution to ``2C`` channels, with the mean ``m`` over (channel, time) of each bin. With

        offset    o = W gbar + b - m,    computed as (W - w) gbar + (b - mean(b)),    w = mean over rows of W

    the norm over (channel, time) is ``gamma (W (g - gbar) + o) r + beta`` with ``r = (v + eps)^-1/2`` and

        variance  v = (1/2C) sum_c [ o_c^2 + mean_t (W (g - gbar))_c^2 ].

    The second sum is ``||R (g - gbar)||^2`` for any ``R^T R = W^T W``; ``W = Q R`` gives one of size ``h x h``. So
    the statistics of the wide ``y`` come from the narrow ``g`` (``h = C/8``), and the norm is one pointwise
    convolution of ``u = (g - gbar) r`` and a :class:`Shift`, ``gamma o r + beta``, of one number a channel and bin.

    This form survives half precision. In quiet bins ``g`` hardly moves: ``gamma W g r`` would be large, nearly
    constant, and opposite to the rest of the sum, so that rounding ``g r`` would leave an error as large as the sum.
    Here the convolution holds only what moves, and float32 costs nothing in the shift.

    An LSTM or an attention of the layer, ``inner``, is part of what makes ``g``, and stays as it is.
    The two halves of the GLU are two convolutions, and the layer scale is folded into the first half.
    """

    def __init__(self, layer: nn.Sequential) -> None:
        super().__init__()
        parts: Any = layer
        conv1, norm1, _gelu, *inner, conv2, norm2, _glu, scale = parts
        padding, dilation = int(conv1.padding[0]), conv1.dilation[0]
        self.conv = _conv(conv1.weight, conv1.bias, padding=padding, dilation=dilation)
        self.norm = SteppedNorm(norm1.weight.view(-1, 1, 1), norm1.bias.view(-1, 1, 1), norm1.eps, (3, 1))
        self.inner = nn.ModuleList(PerBin(module) for module in inner)
        weight, bias = conv2.weight[:, :, 0].double(), conv2.bias.double()
        # offsets and root are divided by this, so that sums of their squares are means over channels
        size = len(weight) ** 0.5
        self.eps = norm2.eps
        self.root = _conv(torch.linalg.qr(weight).R[:, :, None] / size)
        gain = torch.cat([scale.scale.double(), torch.ones(len(weight) // 2, dtype=torch.double)])
        rows = (
            weight,
            (weight - weight.mean(0)) / size,
            (bias - bias.mean()) / size,
            gain * norm2.weight.double(),
            gain * norm2.bias.double(),
        )
        value, gate = zip(*(part.chunk(2) for part in rows), strict=True)
        self.value, self.gate = NormedHalf(size, *value), NormedHalf(size, *gate)

    def forward(self, x: Tensor) -> Tensor:
        g = F.gelu(self.norm(self.conv(x)))
        for module in self.inner:
            g = module(g)
        mean = mean_in_steps(g, 3)
        centred = g - mean
        spread = self.root(centred)
        value, gate = self.value.offset(mean), self.gate.offset(mean)
        variance = (value * value).sum(1, keepdim=True) + (gate * gate).sum(1, keepdim=True)
        variance = variance + mean_in_steps(spread * spread, 3).sum(1, keepdim=True)
        r = torch.rsqrt(variance + self.eps)
        u = centred * r
        y: Tensor = x + self.value(u, value, r) * torch.sigmoid(self.gate(u, gate, r))
        return y


class DConv2d(nn.Module):
    """:class:`DConv` per bin as convolutions of kernel ``[1, 3]`` on ``[B, C, F, T]``: no permutes."""

    def __init__(self, dconv: DConv) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DConvLayer(cast(nn.Sequential, layer)) for layer in dconv.layers)

    def forward(self, x: Tensor) -> Tensor:
        waveform = x.dim() == 3
        x = x[:, :, None] if waveform else x
        for layer in self.layers:
            x = layer(x)
        return x.squeeze(2) if waveform else x


class SplitGLU(nn.Module):
    """``GLU(conv(x))`` as two convolutions, ``(W_a x + b_a) sigmoid(W_g x + b_g)``: nothing to split."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        half = conv.out_channels // 2
        self.value, self.gate = copy.deepcopy(conv), copy.deepcopy(conv)
        assert conv.bias is not None
        for part, rows in ((self.value, slice(0, half)), (self.gate, slice(half, None))):
            part.out_channels = half
            part.weight = nn.Parameter(conv.weight[rows].contiguous(), requires_grad=False)
            part.bias = nn.Parameter(conv.bias[rows].contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.value(x) * torch.sigmoid(self.gate(x))
        return y


class PlainGLU(nn.Module):
    """``GLU(norm(conv(x)))``; a norm between convolution and gate couples both halves."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.norm(self.conv(x)), dim=1)


class GroupedNorm(nn.Module):
    """Group norm with several groups on ``[B, C, ...]``, spelled out over an explicit group axis."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *rest = x.shape
        grouped = x.reshape(b, self.groups, c // self.groups, *rest)
        dims = range(grouped.dim() - 1, 1, -1)
        centred = grouped - mean_in_steps(grouped, *dims)
        scale = torch.rsqrt(mean_in_steps(centred * centred, *dims) + self.eps)
        shape = (1, c, *[1] * len(rest))
        return (centred * scale).reshape(x.shape) * self.weight.view(shape) + self.bias.view(shape)


def spelled_norm(norm: nn.Module) -> nn.Module:
    """A group norm as means and products: engines differ in what they make of ``GroupNormalization``."""
    if isinstance(norm, TokenGroupNorm):
        return SteppedNorm(norm.weight, norm.bias, norm.eps, (2, 1))
    return GroupedNorm(norm) if isinstance(norm, nn.GroupNorm) else norm


def rewrite_layer(layer: EncoderLayer | DecoderLayer, enabled: Collection[str]) -> None:
    """Rewrites a layer in place: its norms, and of DConv, GLU and crop those that are ``enabled``.

    A transposed convolution with padding ``p`` is the unpadded one without its first and last ``p``
    outputs, so the crop costs nothing.
    """
    # A norm sees the uncropped output, so it pins the crop behind it.
    if isinstance(layer, DecoderLayer) and "crop" in enabled and isinstance(layer.norm2, nn.Identity):
        conv_tr = cast(nn.ConvTranspose2d, layer.conv_tr)
        conv_tr.padding, layer.crop = layer.shape.axes(layer.crop, 0), 0
    for name in ("norm1", "norm2"):
        if hasattr(layer, name):
            setattr(layer, name, spelled_norm(getattr(layer, name)))
    if layer.rewrite is not None:
        norm = getattr(layer, layer.glu_norm)
        split = "glu" in enabled and isinstance(norm, nn.Identity)
        layer.glu = SplitGLU(cast(nn.Conv2d, layer.rewrite)) if split else PlainGLU(layer.rewrite, norm)
        layer.rewrite = None
        delattr(layer, layer.glu_norm)
    dconv = getattr(layer, "dconv", None)
    if isinstance(dconv, DConv) and "dconv" in enabled:
        layer.dconv = DConv2d(dconv)
    elif isinstance(dconv, DConv):
        for inner in dconv.layers:
            for index, module in enumerate(cast(nn.Sequential, inner)):
                cast(nn.Sequential, inner)[index] = spelled_norm(module)
    if isinstance(layer, DecoderLayer):
        # The order in which graphs store parameters; kept, so that a checkpoint gives the same bytes as ever.
        for name in ("norm2", "conv_tr", "glu", "dconv"):
            if name in layer._modules:
                layer._modules[name] = layer._modules.pop(name)


class ConstantEmbedding(nn.Module):
    """``x + gain * (weight * scale)^T`` with the whole second term as one constant ``[1, C, F, 1]``."""

    def __init__(self, embedding: FrequencyEmbedding, gain: float, bins: int) -> None:
        super().__init__()
        table = gain * embedding.scale * embedding.embedding.weight.double()[:bins].t()
        self.term = nn.Parameter(table[None, :, :, None].float().contiguous(), requires_grad=False)

    def forward(self, x: Tensor, gain: float) -> Tensor:
        """``gain`` is that of the configuration, which the constant already holds."""
        return x + self.term
