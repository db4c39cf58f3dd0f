"""One graph serves every batch, and a part whose items depend on each other, or on their number, becomes none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.errors import ExportError
from mrsep_deploy.export.check import GraphChecker
from mrsep_deploy.export.graphs.trace import export_graph

Function = Callable[[Tensor], Tensor]


class Part(nn.Module):
    """A function as a stage computes it."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.offset = nn.Parameter(torch.arange(6.0))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.function(x) + self.offset,)


def exported(function: Function) -> bytes:
    return export_graph(Part(function), [torch.randn(1, 4, 6)], "part", (["a"], ["b"]))


def run(graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["b"], {"a": x})[0]
    return found


FUNCTIONS: dict[str, Function] = {
    "rows of items": lambda x: x.reshape(len(x) * 4, 6).softmax(-1).reshape(len(x), 4, 6),
    "items inside": lambda x: (
        (x.transpose(0, 1).reshape(2, 2 * len(x), 6) * 2).reshape(4, len(x), 6).transpose(0, 1)
    ),
    "flat and back": lambda x: x.flatten(1).cumsum(-1).reshape(len(x), 4, 6),
    "another size": lambda x: F.interpolate(x[:, None], size=(4, 6), mode="bilinear")[:, 0],
    "expanded": lambda x: x[:, :1].expand(len(x), 4, 6) * x,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_a_graph_serves_every_batch(function: Function) -> None:
    graph = exported(function)
    x = torch.randn(3, 4, 6)
    with torch.no_grad():
        exact = Part(function)(x)[0].numpy()
    np.testing.assert_allclose(run(graph, x.numpy()), exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(graph, x[1:2].numpy()), exact[1:2], rtol=1e-5, atol=1e-5)


def test_the_batch_has_a_name() -> None:
    session = ort.InferenceSession(exported(lambda x: x * 2), providers=["CPUExecutionProvider"])
    assert [end.shape for end in (*session.get_inputs(), *session.get_outputs())] == [["batch", 4, 6]] * 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + torch.zeros(len(x), 1, 1), "part computes with the number of items, in Expand"),
        (lambda x: x.sum(0, keepdim=True), "part has no axis of items.* at b"),
        (lambda x: x.transpose(0, 1), "part has no axis of items.* at b"),
    ],
)
def test_what_is_no_function_of_items_is_refused(function: Function, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        exported(function)


def test_items_that_mix_are_found() -> None:
    """The shapes say nothing of it: the check runs a batch of two."""
    x = torch.randn(1, 4, 6)
    stage = Stage("part", "graph", "shared", ("a",), ("b",))
    for function, mixes in ((lambda x: 2 * x, False), (lambda x: x + x.mean(0, keepdim=True), True)):
        with torch.no_grad():
            alone = Part(function)(x)[0]
        checker = GraphChecker({"a": x.double().numpy(), "b": alone.double().numpy()}, [stage], [], {})
        (found,) = checker.add(stage, exported(function))
        assert np.allclose(found, alone.numpy(), atol=1e-5) != mixes
