"""The work of a graph: multiply-accumulates of each node, and the bytes that its kernels read and write."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from mrsep_deploy.precision.graph import ELEMENTWISE, elements

_VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
"""Operators that change a shape and no byte."""

_FUSED = ELEMENTWISE | {"Cast", "Div", "Sqrt", "Reciprocal", "Exp", "Pow"}
"""Operators that engines merge with their likes into one kernel."""

_CASTING = ("Softmax", "LayerNormalization", "Reduce")
"""How operators begin whose kernels read and write other types than they compute in."""


def node_macs(node: ir.Node) -> int:
    """Counts multiply-accumulates of a convolution or a matrix product; 0 for everything else."""
    if node.op_type == "Conv":
        return elements(node.outputs[0]) * math.prod(_shape(node, 1)[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(_shape(node, 0)) * math.prod(_shape(node, 1)[1:])
    if node.op_type == "MatMul":
        return elements(node.outputs[0]) * _shape(node, 0)[-1]
    if node.op_type == "Gemm":
        transposed = node.attributes.get_int("transA", 0)
        return elements(node.outputs[0]) * _shape(node, 0)[0 if transposed else -1]
    if node.op_type == "Attention":  # queries and keys, scores and values
        return (math.prod(_shape(node, 0)) + elements(node.outputs[0])) * _shape(node, 1)[-2]
    return 0


def _shape(node: ir.Node, index: int) -> tuple[int, ...]:
    value = node.inputs[index]
    assert value is not None
    assert value.shape is not None
    return value.shape.numpy()


def bytes_moved(graph: ir.Graph) -> int:
    """Counts the bytes that one run reads and writes, each value once for every kernel that touches it.

    Elementwise operators and casts that follow each other count as one kernel, a softmax or a norm takes the
    casts before and after it along, shapes are changed for free, and every other operator is a kernel of its
    own. Engines fuse more, a convolution with its activation, say; of both precisions alike.
    """
    alias = {node.outputs[0]: node.inputs[0] for node in graph if node.op_type in _VIEWS}

    def stored(value: ir.Value | None) -> ir.Value | None:
        while value in alias:
            value = alias[value]
        return value

    nodes = [node for node in graph if node.op_type not in _VIEWS]
    kernels = _kernels(nodes, stored)
    reads: dict[int, set[ir.Value]] = {}
    writes: dict[int, set[ir.Value]] = {}
    for node, kernel in zip(nodes, kernels, strict=True):
        read = (stored(value) for value in node.inputs)
        reads.setdefault(kernel, set()).update(value for value in read if value is not None)
        writes.setdefault(kernel, set()).update(node.outputs)
    ends = {stored(value) for value in graph.outputs}
    total = 0
    for kernel, written in writes.items():
        outside = ends.union(*(values for other, values in reads.items() if other != kernel))
        for value in (*(written & outside), *(reads[kernel] - written)):
            assert value.dtype is not None
            total += int(elements(value) * value.dtype.itemsize)
    return total


def _kernels(nodes: list[ir.Node], stored: Callable[[ir.Value | None], ir.Value | None]) -> list[int]:
    """Returns the number of each node's kernel."""
    parent = list(range(len(nodes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    place = {node: index for index, node in enumerate(nodes)}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            kept = stored(value)
            source = kept.producer() if kept is not None else None
            if source is not None and _merge(source, node):
                parent[root(index)] = root(place[source])
    return [root(index) for index in range(len(nodes))]


def _merge(first: ir.Node, second: ir.Node) -> bool:
    kinds = (first.op_type, second.op_type)
    if all(kind in _FUSED for kind in kinds):
        return True
    return "Cast" in kinds and any(kind.startswith(_CASTING) for kind in kinds)
