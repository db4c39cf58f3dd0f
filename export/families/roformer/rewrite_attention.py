"""Attention in the form that engines fuse, with constant rotations.

Rotary embedding turns pairs of neighbouring numbers of queries and keys, ``(x[2i], x[2i+1])``. Their product does not
change if the numbers of both are put in another order, the same for both; so the rows of the layers that compute them
are: first all ``x[2i]``, then all ``x[2i+1]``, and the rotation is of two halves, without a stride of two. Queries,
keys and values come from three layers, because a split of one result would stand between them and the attention.

The gain of a norm, one factor for each number of a token, is folded into the columns of the linear layers behind it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.roformer.layers import (
    Attention,
    FeedForward,
    RMSNorm,
    RotaryEmbedding,
    unit,
)


class Unit(nn.Module):
    """A norm whose gain is folded into what follows."""

    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


class Rotation(nn.Module):
    """Tokens ``[N, H, T, d]`` whose halves are rotated by constant tables ``[T, d/2]``."""

    def __init__(self, rotary: RotaryEmbedding, tokens: int) -> None:
        super().__init__()
        for name, table in zip(("cos", "sin"), rotary.tables(tokens), strict=True):
            self.register_buffer(name, table.to(rotary.freqs.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos, self.sin
        assert isinstance(cos, Tensor)
        assert isinstance(sin, Tensor)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class ConstantAttention(nn.Module):
    """What an :class:`Attention` computes, for a known number of tokens."""

    def __init__(self, attention: Attention, tokens: int) -> None:
        super().__init__()
        self.norm, self.to_gates, self.to_out = attention.norm, attention.to_gates, attention.to_out
        self.split, self.gated = attention.split, attention.gated
        self.rotary_embed = Rotation(attention.rotary_embed, tokens)
        weights = attention.to_qkv.weight.chunk(3)
        self.to_q, self.to_k = (_linear(_halves(weight, attention.heads)) for weight in weights[:2])
        self.to_v = _linear(weights[2])

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, D]`` -> ``[N, T, D]``."""
        x = self.norm(x)
        q, k = (self.rotary_embed(self.split(layer(x))) for layer in (self.to_q, self.to_k))
        found = F.scaled_dot_product_attention(q, k, self.split(self.to_v(x)))
        return self.gated(found, self.to_gates(x))


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows ``[H d, D]`` with the even ones of each head before its odd ones."""
    rows = torch.unflatten(weight, 0, (heads, -1))
    return torch.cat([rows[:, ::2], rows[:, 1::2]], dim=1).flatten(0, 1)


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):  # initialising it costs more than what follows
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def fold_gain(part: Attention | ConstantAttention | FeedForward) -> None:
    """Folds the gain of a part's norm into the linear layers that read it, in place."""
    if isinstance(part, FeedForward):
        norm, readers = part.net[0], [part.net[1]]
        part.net[0] = Unit()
    else:
        norm = part.norm
        names = ("to_qkv", "to_q", "to_k", "to_v", "to_gates")
        readers = [getattr(part, name) for name in names if hasattr(part, name)]
        part.norm = Unit()  # type: ignore[assignment]
    assert isinstance(norm, RMSNorm)
    scale(readers, norm.gamma)


def scale(readers: Iterable[nn.Module], gain: Tensor) -> None:
    """Multiplies the columns of linear layers by a gain, in place."""
    for reader in readers:
        assert isinstance(reader, nn.Linear)
        reader.weight = nn.Parameter(reader.weight * gain)
