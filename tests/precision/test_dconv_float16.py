"""DConv's second norm in float16, of features that hardly move: what is exported cancels no large terms."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrsep_deploy.export.families.demucs.layers import DConv
from mrsep_deploy.export.families.demucs.rewrite_layers import DConvLayer
from mrsep_deploy.export.graphs.trace import export_graph
from mrsep_deploy.precision.convert_graph import StageGraph, typed_graph
from mrsep_deploy.precision.emulate import rounded_graph
from mrsep_deploy.precision.plan import default_plan


class Residual(nn.Module):
    """What a DConv layer adds to its input ``[B, C, F, T]``, as a stage."""

    def __init__(self) -> None:
        super().__init__()
        layer = DConv(16, 1, 4).layers[0]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        self.layer = DConvLayer(cast(nn.Sequential, layer))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x) - x,)


def run(data: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("spread", [1.0, 0.03, 0.003])
def test_still_features_keep_their_digits(spread: float) -> None:
    torch.manual_seed(0)
    still = torch.randn(1, 16, 4, 1)
    x = still + spread * torch.randn(1, 16, 4, 64)
    data = export_graph(Residual().eval(), [x], "dconv", (["x"], ["y"]))
    low = typed_graph(StageGraph(data, "dconv"), default_plan("float16", ()))
    exact, found = run(data, x.numpy()), run(rounded_graph(low.data), x.numpy())
    snr = 10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum())
    assert snr > 66, "with the constant part inside the convolution it is 65"
