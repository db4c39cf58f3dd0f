"""Means in steps: the same means, in an order that no engine makes worse."""

from __future__ import annotations

import itertools

import pytest
import torch

from mrsep_deploy.export.families.demucs.rewrite_layers import CHUNK, LONG_AXIS, mean_in_steps

SHORT = (2, 3, 5, 7)


@pytest.mark.parametrize("dims", [(3,), (3, 1), (3, 2, 1), (1, 3)])
@pytest.mark.parametrize("length", [7, LONG_AXIS, LONG_AXIS + 1, 20 * CHUNK, 21499])
def test_they_are_the_means(length: int, dims: tuple[int, ...]) -> None:
    """Also of an axis that is cut in chunks, whether they come out even or not."""
    x = torch.randn(2, 3, 2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    torch.testing.assert_close(mean_in_steps(x, *dims), x.mean(dims, keepdim=True), rtol=1e-13, atol=0)


def test_a_long_axis_may_be_any() -> None:
    x = torch.randn(1, LONG_AXIS + 9, 3, dtype=torch.float64)
    torch.testing.assert_close(mean_in_steps(x, 2, 1), x.mean((2, 1), keepdim=True))


@pytest.mark.parametrize("shape", [SHORT, (1, 4, 2, LONG_AXIS + 1)])
def test_no_engine_finds_two_equal_reductions_in_a_row(shape: tuple[int, ...]) -> None:
    """OpenVINO makes one of them, with a single accumulator over all axes; that costs 40 dB."""

    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mean_in_steps(x, 3, 2, 1)

    program = torch.export.export(Means(), (torch.ones(shape),))
    kinds = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len([kind for kind in kinds if "mean" in kind or "sum" in kind]) >= 3
    for first, second in itertools.pairwise(kinds):
        assert not ("mean" in first and "mean" in second)
        assert not ("sum" in first and "sum" in second)
