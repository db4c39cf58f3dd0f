"""A graph of lower precision as CPUs have to compute it: float32 arithmetic, rounded after every operator.

CPU libraries have few float16 kernels. ONNX Runtime puts casts around an operator and takes out again
those that meet between two, so that whole chains of operators round once, at their end; OpenVINO makes
float32 of all of it. Either would show less error than a GPU makes. Here every rounding is written
down as a cast to the lower type and one back, which neither of them removes: what is computed is what
a GPU computes that multiplies in lower precision and accumulates in float32, as tensor cores do.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mrsep_deploy.precision.graph import MOVEMENT
from mrsep_deploy.precision.numbers import LOW_TYPES


def rounded_graph(data: bytes) -> bytes:
    """The same function with all arithmetic in float32 and a pair of casts for every rounding.

    Args:
        data: a graph as ``typed_graph`` gives it; inputs and outputs keep their types.
    """
    source = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), data_prop=True)
    serialised: bytes = _Rounder(source).run().SerializeToString(deterministic=True)
    return serialised


class _Rounder:
    def __init__(self, source: onnx.ModelProto) -> None:
        self.source = source
        graph = source.graph
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        self.types |= {value.name: value.type.tensor_type.elem_type for value in values}
        self.outputs = {value.name for value in graph.output}
        self.wide: dict[str, str] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> onnx.ModelProto:
        graph = self.source.graph
        for value in graph.input:
            if self._is_low(value.name):
                self._widen(value.name)
        for node in graph.node:
            self._write(node)
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        del model.graph.node[:], model.graph.value_info[:], model.graph.initializer[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(_in_float32(tensor) for tensor in graph.initializer)
        return model

    def _is_low(self, name: str) -> bool:
        return self.types.get(name) in LOW_TYPES

    def _widen(self, name: str) -> None:
        """Make the float32 form of a tensor that is there in lower precision."""
        self.wide[name] = f"{name}.wide"
        self.nodes.append(helper.make_node("Cast", [name], [self.wide[name]], to=TensorProto.FLOAT))

    def _write(self, node: NodeProto) -> None:
        made = NodeProto()
        made.CopyFrom(node)
        for index, name in enumerate(node.input):
            made.input[index] = self.wide.get(name, name)
        if node.op_type == "Cast" and self._is_low(node.input[0]):
            # what is to become float32 is float32 already
            made.op_type = "Identity"
            del made.attribute[:]
        low = [(index, name) for index, name in enumerate(node.output) if self._is_low(name)]
        exact = node.op_type in MOVEMENT and not any(name in self.outputs for _, name in low)
        self.nodes.append(made)
        if not low or exact:
            return
        for index, name in low:
            self._round(node, made, index, name)

    def _round(self, node: NodeProto, made: NodeProto, index: int, name: str) -> None:
        """A result, rounded; an output of the graph stays what it is, and its readers take the float32 form."""
        rounded = name if name in self.outputs else f"{name}.low"
        if node.op_type == "Cast":
            made.output[index] = rounded
        else:
            made.output[index] = f"{name}.exact"
            self.nodes.append(helper.make_node("Cast", [made.output[index]], [rounded], to=self.types[name]))
        if name in self.outputs:
            self._widen(name)
        else:
            self.nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))


def _in_float32(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in LOW_TYPES:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
