"""The norm that is folded into a DConv's pointwise convolution, in a form that survives half precision.

As exported (``rewrite_layers``), features ``g`` with mean ``m`` over time, and ``r``,
one over their spread after the convolution, enter that convolution as the channels

    y = W [g r, s] + b,          s = a few constants of each bin

In quiet bins ``g`` hardly moves, so ``W g r`` and ``W s`` are large, nearly constant and opposite: rounding
``g r`` leaves an error as large as what is left of the sum. Exactly the same is

    y = W_g (g - m) r  +  (W [m r, s] + b)

with ``W_g`` the columns of the features. The first term, the wide one, holds only what moves and loses only
its own last bits; the second is one number for each channel and bin, and float32 costs nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mrsep_deploy.precision.graph import GraphView, drop_unused

_OUTPUTS, _INPUTS = "fold.outputs", "fold.inputs"
"""Names of the constants that say which axes of the products are a convolution's output and input channels."""


@dataclass(frozen=True)
class _Fold:
    """One such convolution: its features, and the nodes and tensors it is made of."""

    conv: NodeProto
    concat: NodeProto
    scaled: NodeProto
    centred: str
    mean: str
    scale: str
    small: str


def centred_view(view: GraphView) -> GraphView:
    """:func:`centre_folds`, with the questions precision asks."""
    return GraphView(centre_folds(view).SerializeToString(), view.stage)


def centre_folds(view: GraphView) -> onnx.ModelProto:
    """The graph with every folded norm in its second form; nodes keep their names where they stay.

    New nodes are named after the nodes they come from, with a word after a dot: ``.centred``, ``.sum``.
    """
    folds = {fold.conv.name: fold for node in view.nodes if (fold := _fold(view, node)) is not None}
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    graph = model.graph
    del graph.node[:]
    shared: set[str] = set()
    for node in view.nodes:
        fold = folds.get(node.name)
        if fold is None:
            graph.node.append(node)
            continue
        if fold.concat.name not in shared:
            shared.add(fold.concat.name)
            graph.node.extend(_features(fold))
        graph.node.extend(_gate(fold))
        graph.initializer.extend(_constants(view, fold))
    for name, axis in ((_OUTPUTS, 1), (_INPUTS, 2)):
        graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), name))
    drop_unused(graph)
    del graph.value_info[:]
    return model


def _fold(view: GraphView, conv: NodeProto) -> _Fold | None:
    concat = view.producer.get(conv.input[0]) if conv.op_type == "Conv" and len(conv.input) == 3 else None
    if (
        concat is None
        or concat.op_type != "Concat"
        or len(concat.input) != 2
        or conv.input[1] not in view.constants
    ):
        return None
    scaled, expanded = (view.producer.get(name) for name in concat.input)
    if scaled is None or scaled.op_type != "Mul" or expanded is None or expanded.op_type != "Expand":
        return None
    features, scale = scaled.input
    for reader in view.readers(features):
        if reader.op_type == "Sub" and reader.input[0] == features and _is_pointwise(view, conv):
            mean = reader.input[1]
            if view.is_computed(mean) and view.elements(mean) * 2 <= view.elements(features):
                return _Fold(conv, concat, scaled, reader.output[0], mean, scale, expanded.input[0])
    return None


def _is_pointwise(view: GraphView, conv: NodeProto) -> bool:
    plain = {"group": 1, "pads": 0, "strides": 1, "dilations": 1, "kernel_shape": 1, "auto_pad": b"NOTSET"}
    for attribute in conv.attribute:
        value = helper.get_attribute_value(attribute)
        values = set(value) if isinstance(value, (list, tuple)) else {value}
        if attribute.name not in plain or values - {plain[attribute.name]}:
            return False
    return view.shapes[conv.input[1]][2:] == (1, 1)


def _features(fold: _Fold) -> list[NodeProto]:
    """What both halves of a gate read: centred features, and the constants of each bin."""
    name, out = fold.concat.name, fold.concat.output[0]
    return [
        helper.make_node("Mul", [fold.centred, fold.scale], [f"{out}.centred"], name=f"{fold.scaled.name}.centred"),
        helper.make_node("Mul", [fold.mean, fold.scale], [f"{out}.mean"], name=f"{fold.scaled.name}.mean"),
        helper.make_node("Concat", [f"{out}.mean", fold.small], [f"{out}.joined"], name=f"{name}.joined", axis=1),
        helper.make_node("Unsqueeze", [f"{out}.joined", _OUTPUTS], [f"{out}.constant"], name=f"{name}.constant"),
    ]  # fmt: skip


def _gate(fold: _Fold) -> list[NodeProto]:
    """One half of a gate: the wide convolution, the constant part and their sum."""
    conv, features = fold.conv, fold.concat.output[0]
    out = conv.output[0]
    wide = NodeProto()
    wide.CopyFrom(conv)
    del wide.input[:], wide.output[:]
    wide.input.extend([f"{features}.centred", _weights(conv).wide])
    wide.output.append(f"{out}.wide")
    return [
        wide,
        # Products and their sum instead of a second convolution: of one without time, in this place,
        # TensorRT for RTX 1.7's compiler crashes.
        helper.make_node("Mul", [_weights(conv).constant, f"{features}.constant"], [f"{out}.products"],
                         name=f"{conv.name}.products"),
        helper.make_node("ReduceSum", [f"{out}.products", _INPUTS], [f"{out}.reduced"], name=f"{conv.name}.reduced",
                         keepdims=0),
        helper.make_node("Add", [f"{out}.reduced", _weights(conv).bias], [f"{out}.constant"],
                         name=f"{conv.name}.constant"),
        helper.make_node("Add", [wide.output[0], f"{out}.constant"], [out], name=f"{conv.name}.sum"),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Weights:
    """Names of a convolution's constants in the second form."""

    wide: str
    constant: str
    bias: str


def _weights(conv: NodeProto) -> _Weights:
    weight, bias = conv.input[1:]
    return _Weights(f"{weight}.features", f"{weight}.constant", f"{bias}.constant")


def _constants(view: GraphView, fold: _Fold) -> list[TensorProto]:
    weight, bias = (view.value(name) for name in fold.conv.input[1:])
    names = _weights(fold.conv)
    made = {
        names.wide: weight[:, : view.shapes[fold.centred][1]],
        names.constant: weight[None],  # [1, O, I, 1, 1], against [B, 1, I, F, 1]
        names.bias: bias[None, :, None, None],
    }
    return [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in made.items()]
