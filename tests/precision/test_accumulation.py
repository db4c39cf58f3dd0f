"""Products that accumulate in float16, against sums that NumPy rounds block by block; bit for bit.

Operands are integers, so that the sum of a block is exact in float32, whatever its order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mrsep_deploy.precision.emulate import rounded_graph
from mrsep_deploy.precision.names import Accumulation

Array = NDArray[Any]
LOUD = 60
"""Largest operand whose sums exceed 2,048, from where float16 rounds integers."""


def product(kind: str, x: Array, second: Array | None, *constants: Array, **attributes: Any) -> bytes:
    """A graph in float16 of one product: of ``x`` and, if it is given, a second computed tensor, and of constants.

    With ``transA``, the transposed ``x`` is multiplied: the first dimension of inputs is that of the batch.
    """
    names = ["x"] if second is None else ["x", "y"]
    made = [numpy_helper.from_array(each, f"c{index}") for index, each in enumerate(constants)]
    inputs = [*names, *(each.name for each in made)]
    nodes = [helper.make_node(kind, inputs, ["out"], name="product", **attributes)]
    if attributes.get("transA"):
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["turned"], name="turned"))
        nodes[1].input[0] = "turned"
    low = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    ends = [
        helper.make_tensor_value_info(name, low, value.shape)
        for name, value in zip(names, (x, second), strict=False)
        if value is not None
    ]
    out = helper.make_tensor_value_info("out", low, None)
    graph = helper.make_graph(nodes, "test", ends, [out], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def run(data: bytes, *inputs: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return found


def summed(terms: Array, block: int) -> Array:
    """Sums the last two dimensions of terms, (steps, terms of a step), ``block`` steps at a time."""
    total = np.zeros(terms.shape[:-2], np.float16)
    for start in range(0, terms.shape[-2], block):
        part = terms[..., start : start + block, :].astype(np.float64).sum(axis=(-1, -2))
        total = (total.astype(np.float32) + part.astype(np.float32)).astype(np.float16)
    return total


def of_matrices(a: Array, b: Array) -> Array:
    """Terms of a matrix product."""
    return (a.astype(float)[..., :, None, :] * np.swapaxes(b, -1, -2).astype(float)[..., None, :, :])[
        ..., None
    ]


def of_convolution(x: Array, kernel: Array, groups: int = 1, stride: int = 1, pad: int = 0) -> Array:
    """Terms of a convolution of ``[B, C, L]``."""
    x = np.pad(x.astype(float), ((0, 0), (0, 0), (pad, pad)))
    outputs, channels, taps = kernel.shape
    length = (x.shape[-1] - taps) // stride + 1
    terms = np.zeros((len(x), outputs, length, channels, taps))
    for o in range(outputs):
        first = o // (outputs // groups) * channels
        for t in range(length):
            read = x[:, first : first + channels, t * stride : t * stride + taps]
            terms[:, o, t] = read * kernel[o].astype(float)
    return terms


def of_transposed(x: Array, kernel: Array, groups: int = 1, stride: int = 1, pad: int = 0) -> Array:
    """Terms of a transposed convolution of ``[B, C, L]``."""
    inputs, each, taps = kernel.shape
    channels, length = inputs // groups, (x.shape[-1] - 1) * stride + taps
    x, terms = x.astype(float), np.zeros((len(x), each * groups, length, channels, taps))
    for o in range(each * groups):
        group = o // each
        for c in range(channels):
            for t in range(x.shape[-1]):
                for tap in range(taps):
                    factor = float(kernel[group * channels + c, o % each, tap])
                    terms[:, o, t * stride + tap, c, tap] = x[:, group * channels + c, t] * factor
    return terms[:, :, pad : length - pad] if pad else terms


@dataclass(frozen=True)
class Case:
    """A product by its operands' shapes, and how many steps of its sum the hardware adds at a time."""

    kind: str
    x: tuple[int, ...]
    other: tuple[int, ...]
    block: int
    terms: Callable[..., Array] = of_matrices
    computed: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    loud: int = LOUD


def convolution(x: tuple[int, ...], kernel: tuple[int, ...], block: int, **attributes: Any) -> Case:
    return Case("Conv", x, kernel, block, of_convolution, attributes=attributes)


def transposed(x: tuple[int, ...], kernel: tuple[int, ...], block: int, **attributes: Any) -> Case:
    return Case("ConvTranspose", x, kernel, block, of_transposed, attributes=attributes)


CASES = {
    "matrices": Case("MatMul", (1, 5, 70), (70, 4), 16),
    "long": Case("MatMul", (1, 2, 2100), (2100, 3), 33, loud=20),  # 64 blocks at most
    "short": Case("MatMul", (1, 2, 16), (16, 3), 16),
    "computed": Case("MatMul", (1, 3, 5, 70), (1, 3, 70, 4), 16, computed=True),
    "linear": convolution((2, 48, 9), (6, 48, 1), 16),
    "kernel of three": convolution((2, 20, 9), (5, 20, 3), 6, pads=[1, 1]),
    "kernel of eight": convolution((1, 5, 40), (3, 5, 8), 2, strides=[4]),
    "one channel": convolution((1, 1, 60), (3, 1, 33), 1),
    "groups": convolution((2, 60, 9), (4, 30, 1), 16, group=2),
    "depthwise": convolution((1, 6, 9), (6, 1, 3), 1, group=6, pads=[1, 1]),
    "transposed": transposed((1, 40, 5), (40, 3, 8), 8, strides=[4]),
    "transposed and cut": transposed((1, 40, 5), (40, 3, 8), 8, strides=[4], pads=[2, 2]),
    "transposed in groups": transposed((2, 72, 3), (72, 2, 4), 8, strides=[2], group=2),
}


