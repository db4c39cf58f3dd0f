"""The fusing convolution as matrix products over blocks of time.

A convolution with few channels and a wide kernel is slow on every engine: its inner loops are as short as its
channels are few. Cut into blocks of ``N`` samples it is a matrix product. With ``w`` of ``N + 1`` taps and the
signal shifted by ``N / 2``, so that ``y[t] = sum_j w[j] x[t + j]``, sample ``r`` of block ``n`` is

    y[nN + r] = sum_j w[j] x[nN + r + j],    0 <= r + j < 2N,

which reaches into block ``n`` and block ``n + 1`` of ``x`` and no further:

    y_n = x_n A + x_(n+1) B,    A[u, r] = w[u - r],    B[u, r] = w[N + u - r]    (zero where there is no tap).

Channels and resolutions lie beside ``u``, output channels beside ``r``. Half of each matrix is zeros, so this
takes twice the products of the convolution, and a fifth of its time.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.fusion import CONV_WIDTH, ConvolutionFusion

BLOCK = CONV_WIDTH - 1
"""The shortest block for which two blocks hold all taps: a longer one has more zeros to multiply."""


class BlockedFusion(nn.Module):
    """:class:`ConvolutionFusion` in blocks: ``[B, S*C, K, L] -> [B, S*C, 1, L]``."""

    here: Tensor
    following: Tensor
    bias: Tensor

    def __init__(self, fusion: ConvolutionFusion) -> None:
        super().__init__()
        outputs, inputs, resolutions, width = fusion.weight.shape
        self.sources, self.channels = fusion.groups, inputs
        by_source = fusion.weight.detach().view(
            self.sources, outputs // self.sources, inputs, resolutions, width
        )
        taps = by_source.permute(0, 2, 3, 4, 1)  # [S, inputs, K, width, outputs]
        both = taps.new_zeros(self.sources, inputs, resolutions, 2 * BLOCK, taps.shape[-1], BLOCK)
        for r in range(BLOCK):
            both[:, :, :, r : r + width, :, r] = taps
        for name, half in zip(("here", "following"), torch.split(both, BLOCK, dim=3), strict=True):
            matrices = half.reshape(self.sources, inputs * resolutions * BLOCK, -1).contiguous()
            self.register_buffer(name, matrices)
        self.register_buffer("bias", cast(Tensor, fusion.bias).detach().view(-1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        b, _, resolutions, length = x.shape
        blocks = -(-length // BLOCK)
        left = BLOCK // 2
        x = F.pad(x, (left, (blocks + 1) * BLOCK - left - length))
        x = x.view(b, self.sources, self.channels * resolutions, blocks + 1, BLOCK)
        x = x.permute(0, 1, 3, 2, 4).reshape(b, self.sources, blocks + 1, -1)
        y = x[:, :, :-1] @ self.here + x[:, :, 1:] @ self.following
        y = y.view(b, self.sources, blocks, self.channels, BLOCK).permute(0, 1, 3, 2, 4)
        y = y.reshape(b, self.sources * self.channels, 1, blocks * BLOCK)[..., :length]
        return y + self.bias
