"""Linear attention in float16 at its full length: the divisor is a sum over thousands of tokens, beyond 65,504."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrsep_deploy.export.families.demucs.attention import LinearAttention
from mrsep_deploy.export.graphs.trace import export_graph
from mrsep_deploy.precision.convert_graph import StageGraph, typed_graph
from mrsep_deploy.precision.emulate import rounded_graph
from mrsep_deploy.precision.plan import default_plan

TOKENS = 4000
"""A segment of 8 s has 3,448; the goldens' 64 are too few to overflow."""
LARGEST = 65504.0


class Attending(nn.Module):
    """Linear attention of tokens ``[B, N, C]`` over themselves, as a stage."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = LinearAttention(channels, heads)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.attention(tokens, tokens),)


def run(data: bytes, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"tokens": tokens})[0]
    return found


@pytest.mark.parametrize(("channels", "heads"), [(192, 8), (384, 8), (512, 8)])
def test_the_divisor_does_not_overflow(channels: int, heads: int) -> None:
    torch.manual_seed(0)
    module = Attending(channels, heads).eval()
    tokens = torch.randn(1, TOKENS, channels)
    attention = module.attention
    with torch.no_grad():
        q, k = (
            nn.functional.elu(linear(tokens)).add(1).view(1, TOKENS, heads, -1)
            for linear in (attention.q, attention.k)
        )
        divisor = torch.einsum("bnhc,bhc->bnh", q, k.sum(1))
    assert float(divisor.max()) > LARGEST, "as in a model of the published size"
    data = export_graph(module, [tokens], "attention", (["tokens"], ["out"]))
    low = typed_graph(StageGraph(data, "attention"), default_plan("float16", ()))
    exact, found = run(data, tokens.numpy()), run(rounded_graph(low.data), tokens.numpy())
    snr = 10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum())
    assert snr > 55, "what a rounding to 11 bits before and after each product leaves"
