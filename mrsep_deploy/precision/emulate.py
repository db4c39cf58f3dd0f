"""A graph of lower precision as CPUs have to compute it: float32 arithmetic, rounded after every operator.

CPU libraries have few float16 kernels. ONNX Runtime puts casts around an operator and takes out again
those that meet between two, so that whole chains of operators round once, at their end; OpenVINO makes
float32 of all of it. Either would show less error than a GPU makes. Here every rounding is written
down as a cast to the lower type and one back, which neither of them removes: what is computed is what
a GPU computes that multiplies in lower precision and accumulates in float32, as tensor cores can. With
accumulation in float16 it is the worst that they may do (:mod:`~mrsep_deploy.precision.accumulate`).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from mrsep_deploy.precision.accumulate import accumulate_in_float16
from mrsep_deploy.precision.graph import MOVEMENT, PRODUCTS, cast, inferred, numbers_of, serialised, values
from mrsep_deploy.precision.names import Accumulation
from mrsep_deploy.precision.node_types import FLOAT
from mrsep_deploy.precision.numbers import LOW_TYPES


def rounded_graph(data: bytes, accumulation: Accumulation = "float32") -> bytes:
    """Returns the same function with all arithmetic in float32 and a pair of casts for every rounding.

    Args:
        data: a graph as ``typed_graph`` gives it; inputs and outputs keep their types.
        accumulation: of products in float16; those in bfloat16 accumulate in float32 on every GPU.
    """
    return serialised(rounded_model(data, accumulation))


def rounded_model(data: bytes, accumulation: Accumulation = "float32") -> ir.Model:
    """:func:`rounded_graph`, not yet written; a rounding is a cast to the lower type."""
    model = inferred(onnx.load_model_from_string(data))
    graph = model.graph
    low = {value: value.dtype for value in values(graph) if value.dtype in LOW_TYPES}
    nodes = list(graph)
    products: list[ir.Node] = []
    for each in nodes:
        if each.op_type == "Cast" and each.inputs[0] in low:
            # what is to become float32 will be float32 already
            each.op_type = "Identity"
            each.attributes.clear()
    for value, kind in low.items():
        node = value.producer()
        if value.const_value is not None:
            value.const_value = ir.tensor(numbers_of(value).astype(np.float32), name=value.name)
            value.dtype = FLOAT
        elif node is None:
            graph.insert_before(nodes[0], _widened(value))
        elif node.op_type in MOVEMENT and not value.is_graph_output():
            value.dtype = FLOAT
        elif node.op_type == "Cast":
            graph.insert_after(node, _widened(value))
        else:
            graph.insert_after(node, _rounded(graph, value, kind))
            if node.op_type in PRODUCTS and kind == ir.DataType.FLOAT16 and accumulation == "float16":
                products.append(node)
    for node in products:
        accumulate_in_float16(graph, node)
    return model


def _rounded(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> list[ir.Node]:
    """Rounds a result that becomes float32; an output of the graph is the rounded one."""
    name = str(value.name)
    value.name, value.dtype = f"{name}.exact", FLOAT
    readers = list(value.uses())
    narrow = cast(value, kind, name)
    result = narrow.outputs[0]
    for reader, index in readers:
        reader.replace_input_with(index, result)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = result
    return [narrow, *_widened(result)]


def _widened(value: ir.Value) -> list[ir.Node]:
    """Gives all that reads a value of lower precision its float32 form."""
    readers = list(value.uses())
    wide = cast(value, FLOAT, f"{value.name}.wide")
    for reader, index in readers:
        reader.replace_input_with(index, wide.outputs[0])
    return [wide] if readers else []
