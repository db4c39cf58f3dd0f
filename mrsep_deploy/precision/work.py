"""What a graph costs: multiply-accumulates of each node, and the bytes that its kernels read and write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx
from onnx import NodeProto, helper

from mrsep_deploy.precision.graph import ELEMENTWISE, types_and_shapes
from mrsep_deploy.precision.numbers import item_bytes

_VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
"""Operators that change a shape and no byte."""

_FUSED = ELEMENTWISE | {"Cast", "Div", "Sqrt", "Reciprocal", "Exp", "Pow"}
"""Operators that engines merge with their likes into one kernel."""

_CASTING = ("Softmax", "LayerNormalization", "Reduce")
"""How operators begin whose kernels read and write other types than they compute in."""

Shapes = Mapping[str, tuple[int, ...]]


def node_macs(node: NodeProto, shapes: Shapes) -> int:
    """Multiply-accumulates of a convolution or a matrix product; 0 for everything else."""
    out = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return out * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "MatMul":
        return out * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and helper.get_attribute_value(a) for a in node.attribute)
        return out * shapes[node.input[0]][0 if transposed else -1]
    return 0


def bytes_moved(model: onnx.ModelProto) -> int:
    """Bytes that one run reads and writes, each tensor once for every kernel that touches it.

    Elementwise operators and casts that follow each other count as one kernel, a softmax or a norm takes the
    casts before and after it along, shapes are changed for free, and every other operator is a kernel of its
    own. Engines fuse more, a convolution with its activation, say; of both precisions alike.
    """
    graph = model.graph
    types, shapes = types_and_shapes(graph)
    alias = {node.output[0]: node.input[0] for node in graph.node if node.op_type in _VIEWS}

    def size(name: str) -> int:
        return math.prod(shapes[name]) * item_bytes(types[name])

    def stored(name: str) -> str:
        while name in alias:
            name = alias[name]
        return name

    nodes = [node for node in graph.node if node.op_type not in _VIEWS]
    kernels = _kernels(nodes, stored)
    reads: dict[int, set[str]] = {}
    writes: dict[int, set[str]] = {}
    for node, kernel in zip(nodes, kernels, strict=True):
        reads.setdefault(kernel, set()).update(stored(name) for name in node.input if name)
        writes.setdefault(kernel, set()).update(name for name in node.output if name)
    ends = {stored(value.name) for value in graph.output}
    total = 0
    for kernel, written in writes.items():
        outside = ends.union(*(names for other, names in reads.items() if other != kernel))
        total += sum(size(name) for name in written & outside)
        total += sum(size(name) for name in reads[kernel] - written if name in types)
    return total


def _kernels(nodes: list[NodeProto], stored: Callable[[str], str]) -> list[int]:
    """The number of each node's kernel."""
    parent = list(range(len(nodes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    producer = {name: index for index, node in enumerate(nodes) for name in node.output}
    for index, node in enumerate(nodes):
        for name in node.input:
            source = producer.get(stored(name)) if name else None
            if source is not None and _merge(nodes[source], node):
                parent[root(index)] = root(source)
    return [root(index) for index in range(len(nodes))]


def _merge(first: NodeProto, second: NodeProto) -> bool:
    kinds = (first.op_type, second.op_type)
    if all(kind in _FUSED for kind in kinds):
        return True
    return "Cast" in kinds and any(kind.startswith(_CASTING) for kind in kinds)
