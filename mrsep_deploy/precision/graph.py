"""Graphs of stages as onnx_ir holds them, and the questions precision asks of their nodes and values."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mrsep_deploy.bundle.manifest import BATCH
from mrsep_deploy.errors import BundleError, first_line
from mrsep_deploy.precision.numbers import LOW_TYPES

MOVEMENT = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators that only move numbers: they are exact in every type."""

ELEMENTWISE = frozenset(("Add", "Sub", "Mul", "Neg", "Abs", "Gelu", "Sigmoid", "Tanh", "Relu", "Elu", "Erf"))
"""Operators that compute each element on its own, without harm to its relative precision."""

PRODUCTS = frozenset(("Attention", "Conv", "ConvTranspose", "MatMul", "Gemm"))
"""Where the arithmetic is."""


def read_graph(data: bytes, stage: str) -> ir.Model:
    """Reads a float32 graph as exported: one scope, known shapes, node names that differ.

    Nodes without a name get one from their operator and place; nodes and constants that nothing reads are left out.

    Raises:
        BundleError: the bytes are no such graph; the message names the stage.
    """
    try:
        model = inferred(onnx.load_model_from_string(data))
        for index, node in enumerate(model.graph):
            node.name = node.name or f"{node.op_type}#{index}"
        RemoveUnusedNodesPass()(model)
    except Exception as error:  # protobuf, onnx and onnx_ir raise types of their own, without a common base
        raise _refused(stage, f"is not valid ONNX: {first_line(error)}") from error
    nodes = list(model.graph)
    if not nodes:
        raise _refused(stage, "computes nothing")
    if len({node.name for node in nodes}) != len(nodes):
        raise _refused(stage, "has two nodes of one name")
    for node in nodes:
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise _refused(stage, f"has a graph inside the node {node.name}")
        for value in node.outputs:
            if value.name and (value.shape is None or value.shape.has_unknown_dim() or 0 in value.shape):
                raise _refused(stage, f"has no static shape for {value.name}")
    if any(value.dtype in LOW_TYPES for value in values(model.graph)):
        raise _refused(stage, "is of lower precision already, expected float32")
    return model


def set_batch(model: onnx.ModelProto, batch: int | str) -> None:
    """Makes the first dimension of a graph's inputs and outputs a number, or gives it a name."""
    for end in (*model.graph.input, *model.graph.output):
        for items in end.type.tensor_type.shape.dim[:1]:
            if isinstance(batch, int):
                items.dim_value = batch
            else:
                items.dim_param = batch


def inferred(model: onnx.ModelProto) -> ir.Model:
    """Returns a model with the element type and the shape of every value, for a batch of one."""
    set_batch(model, 1)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))


def _refused(stage: str, reason: str) -> BundleError:
    return BundleError(
        f"the graph of stage {stage} {reason}, so its precision cannot be changed",
        "Give a float32 bundle that `mrsep-deploy export` wrote.",
    )


# --- values


def values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields inputs, constants, and all that nodes compute."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def is_constant(value: ir.Value) -> bool:
    return value.const_value is not None


def elements(value: ir.Value) -> int:
    """Counts the elements of a value."""
    assert value.shape is not None
    return math.prod(value.shape.numpy())


def numbers_of(constant: ir.Value) -> NDArray[np.generic]:
    assert constant.const_value is not None
    return constant.const_value.numpy()


def cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    """Makes a node that casts a value to another type, under a name of its own."""
    result = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind))
    return ir.node("Cast", [value], {"to": kind}, outputs=[result], name=f"{name}/Cast")


def serialised(model: ir.Model, batch: str | None = BATCH) -> bytes:
    """Writes a model for any batch, or for one, without the shapes in between, which engines infer."""
    written = ir.to_proto(model)
    if batch is not None:
        set_batch(written, batch)
    del written.graph.value_info[:]
    return bytes(written.SerializeToString(deterministic=True))


# --- nodes


def floats(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yields the nodes with a floating-point result."""
    return (node for node in graph if is_float(node.outputs[0]))


def computing(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yields the nodes that compute floating-point numbers, in the graph's order: those a plan may name."""
    return (node for node in floats(graph) if node.op_type not in MOVEMENT)


def data(node: ir.Node) -> list[ir.Value]:
    """Lists the computed float values that a node reads."""
    return [
        value for value in node.inputs if value is not None and is_float(value) and not is_constant(value)
    ]


def sources(node: ir.Node) -> Iterator[ir.Node]:
    """Yields the nodes that compute what a node reads, with nothing but movement in between."""
    for value in data(node):
        origin = value.producer()
        if origin is not None and origin.op_type in MOVEMENT:
            yield from sources(origin)
        elif origin is not None:
            yield origin


def users(node: ir.Node) -> Iterator[ir.Node]:
    """Yields the nodes that compute with a node's results, with nothing but movement in between."""
    for reader in node.successors():
        if reader.op_type in MOVEMENT:
            yield from users(reader)
        else:
            yield reader
