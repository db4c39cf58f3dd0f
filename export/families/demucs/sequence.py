"""What the innermost DConvs of HDemucs and Demucs have besides convolutions: an LSTM and a local attention.

Parameter names are those of the published checkpoints. Features are ``[B, C, T]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.demucs.layer_config import HEADS

DECAYS = 4
"""Penalties that each query of a local attention weighs (the published value)."""

DIRECTIONS = ("", "_reverse")
"""What the names of an LSTM's parameters end in: forwards and backwards in time."""

OWN_SCORE = -100.0
"""What a frame scores with itself, before the softmax (the published value)."""


class BiLSTM(nn.Module):
    """LSTM layers in both directions, then a linear layer back to ``C`` channels.

    Args:
        channels: ``C``, also of the LSTM's state.
        layers: how many.
        longest: frames that the LSTM runs over at once. Longer features are cut into windows of that many, one
            every half window, the last ones filled up with zeros; of each the middle half is kept.
        residual: whether the input is added to the result.
    """

    def __init__(
        self, channels: int, layers: int, longest: int | None = None, residual: bool = False
    ) -> None:
        super().__init__()
        self.longest, self.residual = longest, residual
        self.lstm: nn.Module = LSTM(channels, layers)
        self.linear = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        windowed = self.longest is not None and x.shape[-1] > self.longest
        y = joined(self._run(cut(x, self.longest)), x.shape) if windowed and self.longest else self._run(x)
        return x + y if self.residual else y

    def _run(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.lstm(x.permute(2, 0, 1)))
        return y.permute(1, 2, 0)


class LSTM(nn.Module):
    """Layers of an LSTM in both directions, ``[T, B, C] -> [T, B, 2C]``, with the parameters of ``torch.nn.LSTM``."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.channels, self.count = channels, layers
        for layer in range(layers):
            for suffix in DIRECTIONS:
                for name, shape in (
                    ("weight_ih", (4 * channels, channels * (2 if layer else 1))),
                    ("weight_hh", (4 * channels, channels)),
                    ("bias_ih", (4 * channels,)),
                    ("bias_hh", (4 * channels,)),
                ):
                    drawn = (2 * torch.rand(shape) - 1) * channels**-0.5
                    self.register_parameter(f"{name}_l{layer}{suffix}", nn.Parameter(drawn))

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(2 * self.count, x.shape[1], self.channels)
        y, _, _ = torch.lstm(
            x, (state, state), list(self.parameters()), True, self.count, 0.0, False, True, False
        )
        return y


def cut(x: Tensor, width: int) -> Tensor:
    """Windows of ``width`` frames of ``[B, C, T]``, one every half window: ``[B * windows, C, width]``."""
    hop = width // 2
    windows = -(-x.shape[-1] // hop)
    x = F.pad(x, (0, (windows - 1) * hop + width - x.shape[-1]))
    pieces = [x[..., start * hop : start * hop + width] for start in range(windows)]
    return torch.stack(pieces, dim=1).flatten(0, 1)


def joined(y: Tensor, shape: torch.Size) -> Tensor:
    """The middles of windows that :func:`cut` made of ``[B, C, T]``, in a row; at both ends all there is."""
    frames, width = shape[-1], y.shape[-1]
    hop, margin = width // 2, width // 4
    windows = -(-frames // hop)
    y = y.reshape(shape[0], windows, shape[1], width)
    middle = y[:, 1:-1, :, margin:-margin].permute(0, 2, 1, 3).flatten(2)
    whole = torch.cat([y[:, 0, :, :-margin], middle, y[:, -1, :, margin:]], dim=-1)
    return whole[..., :frames]


class LocalAttention(nn.Module):
    """Attention over frames, from content and a learnt penalty on distance: ``x + proj(softmax(scores) content)``.

    Frame ``s`` scores frame ``t`` with

        q_s k_t / sqrt(C / H) - |t - s| sum_f (f / sqrt(D)) sigmoid(d_(f,s)) / 2,    f = 1 .. D,

    and itself with ``OWN_SCORE``. All penalties grow with the same distance, so that they are summed first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.content, self.query, self.key, self.proj = (nn.Conv1d(channels, channels, 1) for _ in range(4))
        self.query_decay = nn.Conv1d(channels, HEADS * DECAYS, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, channels, frames = x.shape
        query, key, content = (
            layer(x).view(b, HEADS, channels // HEADS, frames)
            for layer in (self.query, self.key, self.content)
        )
        decay = torch.sigmoid(self.query_decay(x)).view(b, HEADS, DECAYS, frames)
        factors = torch.arange(1, DECAYS + 1, device=x.device, dtype=x.dtype) / (2 * DECAYS**0.5)
        slope = (decay * factors[:, None]).sum(2, keepdim=True).transpose(2, 3)  # [B, H, s, 1]
        place = torch.arange(frames, device=x.device, dtype=x.dtype)
        distance = (place[:, None] - place).abs()  # [s, t]
        scores = query.transpose(2, 3) @ key * (1 / query.shape[2] ** 0.5) - slope * distance
        # Zero for a frame and itself, one elsewhere: no mask of booleans, which engines build in many ways.
        others = distance.clamp(max=1)
        weights = torch.softmax(scores * others + OWN_SCORE * (1 - others), dim=-1)
        result = (weights @ content.transpose(2, 3)).transpose(2, 3).flatten(1, 2)
        y: Tensor = x + self.proj(result)
        return y
