"""The transformer rewritten for export: separate projections, folded scales, positions as constants.

Every rewrite is algebra, not approximation; its docstring says which. Constants are worked out in
float64 and rounded to float32 once.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.attention import LinearAttention, SoftmaxAttention, split_heads
from mrsep_deploy.export.families.demucs.layers import LayerScale
from mrsep_deploy.export.families.demucs.transformer import (
    CrossTransformer,
    TransformerLayer,
    positions_1d,
    positions_2d,
)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach().clone().contiguous(), requires_grad=False)
    return linear


def _scaled(linear: nn.Linear, scale: nn.Module) -> nn.Linear:
    """``s * (W x + b) = (diag(s) W) x + s * b``."""
    if not isinstance(scale, LayerScale):
        return linear
    gain, dtype = scale.scale.double(), linear.weight.dtype
    weight, bias = gain[:, None] * linear.weight.double(), gain * linear.bias.double()
    return _linear(weight.to(dtype), bias.to(dtype))


class SeparateAttention(nn.Module):
    """:class:`SoftmaxAttention` with its packed projection cut into three.

    The rows of ``in_proj_weight`` are those of the queries, the keys and the values, so three linear
    layers give the same numbers and neither weights nor activations are sliced in the graph.
    """

    def __init__(self, attention: SoftmaxAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        projections = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in projections)
        self.out_proj = attention.out_proj

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        projected = (self.q(query), self.k(memory), self.v(memory))
        q, k, v = (split_heads(x, self.heads) for x in projected)
        out = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return y


class MeanAttention(nn.Module):
    """:class:`LinearAttention` with both of its sums over the ``N`` tokens divided by ``N``.

    ``phi(q) (phi(k)^T v) / (phi(q) (phi(k)^T 1) + eps)`` stays the same when numerator and divisor are divided by one
    number. Sums over a few thousand tokens leave float16's range, means do not. ``SCALE`` of the division is folded
    into the weights of ``v``, so that the product ``phi(k)^T v`` stays small too; a power of two, it rounds nothing.
    """

    SCALE = 64.0

    def __init__(self, attention: LinearAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.q, self.k, self.proj = attention.q, attention.k, attention.proj
        self.v = _linear(attention.v.weight / self.SCALE, attention.v.bias / self.SCALE)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        tokens = memory.shape[1]
        q = F.elu(split_heads(self.q(query), self.heads)) + 1
        k = F.elu(split_heads(self.k(memory), self.heads)) + 1
        v = split_heads(self.v(memory), self.heads)
        summary = (k.transpose(-1, -2) @ v) * (self.SCALE / tokens)
        out = (q @ summary) / (q @ k.mean(dim=-2)[..., None] + LinearAttention.eps / tokens)
        y: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return y


def fold_attention(layer: TransformerLayer) -> None:
    """Rewrite the attention of ``layer``, and fold its layer scales into the linear layers before them.

    A layer scale multiplies the output of a linear layer, ``out_proj`` or ``proj`` of the attention
    (``gamma_1``) and ``linear2`` (``gamma_2``), so it scales that layer's rows and bias.
    """
    name = "cross_attn" if layer.cross else "self_attn"
    attention: nn.Module = getattr(layer, name)
    if isinstance(attention, LinearAttention):
        attention = MeanAttention(attention)
        attention.proj = _scaled(attention.proj, layer.gamma_1)
    elif isinstance(attention, SoftmaxAttention):
        attention = SeparateAttention(attention)
        attention.out_proj = _scaled(attention.out_proj, layer.gamma_1)
    setattr(layer, name, attention)
    layer.linear2 = _scaled(layer.linear2, layer.gamma_2)
    layer.gamma_1, layer.gamma_2 = nn.Identity(), nn.Identity()


class ConstantPositions(nn.Module):
    """:class:`CrossTransformer` with its positions as constants instead of sines to compute.

    Time positions fill the first half of the channels and frequency positions the second, so the table
    ``[T, F, C]`` is the sum of ``[T, 1, C]`` and ``[1, F, C]``, each zero where the other is not.
    Kept apart they are small; adding zero is exact.

    Args:
        transformer: the original, whose norms and layers are used.
        channels: width of the tokens.
        bins, frames: size of the spectrogram that comes in.
        tokens: length of the waveform features, 0 if there are none.
    """

    def __init__(
        self, transformer: CrossTransformer, channels: int, bins: int, frames: int, tokens: int
    ) -> None:
        super().__init__()
        self.transformer = transformer
        gain, period = transformer.config.t_weight_pos_embed, transformer.config.t_max_period
        time = gain * positions_2d(1, frames, channels, period)
        time[:, channels // 2 :] = 0
        frequency = gain * positions_2d(bins, 1, channels, period)
        frequency[:, : channels // 2] = 0
        waveform = gain * positions_1d(tokens, channels, period)
        self.time = nn.Parameter(time[:, None], requires_grad=False)
        self.frequency = nn.Parameter(frequency[None], requires_grad=False)
        self.waveform = nn.Parameter(waveform, requires_grad=False)

    def forward(self, x: Tensor, xt: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``x`` ``[B, C, F, T]`` and ``xt`` ``[B, C, N]``; both come back in their shapes."""
        b, c, f, t = x.shape
        x = self.transformer.norm_in(x.permute(0, 3, 2, 1).reshape(b, t * f, c))
        x = x + (self.time + self.frequency).view(t * f, c)
        if xt is not None:
            xt = self.transformer.norm_in_t(xt.transpose(1, 2)) + self.waveform
        x, xt = self.transformer.run_layers(x, xt)
        x = x.view(b, t, f, c).permute(0, 3, 2, 1)
        return x, None if xt is None else xt.transpose(1, 2)