def integers(shape: tuple[int, ...], largest: int, seed: int) -> Array:
    values = np.random.default_rng(seed).integers(-largest, largest + 1, shape)
    return values.astype(np.float16)


def operands(case: Case, largest: int) -> tuple[Array, Array]:
    return integers(case.x, largest, 1), integers(case.other, largest, 2)


def emulated(
    case: Case, x: Array, other: Array, *bias: Array, accumulation: Accumulation = "float16"
) -> Array:
    second = (other,) if case.computed else ()
    constants = () if case.computed else (other,)
    data = product(case.kind, x, *(second or (None,)), *constants, *bias, **case.attributes)
    return run(rounded_graph(data, accumulation), x, *second)


def expected(case: Case, x: Array, other: Array, block: int) -> Array:
    known = case.attributes
    if case.terms is of_matrices:
        return summed(of_matrices(x, other), block)
    options = (known.get("group", 1), known.get("strides", [1])[0], known.get("pads", [0])[0])
    return summed(case.terms(x, other, *options), block)


@pytest.mark.parametrize("name", CASES)
def test_sums_are_rounded_block_by_block(name: str) -> None:
    case = CASES[name]
    x, other = operands(case, case.loud)
    np.testing.assert_array_equal(emulated(case, x, other), expected(case, x, other, case.block))


@pytest.mark.parametrize("name", ["matrices", "long", "computed", "linear", "groups", "transposed"])
def test_these_sums_show_the_difference(name: str) -> None:
    """Without it, the test above could not fail for a block of the wrong size."""
    case = CASES[name]
    x, other = operands(case, case.loud)
    found = emulated(case, x, other)
    for block in (case.block - 1, case.block + 1, 10**6):
        assert np.any(found != expected(case, x, other, block))


@pytest.mark.parametrize("name", CASES)
def test_where_nothing_rounds_the_blocks_are_the_whole(name: str) -> None:
    case = CASES[name]
    x, other = operands(case, 3)
    found = emulated(case, x, other)
    assert np.abs(found).max() < 2048
    np.testing.assert_array_equal(found, expected(case, x, other, 10**6))
    np.testing.assert_array_equal(found, emulated(case, x, other, accumulation="float32"))


@pytest.mark.parametrize("name", ["linear", "one channel", "groups", "transposed"])
def test_the_bias_is_added_in_float32_before_the_last_rounding(name: str) -> None:
    case = CASES[name]
    x, other = operands(case, case.loud)
    channels = case.other[1] if case.kind == "ConvTranspose" else case.other[0]
    bias = integers((channels,), 5000, 3)
    total = expected(case, x, other, case.block).astype(np.float32) + bias.astype(np.float32)[:, None]
    found = emulated(case, x, other, bias)
    np.testing.assert_array_equal(found, total.astype(np.float16))


@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm_scales_the_sum_and_the_bias(turned: tuple[int, int]) -> None:
    a, b, bias = integers((7, 50), LOUD, 1), integers((50, 3), LOUD, 2), integers((3,), 900, 3)
    weight = b.T.copy() if turned[1] else b
    attributes = {"transA": turned[0], "transB": turned[1], "alpha": 0.5, "beta": 2.0}
    data = product("Gemm", a, None, weight, bias, **attributes)
    total = 0.5 * summed(of_matrices(a, b), 16).astype(np.float32) + 2 * bias.astype(np.float32)
    np.testing.assert_array_equal(run(rounded_graph(data, "float16"), a), total.astype(np.float16))


@pytest.mark.parametrize("second", [True, False])
def test_vectors_are_multiplied_too(second: bool) -> None:
    a, b = integers((1, 2, 60) if second else (60,), LOUD, 1), integers((60,) if second else (60, 4), LOUD, 2)
    data = product("MatMul", a[0] if second else a[None], None, b)
    found = run(rounded_graph(data, "float16"), a[0] if second else a[None])
    terms = of_matrices(a[0] if second else a[None], b[:, None] if second else b)
    np.testing.assert_array_equal(found.ravel(), summed(terms, 16).ravel())


def test_a_sum_that_leaves_the_range_in_between_is_found() -> None:
    x = np.ones((1, 64), np.float16)
    weight = np.repeat(np.array([3000, -3000], np.float16), 32)[:, None]
    weight[0] += 8
    data = product("MatMul", x, None, weight)
    assert run(rounded_graph(data), x).item() == 8
    assert not np.isfinite(run(rounded_graph(data, "float16"), x)).any()


def test_terms_too_small_for_the_sum_are_lost() -> None:
    ones, small = 4096, 1024
    x = np.ones((1, ones + small), np.float16)
    weight = np.concatenate((np.ones(ones), np.full(small, 2.0**-6))).astype(np.float16)[:, None]
    data = product("MatMul", x, None, weight)
    assert run(rounded_graph(data), x).item() == ones + small / 64
    assert run(rounded_graph(data, "float16"), x).item() == ones


def test_bfloat16_accumulates_in_float32_alone() -> None:
    matrix = numpy_helper.from_array(np.ones((64, 2), np.float32), "w")
    weight = TensorProto()
    weight.CopyFrom(matrix)
    weight.data_type = TensorProto.BFLOAT16
    weight.raw_data = (np.ones((64, 2), np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    ends = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, size])
        for name, size in (("x", 64), ("y", 2))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], "test", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    data = model.SerializeToString()
    assert rounded_graph(data, "float16") == rounded_graph(data, "float32")
