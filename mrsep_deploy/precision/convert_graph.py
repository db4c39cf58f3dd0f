"""A float32 graph in lower precision: every node has a type, and casts stand only where types meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
import onnx_ir as ir

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.errors import BundleError, first_line
from mrsep_deploy.precision.costs import GraphCost
from mrsep_deploy.precision.graph import (
    cast,
    computing,
    is_constant,
    is_float,
    numbers_of,
    read_graph,
    serialised,
    values,
)
from mrsep_deploy.precision.node_types import FLOAT, Types, node_types
from mrsep_deploy.precision.numbers import ELEMENT_TYPES, rounded
from mrsep_deploy.precision.plan import PrecisionPlan, matching_nodes
from mrsep_deploy.precision.rules import StageRules, flushed, kept_by_rules
from mrsep_deploy.precision.work import bytes_moved, node_macs

BFLOAT16_OPSET, BFLOAT16_IR = 22, 10
"""The first opset, and the format it is written in, whose convolutions take bfloat16. None of the operators
that exported graphs use means anything else in it than in opset 20."""


@dataclass(frozen=True)
class TypedGraph:
    """A graph in lower precision.

    Attributes:
        data: the ONNX model.
        low, kept: names of the nodes that compute in lower precision and in float32, in the graph's order.
        cost: what it costs beside the float32 graph.
        unmatched: rules of the plan that the model's family expects to match in this stage, and that match nothing.
    """

    data: bytes
    low: tuple[str, ...]
    kept: tuple[str, ...]
    cost: GraphCost
    unmatched: tuple[str, ...]


class StageGraph:
    """The float32 graph of a stage, read once, to be converted by several plans.

    Attributes:
        stage: its name; ``keep`` of a plan speaks of stages.
        size: of the serialised graph in bytes.
        model: the graph, which conversions leave as it is.
        rules: what the model's family says of this stage.

    Raises:
        BundleError: it is no float32 graph with static shapes.
    """

    def __init__(self, data: bytes, stage: str, rules: StageRules | None = None) -> None:
        self.stage, self.size = stage, len(data)
        self.model = read_graph(data, stage)
        self.rules = rules or {}

    @classmethod
    def of(cls, bundle: Bundle, stage: Stage) -> StageGraph:
        """Reads the graph of one of a bundle's stages, with the rules that the bundle carries for it."""
        stages = bundle.manifest.float32.items()
        rules = {rule: nodes[stage.name] for rule, nodes in stages if stage.name in nodes}
        return cls(bundle.graph_bytes(stage), stage.name, rules)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes a plan may name, in the graph's order."""
        return tuple(str(node.name) for node in computing(self.model.graph))

    @cached_property
    def bytes_moved(self) -> int:
        """By the kernels of one run in float32."""
        return bytes_moved(self.model.graph)

    @cached_property
    def macs(self) -> Mapping[str, int]:
        """Of one run, by node."""
        return {str(node.name): node_macs(node) for node in self.model.graph}


def typed_graph(
    graph: StageGraph,
    plan: PrecisionPlan,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
) -> TypedGraph:
    """Converts a stage's graph to lower precision.

    Args:
        graph: in float32.
        plan: what stays in float32.
        inputs, outputs: element types at the graph's border, by tensor name; float32 for what is not named.

    Returns:
        A valid, strongly typed ONNX model: operators take one floating-point type each, every cast is there
        once for each tensor and type, none casts another's result, and constants are converted, not cast.

    Raises:
        BundleError: the result is no valid graph.
        UsageError: the plan names nodes that are not there.
    """
    kept, unmatched = kept_by_rules(graph.model.graph, plan, graph.rules)
    kept |= matching_nodes(plan, graph.stage, graph.names)
    model = graph.model.clone()
    borders = _border(model.graph.inputs, inputs or {}), _border(model.graph.outputs, outputs or {})
    types = node_types(model.graph, kept, ELEMENT_TYPES[plan.precision], *borders)
    converter = _Converter(model.graph, plan, types)
    converter.convert(*borders)
    if plan.precision == "bfloat16":
        model.opset_imports[""] = max(model.opset_imports[""], BFLOAT16_OPSET)
        model.ir_version = max(model.ir_version, BFLOAT16_IR)
    data = serialised(model)
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(
            f"stage {graph.stage} gave an invalid graph in lower precision: {first_line(error)}",
            "Use the float32 bundle, and report this.",
        ) from error
    low = tuple(name for name in graph.names if types[name] != FLOAT)
    in_float32 = tuple(name for name in graph.names if types[name] == FLOAT)
    cost = GraphCost(
        size=len(data),
        original_size=graph.size,
        casts=converter.casts,
        nodes=len(graph.names),
        kept=len(in_float32),
        macs=sum(graph.macs.values()),
        kept_macs=sum(graph.macs[name] for name in in_float32),
        bytes_moved=bytes_moved(model.graph),
        original_bytes_moved=graph.bytes_moved,
        flushed=converter.flushed,
    )
    return TypedGraph(data, low, in_float32, cost, unmatched)


