"""An ONNX graph with the questions precision asks of it: types, sizes, who computes and who reads what."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper, shape_inference

from mrsep_deploy.errors import BundleError, first_line

MOVEMENT = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators that only move numbers: they are exact in every type."""

ELEMENTWISE = frozenset(("Add", "Sub", "Mul", "Neg", "Abs", "Gelu", "Sigmoid", "Tanh", "Relu", "Elu", "Erf"))
"""Operators that compute each element on its own, without harm to its relative precision."""

PRODUCTS = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm"))
"""Where the arithmetic is."""


class GraphView:
    """A float32 graph as exported: one scope, static shapes, node names that differ.

    Nodes without a name get one from their operator and place; those that nothing reads are left out.

    Attributes:
        stage: whose it is, for messages.
        model: the graph itself; nobody changes it.
        nodes: in an order in which they can run.
        constants: initialisers by name.
        inputs, outputs: names.

    Raises:
        BundleError: the bytes are no such graph; the message names the stage.
    """

    def __init__(self, data: bytes, stage: str) -> None:
        self.stage = stage
        self.model = _inferred(data, stage)
        graph = self.model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input)
        self.outputs = tuple(value.name for value in graph.output)
        self.types, self.shapes = types_and_shapes(graph)
        self.producer: dict[str, NodeProto] = {out: node for node in self.nodes for out in node.output if out}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    self._readers[name].append(node)
        self._check()

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return self._readers.get(name, [])

    def elements(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def is_computed(self, name: str) -> bool:
        """Whether a tensor depends on the graph's inputs: it is no constant."""
        return bool(name) and name not in self.constants

    def data(self, node: NodeProto) -> list[str]:
        """The computed float tensors that a node reads."""
        return [name for name in node.input if self.is_computed(name) and self.is_float(name)]

    def floats(self) -> Iterator[NodeProto]:
        """Nodes with a floating-point result."""
        return (node for node in self.nodes if self.is_float(node.output[0]))

    def sources(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that compute what a node reads, with nothing but movement in between."""
        for name in self.data(node):
            origin = self.producer.get(name)
            if origin is not None and origin.op_type in MOVEMENT:
                yield from self.sources(origin)
            elif origin is not None:
                yield origin

    def users(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that compute with a node's results, with nothing but movement in between."""
        for name in node.output:
            for reader in self.readers(name):
                if reader.op_type in MOVEMENT:
                    yield from self.users(reader)
                else:
                    yield reader

    def value(self, name: str) -> NDArray[np.generic]:
        """A constant's numbers."""
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def _check(self) -> None:
        stage = self.stage
        if not self.nodes:
            raise _refused(stage, "computes nothing")
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            raise _refused(stage, "has two nodes of one name")
        for node in self.nodes:
            if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
                raise _refused(stage, f"has a graph inside the node {node.name}")
            for name in node.output:
                if name and (name not in self.shapes or not all(self.shapes[name])):
                    raise _refused(stage, f"has no static shape for {name}")
        low = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        if any(kind in low for kind in self.types.values()):
            raise _refused(stage, "is of lower precision already, expected float32")


def _inferred(data: bytes, stage: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}#{index}"
        drop_unused(model.graph)
        return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # protobuf and onnx raise types of their own, without a common base
        raise _refused(stage, f"is not valid ONNX: {first_line(error)}") from error


def types_and_shapes(graph: onnx.GraphProto) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """ONNX's element type and the shape of every tensor, by name, of a graph whose shapes were inferred."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        shapes[value.name] = tuple(size.dim_value for size in tensor.shape.dim)
    return types, shapes


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initialisers that nothing reads any more."""
    used = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if any(name in used for name in node.output):
            used.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _refused(stage: str, reason: str) -> BundleError:
    return BundleError(
        f"the graph of stage {stage} {reason}, so its precision cannot be changed",
        "Give a float32 bundle that `mrsep-deploy export` wrote.",
    )
