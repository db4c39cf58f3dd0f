"""The layers of both models, with the parameter names of the published classes.

Shapes: ``N`` items, ``T`` tokens, ``D`` width of a token, ``H`` heads of ``d`` numbers each.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_NORM = 1e-12
"""A vector is divided by its length or by this, whichever is more (as ``torch.nn.functional.normalize``)."""

ROTATION_BASE = 10_000.0


def unit(x: Tensor) -> Tensor:
    """``x`` over its root mean square along the last axis: ``sqrt(D) x / |x|``.

    One factor a vector, which is then broadcast: ``normalize`` would be exported with an Expand to the size of ``x``.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    factor: Tensor = x.shape[-1] ** 0.5 / length.clamp(min=LEAST_NORM)
    return x * factor


class RMSNorm(nn.Module):
    """``gamma`` times :func:`unit`."""

    untrained = 1.0
    """What models without trained weights have for ``gamma``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return unit(x) * self.gamma


class RotaryEmbedding(nn.Module):
    """Frequencies of a rotation, ``10000^(-2i/d)`` in radians a token; checkpoints store them with every attention.

    Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".
    """

    def __init__(self, dim_head: int) -> None:
        super().__init__()
        self.untrained = ROTATION_BASE ** (-np.arange(0, dim_head, 2) / dim_head)
        self.freqs = nn.Parameter(torch.from_numpy(self.untrained).float())

    def tables(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[T, d/2]`` in float64: an angle of hundreds of radians has few digits in float32."""
        angles = torch.arange(tokens, device=self.freqs.device)[:, None] * self.freqs.double()
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[N, H, T, d]``, each pair of neighbouring numbers rotated by its angle."""
        cos, sin = (table.to(x.dtype) for table in self.tables(x.shape[-2]))
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Attention over rotated queries and keys; a sigmoid of the token weighs each head's result."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.rotary_embed = RotaryEmbedding(dim_head)
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_gates = nn.Linear(dim, heads)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, D]`` -> ``[N, T, D]``."""
        x = self.norm(x)
        q, k, v = (self.split(each) for each in self.to_qkv(x).chunk(3, dim=-1))
        q, k = self.rotary_embed(q), self.rotary_embed(k)
        return self.gated(F.scaled_dot_product_attention(q, k, v), self.to_gates(x))

    def split(self, x: Tensor) -> Tensor:
        """``[N, T, H d]`` -> ``[N, H, T, d]``."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def gated(self, found: Tensor, gates: Tensor) -> Tensor:
        """Heads ``[N, H, T, d]`` and their gates ``[N, T, H]`` -> ``[N, T, D]``."""
        weighed = found.transpose(1, 2) * gates.sigmoid()[..., None]
        out: Tensor = self.to_out(weighed.flatten(2))
        return out


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = 4 * dim
        # places of the published sequence, whose dropouts do nothing here
        self.net = nn.Sequential(
            RMSNorm(dim),
            nn.Linear(dim, inner),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(inner, dim),
            nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Transformer(nn.Module):
    """Attention and feed-forward layers in turn, each added to what it reads; a last norm in the Mel-Band model."""

    def __init__(self, dim: int, depth: int, heads: int, dim_head: int, norm: bool) -> None:
        super().__init__()
        layers = (nn.ModuleList([Attention(dim, heads, dim_head), FeedForward(dim)]) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, D]`` -> ``[N, T, D]``."""
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            for part in layer:
                x = x + part(x)
        return x if self.norm is None else self.norm(x)
