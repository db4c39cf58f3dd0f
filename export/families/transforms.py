"""Analysis and synthesis in torch, as the families define them (the exported bundle has its own).

Spectrograms are complex-as-channels: ``[B, 2C, F, T]`` with (real, imaginary) adjacent for each
audio channel, ``F = n_fft / 2`` bins (the Nyquist bin is dropped) and ``T = ceil(L / hop)`` frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def frame_layout(n_fft: int, hop: int) -> tuple[int, int, int]:
    """Reflection on the left in samples, frames dropped before and after (see :func:`analyse`)."""
    return (3 * (hop // 2), 2, 2) if hop * 4 == n_fft else (hop, 1, 2)


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Reflect-pad the last axis; a signal shorter than the padding first gets zeros, right side first."""
    length = x.shape[-1]
    longest = max(left, right)
    if length <= longest:
        extra = longest - length + 1
        extra_right = min(right, extra)
        extra_left = extra - extra_right
        left, right = left - extra_left, right - extra_right
        x = F.pad(x, (extra_left, extra_right))
    return F.pad(x, (left, right), mode="reflect")


def analyse(x: Tensor, n_fft: int, hop: int) -> Tensor:
    """Short-time Fourier transform of ``[B, C, L]`` -> ``[B, 2C, n_fft/2, ceil(L/hop)]``."""
    b, c, length = x.shape
    frames = math.ceil(length / hop)
    pad, skip, _ = frame_layout(n_fft, hop)
    x = reflect(x, pad, pad + frames * hop - length)
    window = torch.hann_window(n_fft, dtype=x.dtype, device=x.device)
    z = torch.stft(
        x.flatten(0, 1), n_fft, hop, window=window, normalized=True, center=True, return_complex=True
    )
    z = z[:, :-1, skip : skip + frames]
    ri = torch.view_as_real(z).view(b, c, n_fft // 2, frames, 2)
    return ri.permute(0, 1, 4, 2, 3).reshape(b, 2 * c, n_fft // 2, frames)


def synthesise(x: Tensor, n_fft: int, hop: int, length: int) -> Tensor:
    """Inverse of :func:`analyse`: ``[..., 2C, F, T]`` -> ``[..., C, length]``."""
    *other, c2, bins, frames = x.shape
    ri = x.reshape(-1, 2, bins, frames)
    z = torch.complex(ri[:, 0], ri[:, 1])
    pad, before, after = frame_layout(n_fft, hop)
    z = F.pad(F.pad(z, (0, 0, 0, 1)), (before, after))
    window = torch.hann_window(n_fft, dtype=x.dtype, device=x.device)
    y = torch.istft(z, n_fft, hop, window=window, normalized=True, center=True, length=hop * frames + 2 * pad)
    return y[..., pad : pad + length].view(*other, c2 // 2, length)