def _border(ends: Sequence[ir.Value], types: Mapping[str, str]) -> Types:
    """Returns ONNX's element types of the graph's floating-point inputs or outputs."""
    names = [str(value.name) for value in ends if is_float(value)]
    return {name: ELEMENT_TYPES[types.get(name, "float32")] for name in names}


class _Converter:
    """Gives the nodes of a graph their types, one after the other, with casts before their first use."""

    def __init__(self, graph: ir.Graph, plan: PrecisionPlan, types: Types) -> None:
        self.graph, self.precision, self.types = graph, plan.precision, types
        self.floats = {value for value in values(graph) if is_float(value)}
        self.taken = {value.name for value in values(graph)}
        self.forms: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.casts = self.flushed = 0

    def convert(self, inputs: Types, outputs: Types) -> None:
        # a clone shares its types with the graph it is from, so that they are replaced, not changed
        for value in self.graph.inputs:
            if value in self.floats:
                value.type = ir.TensorType(inputs[str(value.name)])
        for node in list(self.graph):
            kind = self.types[str(node.name)]
            for index, read in enumerate(node.inputs):
                if read is not None and read in self.floats:
                    # scales of Resize are float32 whatever it resizes
                    wanted = FLOAT if node.op_type == "Resize" and index in (1, 2) else kind
                    node.replace_input_with(index, self._form(read, wanted, node))
            for value in node.outputs:
                if value in self.floats:
                    value.type = ir.TensorType(kind)
                    if value.is_graph_output() and outputs[str(value.name)] != kind:
                        self._end(node, value, outputs[str(value.name)])
        for name, constant in list(self.graph.initializers.items()):
            if not constant.uses() and not constant.is_graph_output():
                del self.graph.initializers[name]

    def _form(self, value: ir.Value, kind: ir.DataType, reader: ir.Node) -> ir.Value:
        """Returns a value as it is there, or will be before its reader, in a type."""
        if value.dtype == kind:
            return value
        if (value, kind) not in self.forms:
            name = self._free(value, kind)
            if is_constant(value):
                self.forms[value, kind] = self._constant(value, kind, name)
            else:
                node = cast(value, kind, name)
                self.graph.insert_before(reader, node)
                self.casts += 1
                self.forms[value, kind] = node.outputs[0]
        return self.forms[value, kind]

    def _constant(self, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
        """Makes the low form of a constant."""
        exact = numbers_of(value)
        self.flushed += flushed(exact, self.precision)
        low = ir.tensor(rounded(exact, self.precision), kind, name=name)
        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind), const_value=low)
        self.graph.register_initializer(made)
        return made

    def _end(self, node: ir.Node, value: ir.Value, border: ir.DataType) -> None:
        """Casts an output of the graph that is computed in another type than the border's."""
        name = str(value.name)
        assert value.dtype is not None
        value.name = self._free(value, value.dtype)
        made = cast(value, border, name)
        self.graph.insert_after(node, made)
        self.casts += 1
        self.graph.outputs[self.graph.outputs.index(value)] = self.forms[value, border] = made.outputs[0]

    def _free(self, value: ir.Value, kind: ir.DataType) -> str:
        """Returns a name for a value's form in a type that nothing else has."""
        suffix = next(name for name, each in ELEMENT_TYPES.items() if each == kind)
        made = f"{value.name}.{suffix}"
        while made in self.taken:
            made += "_"
        self.taken.add(made)
        return made
