"""Attention over token sequences ``[B, N, C]``: softmax with packed weights, and linear.

Softmax attention keeps the parameter names of ``torch.nn.MultiheadAttention`` (``in_proj_weight``,
``in_proj_bias``, ``out_proj``); linear attention has ``q``, ``k``, ``v`` and ``proj``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, N, C] -> [B, heads, N, C / heads]``."""
    b, n, c = x.shape
    return x.view(b, n, heads, c // heads).transpose(1, 2)


class SoftmaxAttention(nn.Module):
    """Scaled dot-product attention of queries ``[B, N, C]`` over memory ``[B, M, C]``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        c = query.shape[-1]
        if query is memory:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            q = F.linear(query, self.in_proj_weight[:c], self.in_proj_bias[:c])
            k, v = F.linear(memory, self.in_proj_weight[c:], self.in_proj_bias[c:]).chunk(2, dim=-1)
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return y


class LinearAttention(nn.Module):
    """Kernel attention, ``phi(q) (phi(k)^T v) / (phi(q) (phi(k)^T 1) + 1e-6)`` with ``phi = elu + 1``.

    Cost grows with the number of tokens, not its square (Katharopoulos et al. 2020).
    """

    eps = 1e-6

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        q = F.elu(split_heads(self.q(query), self.heads)) + 1
        k = F.elu(split_heads(self.k(memory), self.heads)) + 1
        v = split_heads(self.v(memory), self.heads)
        summary = k.transpose(-1, -2) @ v
        total = k.sum(dim=-2)[..., None]
        out = (q @ summary) / (q @ total + self.eps)
        y: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return y
