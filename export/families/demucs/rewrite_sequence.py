"""LSTMs rewritten for export: one ONNX operator for each layer, which engines have a kernel, or a loop, for.

PyTorch keeps the gates of an LSTM as (input, forget, cell, output), ONNX as (input, output, forget, cell); both keep
two biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrsep_deploy.export.families.demucs.sequence import DIRECTIONS, LSTM, BiLSTM

TO_ONNX = (0, 3, 1, 2)
"""PyTorch's gates in the order of ONNX; and ``FROM_ONNX`` the other way round."""
FROM_ONNX = (0, 2, 3, 1)


class LSTMLayer(nn.Module):
    """One layer of an LSTM in both directions, ``[T, B, I] -> [T, B, 2C]``, with ONNX's parameters.

    Args:
        lstm: the layers.
        index: which of them.
    """

    def __init__(self, lstm: LSTM, index: int) -> None:
        super().__init__()
        named = dict(lstm.named_parameters())

        def stacked(name: str) -> Tensor:
            both = (reordered(named[f"{name}_l{index}{suffix}"], TO_ONNX) for suffix in DIRECTIONS)
            return torch.stack(list(both)).detach()

        self.channels = lstm.channels
        self.weight = nn.Parameter(stacked("weight_ih"), requires_grad=False)  # [2, 4C, I]
        self.recurrence = nn.Parameter(stacked("weight_hh"), requires_grad=False)  # [2, 4C, C]
        biases = torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1)
        self.bias = nn.Parameter(biases, requires_grad=False)  # [2, 8C]

    def forward(self, x: Tensor) -> Tensor:
        frames, items, _ = x.shape
        if torch.compiler.is_exporting():
            y = torch.onnx.ops.symbolic(
                "LSTM",
                (x, self.weight, self.recurrence, self.bias),
                {"hidden_size": self.channels, "direction": "bidirectional"},
                dtype=x.dtype,
                shape=(frames, 2, items, self.channels),
            )
            return y.transpose(1, 2).flatten(2)
        state = x.new_zeros(2, items, self.channels)
        weights = []
        for parts in zip(self.weight, self.recurrence, *self.bias.chunk(2, dim=1), strict=True):
            weights += [reordered(part, FROM_ONNX).contiguous() for part in parts]
        y, _, _ = torch.lstm(x, (state, state), weights, True, 1, 0.0, False, True, False)
        return y


def reordered(gates: Tensor, order: tuple[int, ...]) -> Tensor:
    """Four gates in a row, ``[4C, ...]``, in another order."""
    parts = gates.chunk(4)
    return torch.cat([parts[index] for index in order])


def rewrite_lstm(module: BiLSTM) -> None:
    """Rewrites the layers of an LSTM in place."""
    lstm = module.lstm
    if isinstance(lstm, LSTM):
        module.lstm = nn.Sequential(*(LSTMLayer(lstm, index) for index in range(lstm.count)))
