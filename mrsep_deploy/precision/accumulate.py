"""Products that accumulate in float16, written as a graph: the worst that a GPU may do with float16 operands.

Tensor cores add products of float16 in one of two types. PTX ISA on ``mma``: where the accumulator is ``.f32``, sums
have at least single precision; where it is ``.f16``, at least half precision, and their order and rounding are
unspecified; operands in ``.bf16`` have an accumulator in ``.f32`` only. Libraries choose the kernel.

The graph assumes of an accumulator in ``.f16``: an instruction sums as many terms as it is deep (16 in m16n8k16)
in float32, adds them to the accumulator, and rounds that to float16. In the end the bias is added in float32, and
the result is rounded. Kernels that round within an instruction, or that add the bias in float16, lose more; kernels
that add several short sums in the end lose less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.precision.graph import cast, is_constant, numbers_of
from mrsep_deploy.precision.node_types import FLOAT

BLOCK = 16
"""Terms of a sum that one instruction adds without rounding in between."""
MOST_BLOCKS = 64
"""Blocks of longer sums (more than 1,024 terms) are larger, so that graphs stay small and runs short: they round less
often than the hardware."""


@dataclass(frozen=True)
class _Sum:
    """The dimension that a product sums over.

    Attributes:
        axes: of the first and the second operand.
        groups: of a convolution: ``axes`` of operands that hold all groups (``grouped``) have them side by side.
        length: of one group.
        terms: of every output's sum for one step along it.
    """

    axes: tuple[int, int]
    length: int
    terms: int = 1
    groups: int = 1
    grouped: tuple[bool, bool] = (False, False)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        step = max(math.ceil(BLOCK / self.terms), math.ceil(self.length / MOST_BLOCKS))
        return [(start, min(start + step, self.length)) for start in range(0, self.length, step)]


def accumulate_in_float16(graph: ir.Graph, product: ir.Node) -> None:
    """Replaces a product by the sum of partial products, rounded to float16 after each, and then the bias.

    Args:
        product: one of ``PRODUCTS`` in float32; its result is still to be rounded. The last new node has its name.
    """
    writer = _Writer(graph, product)
    total: ir.Value | None = None
    for operands in writer.operands():
        partial = writer.op(product.op_type, operands, writer.attributes)
        total = partial if total is None else writer.op("Add", [writer.accumulator(total), partial])
    assert total is not None
    if writer.alpha != 1:
        total = writer.op(
            "Mul", [writer.accumulator(total), writer.constant(np.float32(writer.alpha), "alpha")]
        )
    bias = writer.bias()
    if bias is not None:
        total = writer.op("Add", [total if writer.alpha != 1 else writer.accumulator(total), bias])
    writer.replace(total)


def _sum_of(product: ir.Node) -> _Sum:
    first, second = (_shape(product.inputs[index]) for index in (0, 1))
    if product.op_type in ("Conv", "ConvTranspose"):
        groups, kernel = product.attributes.get_int("group", 1), math.prod(second[2:])
        length = first[1] // groups
        if product.op_type == "Conv":
            return _Sum((1, 1), length, kernel, groups, (True, False))
        # of a transposed kernel, every output meets one tap in ``stride``
        strides = math.prod(product.attributes.get_ints("strides", [1]))
        return _Sum((1, 0), length, max(1, kernel // strides), groups, (True, True))
    if product.op_type == "Gemm":
        axes = (
            0 if product.attributes.get_int("transA", 0) else 1,
            1 if product.attributes.get_int("transB", 0) else 0,
        )
        return _Sum(axes, first[axes[0]])
    axes = (len(first) - 1, max(0, len(second) - 2))
    return _Sum(axes, first[-1])


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None
    assert value.shape is not None
    return value.shape.numpy()


class _Writer:
    """Writes what takes the place of one product, before it."""

    def __init__(self, graph: ir.Graph, product: ir.Node) -> None:
        self.graph, self.product, self.sum = graph, product, _sum_of(product)
        gemm = product.op_type == "Gemm"
        self.alpha = product.attributes.get_float("alpha", 1.0) if gemm else 1.0
        self.beta = product.attributes.get_float("beta", 1.0) if gemm else 1.0
        self.attributes = [a for a in product.attributes.values() if a.name not in ("alpha", "beta")]
        self.count = 0

    def op(self, kind: str, inputs: list[ir.Value], attributes: list[ir.Attr] | None = None) -> ir.Value:
        return self.ops(kind, inputs, 1, attributes)[0]

    def ops(
        self, kind: str, inputs: list[ir.Value], results: int, attributes: list[ir.Attr] | None = None
    ) -> list[ir.Value]:
        names = [self._name(kind) for _ in range(results)]
        made = [ir.Value(name=name, type=ir.TensorType(FLOAT)) for name in names]
        node = ir.Node("", kind, inputs, attributes or [], outputs=made, name=names[0])
        self.graph.insert_before(self.product, node)
        return made

    def _name(self, what: str) -> str:
        self.count += 1
        return f"{self.product.name}.accumulation/{self.count}.{what}"

    def constant(self, value: NDArray[np.generic] | np.generic, what: str) -> ir.Value:
        name = self._name(what)
        tensor = ir.tensor(np.asarray(value), name=name)
        shape, kind = ir.Shape(np.shape(value)), ir.TensorType(tensor.dtype)
        made = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
        self.graph.register_initializer(made)
        return made

    def accumulator(self, total: ir.Value) -> ir.Value:
        """Rounds a sum to float16, in which it is kept until more is added."""
        total.shape = self.product.outputs[0].shape
        narrow = cast(total, ir.DataType.FLOAT16, self._name("float16"))
        wide = cast(narrow.outputs[0], FLOAT, self._name("wide"))
        for node in (narrow, wide):
            self.graph.insert_before(self.product, node)
        return wide.outputs[0]

    def operands(self) -> Iterator[list[ir.Value]]:
        """Yields both operands, block by block of the dimension that is summed over."""
        parts = [self._parts(index) for index in (0, 1)]
        yield from map(list, zip(*parts, strict=True))

    def _parts(self, index: int) -> list[ir.Value]:
        value = self.product.inputs[index]
        assert value is not None
        blocks, axis = self.sum.blocks, self.sum.axes[index]
        if len(blocks) == 1:
            return [value]
        groups = self.sum.groups if self.sum.grouped[index] else 1
        offsets = self.sum.length * np.arange(groups)[:, None]
        chosen = [(offsets + np.arange(*block)).ravel() for block in blocks]
        if is_constant(value):
            numbers = numbers_of(value)
            return [self.constant(np.take(numbers, each, axis), "block") for each in chosen]
        if groups == 1:
            sizes = self.constant(np.array([len(each) for each in chosen]), "sizes")
            return self.ops("Split", [value, sizes], len(blocks), [ir.AttrInt64("axis", axis)])
        return [
            self.op("Gather", [value, self.constant(each, "channels")], [ir.AttrInt64("axis", axis)])
            for each in chosen
        ]

    def bias(self) -> ir.Value | None:
        """What is added in the end, in the shape in which it is."""
        bias = self.product.inputs[2] if len(self.product.inputs) > 2 else None
        if bias is None:
            return None
        if self.product.op_type != "Gemm":
            dimensions = len(_shape(self.product.inputs[1])) - 2
            shape = self.constant(np.array([1, -1, *[1] * dimensions]), "shape")
            return self.op("Reshape", [bias, shape])
        if self.beta == 1:
            return bias
        return self.op("Mul", [bias, self.constant(np.float32(self.beta), "beta")])

    def replace(self, total: ir.Value) -> None:
        old, last = self.product.outputs[0], total.producer()
        assert last is not None
        operands = [value for value in self.product.inputs if value is not None]
        total.shape = old.shape
        for reader, index in list(old.uses()):
            reader.replace_input_with(index, total)
        self.graph.remove(self.product, safe=True)
        last.name = self.product.name
        for value in operands:
            if value.is_initializer() and not value.uses():
                del self.graph.initializers[str(value.name)]
