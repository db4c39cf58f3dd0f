"""Analysis and synthesis in torch, in any precision: what graphs and the host's transforms are checked against.

Spectrograms are complex-as-channels: ``[B, 2C, F, T]`` with (real, imaginary) adjacent for each audio channel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mrsep_deploy.bundle.manifest import Transform
from mrsep_deploy.transforms.spectrogram import envelope


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


def analyse(x: Tensor, transform: Transform) -> Tensor:
    """Short-time Fourier transform of ``[B, C, L]`` -> ``[B, 2C, F, T]``."""
    b, c, _ = x.shape
    n_fft, bins, frames = transform.n_fft, transform.bins, transform.frames
    if transform.padding == "reflect":
        x = reflect(x, transform.offset, transform.after)
    else:
        x = F.pad(x, (transform.offset, transform.after))
    z = torch.stft(
        x.flatten(0, 1), n_fft, transform.hop, window=_window(transform, x),
        normalized=transform.scale == "orthonormal", center=False, return_complex=True,
    )  # fmt: skip
    ri = torch.view_as_real(z[:, :bins, :frames]).view(b, c, bins, frames, 2)
    return ri.permute(0, 1, 4, 2, 3).reshape(b, 2 * c, bins, frames)


def synthesise(x: Tensor, transform: Transform, length: int) -> Tensor:
    """Inverse of :func:`analyse`: ``[..., 2C, F, T]`` -> ``[..., C, length]``."""
    *other, c2, bins, frames = x.shape
    ri = x.reshape(-1, 2, bins, frames)
    z = torch.complex(ri[:, 0], ri[:, 1])
    norm = "ortho" if transform.scale == "orthonormal" else "backward"
    pieces = torch.fft.irfft(z, transform.n_fft, dim=1, norm=norm) * _window(transform, x)[:, None]
    n_fft, hop = transform.n_fft, transform.hop
    total = F.fold(pieces, (1, transform.span), (1, n_fft), stride=(1, hop)).flatten(1)
    weights = torch.from_numpy(envelope(transform)[:length]).to(x)
    y = total[:, transform.lead : transform.lead + length] / weights
    return y.view(*other, c2 // 2, length)


def _window(transform: Transform, like: Tensor) -> Tensor:
    return torch.hann_window(transform.n_fft, dtype=like.dtype, device=like.device)
