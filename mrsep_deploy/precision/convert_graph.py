"""A float32 graph in lower precision: every node has a type, and casts stand only where types meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from mrsep_deploy.errors import BundleError, first_line
from mrsep_deploy.precision.fold import centred_view
from mrsep_deploy.precision.graph import MOVEMENT, GraphView
from mrsep_deploy.precision.node_types import node_types
from mrsep_deploy.precision.numbers import ELEMENT_TYPES, low_tensor, type_name
from mrsep_deploy.precision.plan import PrecisionPlan, matching_nodes
from mrsep_deploy.precision.rules import flushed, kept_by_rules
from mrsep_deploy.precision.work import bytes_moved, node_macs

BFLOAT16_OPSET, BFLOAT16_IR = 22, 10
"""The first opset, and the format it is written in, whose convolutions take bfloat16. None of the operators
that exported graphs use means anything else in it than in opset 20."""


@dataclass(frozen=True)
class TypedGraph:
    """A graph in lower precision, and what it costs beside the float32 one.

    Attributes:
        data: the ONNX model.
        casts: how many were inserted.
        kept: names of the nodes that compute in float32.
        nodes: how many compute numbers at all.
        macs, kept_macs: multiply-accumulates of one run, and those of them in float32.
        bytes_moved: bytes that the kernels of one run read and write (``precision_cost.bytes_moved``).
        original_size, original_bytes_moved: of the float32 graph; its size is in bytes.
        flushed: by constant, how many of its numbers are zero or subnormal now and were neither before.
    """

    data: bytes
    casts: int
    kept: tuple[str, ...]
    nodes: int
    macs: int
    kept_macs: int
    bytes_moved: int
    original_size: int
    original_bytes_moved: int
    flushed: Mapping[str, int]


class ReadGraph:
    """A float32 graph that is read once, to be converted by several plans.

    Attributes:
        size: of the serialised graph in bytes.
        exported: as it was exported.

    Raises:
        BundleError: it is no float32 graph with static shapes.
    """

    def __init__(self, data: bytes, stage: str) -> None:
        self.size = len(data)
        self.exported = GraphView(data, stage)

    @cached_property
    def centred(self) -> GraphView:
        """With folded norms in a form that rounding does not harm."""
        return centred_view(self.exported)

    @cached_property
    def bytes_moved(self) -> int:
        """By the kernels of one run of the exported graph."""
        return bytes_moved(self.exported.model)


def node_names(data: bytes) -> tuple[str, ...]:
    """Names of the nodes a plan may name: those that compute floating-point numbers, in the graph's order.

    Raises:
        BundleError: the bytes are no float32 graph.
    """
    return _computing(ReadGraph(data, "graph").centred)


def typed_graph(
    graph: bytes | ReadGraph,
    stage: str,
    plan: PrecisionPlan,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
) -> TypedGraph:
    """A stage's graph in lower precision.

    Args:
        graph: the float32 graph, or a :class:`ReadGraph` of it.
        stage: its name; ``plan.keep`` speaks of stages.
        plan: what stays in float32.
        inputs, outputs: element types at the graph's border, by tensor name; float32 for what is not named.

    Returns:
        A valid, strongly typed ONNX model: operators take one floating-point type each, every cast is there
        once for each tensor and type, none casts another's result, and constants are converted, not cast.

    Raises:
        BundleError: it is no float32 graph with static shapes.
        UsageError: the plan names nodes that are not there.
    """
    read = ReadGraph(graph, stage) if isinstance(graph, bytes) else graph
    view = read.centred if "fold" in plan.rules else read.exported
    names = _computing(view)
    kept = set(kept_by_rules(view, plan.rules, plan.precision, stage))
    # plans may be written for either form of a folded norm
    kept |= matching_nodes(plan, stage, dict.fromkeys((*names, *_computing(read.exported))))
    borders = _border(view, inputs), _border(view, outputs)
    types = node_types(view, kept, ELEMENT_TYPES[plan.precision], *borders)
    model, casts = _Converter(view, plan, types, *borders).convert()
    checked = _checked(model, stage)
    in_float32 = tuple(name for name in names if types[name] == TensorProto.FLOAT)
    macs = {node.name: node_macs(node, view.shapes) for node in view.nodes}
    return TypedGraph(
        data=model.SerializeToString(deterministic=True),
        casts=casts,
        kept=in_float32,
        nodes=len(names),
        macs=sum(macs.values()),
        kept_macs=sum(macs[name] for name in in_float32),
        bytes_moved=bytes_moved(checked),
        original_size=read.size,
        original_bytes_moved=read.bytes_moved,
        flushed=_flushed(view, model, plan),
    )


def _computing(view: GraphView) -> tuple[str, ...]:
    return tuple(node.name for node in view.floats() if node.op_type not in MOVEMENT)


def _border(view: GraphView, types: Mapping[str, str]) -> dict[str, int]:
    """ONNX's element types of the graph's floating-point inputs and outputs."""
    ends = [name for name in (*view.inputs, *view.outputs) if view.is_float(name)]
    return {name: ELEMENT_TYPES[types.get(name, "float32")] for name in ends}


def _flushed(view: GraphView, model: onnx.ModelProto, plan: PrecisionPlan) -> dict[str, int]:
    suffix = f".{plan.precision}"
    low = [t.name.removesuffix(suffix) for t in model.graph.initializer if t.name.endswith(suffix)]
    counts = {name: flushed(view.value(name), plan.precision) for name in low if name in view.constants}
    return {name: count for name, count in counts.items() if count}


def _checked(model: onnx.ModelProto, stage: str) -> onnx.ModelProto:
    """The model with inferred shapes; raises where it is not valid."""
    try:
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(
            f"stage {stage} gave an invalid graph in lower precision: {first_line(error)}",
            "Use the float32 bundle, and report this.",
        ) from error


class _Converter:
    """Writes the nodes again, one after the other, with casts before their first use."""

    def __init__(
        self,
        view: GraphView,
        plan: PrecisionPlan,
        types: Mapping[str, int],
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
    ) -> None:
        self.view, self.plan, self.types = view, plan, types
        self.inputs, self.outputs = inputs, outputs
        self.low = ELEMENT_TYPES[plan.precision]
        self.found: dict[str, int] = {name: inputs[name] for name in view.inputs if view.is_float(name)}
        self.names: dict[str, str] = {}
        self.casts: dict[tuple[str, int], str] = {}
        self.constants: dict[str, TensorProto] = {}
        self.nodes: list[NodeProto] = []

    def convert(self) -> tuple[onnx.ModelProto, int]:
        for node in self.view.nodes:
            self._write(node)
        for name in self.view.outputs:
            if name in self.view.constants:
                self.constants[name] = self.view.constants[name]
        graph = self.view.model.graph
        made = helper.make_graph(
            self.nodes, graph.name,
            [_retyped(value, self.inputs) for value in graph.input],
            [_retyped(value, self.outputs) for value in graph.output],
            list(self.constants.values()),
        )  # fmt: skip
        source = self.view.model
        opset, ir_version = source.opset_import, source.ir_version
        if self.plan.precision == "bfloat16":
            opset, ir_version = [helper.make_opsetid("", BFLOAT16_OPSET)], max(ir_version, BFLOAT16_IR)
        model = helper.make_model(
            made, opset_imports=opset, ir_version=ir_version, producer_name=source.producer_name
        )
        return model, len(self.casts)

    def _write(self, node: NodeProto) -> None:
        made = NodeProto()
        made.CopyFrom(node)
        kind = self.types.get(node.name, TensorProto.FLOAT)
        for index, name in enumerate(node.input):
            if name:
                # scales of Resize are float32 whatever it resizes
                wanted = TensorProto.FLOAT if node.op_type == "Resize" and index in (1, 2) else kind
                made.input[index] = self._read(name, wanted)
        self.nodes.append(made)
        for index, name in enumerate(node.output):
            if self.view.is_float(name):
                self.found[name] = kind
                border = self.outputs.get(name, kind) if name in self.view.outputs else kind
                if border != kind:
                    self._end(made, index, name, kind, border)

    def _end(self, made: NodeProto, index: int, name: str, kind: int, border: int) -> None:
        """An output of the graph that is computed in another type than the border's."""
        inner = self._free(name, kind)
        made.output[index] = inner
        self.names[name] = inner
        self.casts[name, border] = name
        self.nodes.append(_cast(inner, name, border))

    def _read(self, name: str, kind: int) -> str:
        """The name under which a tensor is there in a type."""
        if name in self.view.constants:
            return self._constant(name, kind)
        if not self.view.is_float(name) or self.found[name] == kind:
            return self.names.get(name, name)
        key = (name, kind)
        if key not in self.casts:
            self.casts[key] = self._free(name, kind)
            self.nodes.append(_cast(self.names.get(name, name), self.casts[key], kind))
        return self.casts[key]

    def _constant(self, name: str, kind: int) -> str:
        tensor = self.view.constants[name]
        if not self.view.is_float(name) or kind == TensorProto.FLOAT:
            self.constants[name] = tensor
            return name
        low = self._free(name, kind)
        if low not in self.constants:
            self.constants[low] = low_tensor(tensor, low, self.plan.precision)
        return low

    def _free(self, name: str, kind: int) -> str:
        made = f"{name}.{type_name(kind)}"
        while made in self.view.types:
            made += "_"
        return made


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)


def _retyped(value: ValueInfoProto, types: Mapping[str, int]) -> ValueInfoProto:
    made = ValueInfoProto()
    made.CopyFrom(value)
    if value.name in types:
        made.type.tensor_type.elem_type = types[value.name]
    return made
