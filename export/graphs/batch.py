"""The batch of a traced graph becomes a named dimension: one graph for every batch.

Graphs are traced with static shapes, so the batch stands as a number in the shapes that Reshape, Expand and Resize
read. It is traced as a prime that no other size is a multiple of, and taken out again here. (Traced with symbolic
shapes, a graph would compute these shapes at every run, and engines would have to fold that away.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from mrsep_deploy.bundle.manifest import BATCH
from mrsep_deploy.errors import ExportError

TRACED = 1_000_000_007
"""The batch that graphs are traced with: beyond every size of a tensor, and elements still count in 64 bits."""

Shape = list[int]


def name_batch(model: onnx.ModelProto, stage: str) -> None:
    """Replaces ``TRACED`` by a named dimension, in place, and drops the shapes of inner tensors.

    Raises:
        ExportError: the part computes with the number of items, or an input or output has no axis of items.
    """
    graph = model.graph
    ends = (*graph.input, *graph.output)
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*ends, *graph.value_info)
    }
    integers = {
        tensor.name: numpy_helper.to_array(tensor).flatten().tolist()
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    batched = {name for name, values in integers.items() if any(map(_counts_items, values))}
    made: dict[str, Shape] = {}
    for node in graph.node:
        read = [index for index, name in enumerate(node.input) if name in batched]
        shape = _freed(node, read, integers, shapes)
        if shape is None or any(map(_counts_items, _attributes(node))):
            raise ExportError(
                f"stage {stage} computes with the number of items, in {node.op_type} ({node.output[0]})",
                "Items of a batch have to be independent of each other.",
            )
        if read:
            node.input[read[0]] = name = "shape." + "x".join(map(str, shape))
            made[name] = shape
    kept = [tensor for tensor in graph.initializer if tensor.name not in batched]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(
        helper.make_tensor(name, onnx.TensorProto.INT64, [len(shape)], shape) for name, shape in made.items()
    )
    for value in ends:
        items, *sizes = value.type.tensor_type.shape.dim
        if items.dim_value != TRACED or not all(0 < size.dim_value < TRACED for size in sizes):
            raise ExportError(
                f"stage {stage} has no axis of items, or a dynamic shape, at {value.name}",
                "Stages map items to items: the first axis of all they read and write, the others are static.",
            )
        items.dim_param = BATCH


def _counts_items(size: int) -> bool:
    return size != 0 and size % TRACED == 0


def _attributes(node: onnx.NodeProto) -> Iterator[int]:
    for attribute in node.attribute:
        yield attribute.i
        yield from attribute.ints


def _freed(
    node: onnx.NodeProto, read: Sequence[int], integers: Mapping[str, Shape], shapes: Mapping[str, Shape]
) -> Shape | None:
    """The shape that a node gets in place of one with the batch in it, empty if it reads none; None if there is none.

    Args:
        read: the node's inputs that hold such numbers.
    """
    if not read:
        return []
    index, rule = _RULES.get(node.op_type, (-1, None))
    if list(read) != [index] or rule is None:
        return None
    return rule(node, integers[node.input[index]], shapes.get(node.input[0], []))


def _reshape(node: onnx.NodeProto, shape: Shape, x: Shape) -> Shape | None:
    """The axis of items is copied, or is what is left of the elements."""
    if shape[0] == TRACED and x[:1] == [TRACED] and not any(map(_counts_items, shape[1:])):
        del node.attribute[:]  # torch says that 0 means none, not a copy; there is no other attribute
        return [0, *shape[1:]]
    left = [-1 if _counts_items(size) else size for size in shape]
    return left if left.count(-1) == 1 else None


def _expand(node: onnx.NodeProto, shape: Shape, x: Shape) -> Shape | None:
    """Axes that are as long already are left as they are."""
    aligned = [1] * (len(shape) - len(x)) + x
    freed = [1 if size == found else size for size, found in zip(shape, aligned[-len(shape) :], strict=True)]
    return None if any(map(_counts_items, freed)) else freed


def _resize(node: onnx.NodeProto, shape: Shape, x: Shape) -> Shape | None:
    """Only axes behind that of items are resized."""
    if shape[0] != TRACED or x[:1] != [TRACED] or any(a.name == "axes" for a in node.attribute):
        return None
    node.attribute.append(helper.make_attribute("axes", range(1, len(shape))))
    return shape[1:]


_RULES: Mapping[str, tuple[int, Callable[[onnx.NodeProto, Shape, Shape], Shape | None]]] = {
    "Reshape": (1, _reshape),
    "Expand": (1, _expand),
    "Resize": (3, _resize),
}
"""Operators that may read the batch: which of their inputs holds it, and what stands there instead."""
