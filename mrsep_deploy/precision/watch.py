"""Graphs run on ONNX Runtime's CPU to be looked into: as they are, or emulated with every rounded tensor watched."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import BATCH, Stage
from mrsep_deploy.errors import BundleError, first_line
from mrsep_deploy.precision.emulate import rounded_model
from mrsep_deploy.precision.graph import MOVEMENT, serialised
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.node_types import FLOAT
from mrsep_deploy.precision.numbers import LOW_TYPES
from mrsep_deploy.process.machine import cpu_budget

Array = NDArray[Any]
Arrays = dict[str, Array]

MARK = "proof."
FIGURES = {"highest": "ReduceMax", "lowest": "ReduceMin", "sum": "ReduceSum"}
"""Reductions of every rounded tensor. The sum shows NaN, which a maximum may pass over."""


def run_graph(graph: bytes, stage: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Arrays:
    """Runs a graph for a batch of one and returns some of its outputs by name.

    Raises:
        BundleError: ONNX Runtime cannot run it; the message names the stage.
    """
    results = _session(graph, stage).run(list(outputs), dict(inputs))
    return dict(zip(outputs, results, strict=True))


def _session(graph: bytes, stage: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = cpu_budget()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(BATCH, 1)
    # Reductions run as soon as their tensor is there, and what it lets go of is the next one's.
    options.enable_mem_pattern = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise BundleError(
            f"ONNX Runtime cannot run stage {stage} to prove its conversion: {first_line(error)}",
            "Use the float32 bundle, and report this.",
        ) from error


class Watched:
    """A converted graph, emulated, whose rounded tensors and outputs are watched while it runs.

    Args:
        data: the graph as ``typed_graph`` gives it.
        stage: that it computes.
        precision: of its low nodes.
        low: their names.

    Attributes:
        largest: the largest magnitude of every watched tensor over all runs, by its name.
        nodes: by tensor, the node of low precision that computes it, or else the first that reads it.
    """

    def __init__(self, data: bytes, stage: Stage, precision: Low, low: Collection[str]) -> None:
        self.stage, self.precision = stage, precision
        model = rounded_model(data)
        graph, tape = model.graph, ir.tape.Tape()
        self.nodes: dict[str, str] = {}
        for node in list(graph):
            value = node.outputs[0]
            rounded = node.op_type == "Cast" and value.dtype in LOW_TYPES
            if not rounded and not (value.is_graph_output() and value.dtype == FLOAT):
                continue
            tensor, self.nodes[tensor] = str(value.name), _concerned(node, frozenset(low))
            wide = tape.op("Cast", [value], {"to": FLOAT}) if rounded else value
            for figure, operator in FIGURES.items():
                made = tape.op(operator, [wide], {"keepdims": 0})
                made.name, made.dtype, made.shape = f"{MARK}{tensor}.{figure}", FLOAT, ir.Shape([])
                graph.outputs.append(made)
        graph.extend(tape.nodes)
        self.largest = dict.fromkeys(self.nodes, 0.0)
        self.session = _session(serialised(model, None), stage.name)

    def run(self, tensors: Mapping[str, Array]) -> Arrays:
        """Returns the stage's outputs.

        Raises:
            BundleError: a watched tensor is not finite; names the stage and the node.
        """
        figures = [f"{MARK}{tensor}.{figure}" for tensor in self.nodes for figure in FIGURES]
        names = [*self.stage.outputs, *figures]
        inputs = {name: tensors[name] for name in self.stage.inputs}
        results = dict(zip(names, self.session.run(names, inputs), strict=True))
        for tensor, node in self.nodes.items():
            highest, lowest, total = (float(results[f"{MARK}{tensor}.{figure}"]) for figure in FIGURES)
            largest = max(highest, -lowest)
            if np.isnan([total, largest]).any() or np.isinf(largest):
                found = "NaN" if np.isnan(total) and not np.isinf(largest) else "infinity"
                raise BundleError(
                    f"stage {self.stage.name} leaves the range of {self.precision} at the node {node}: {found} on the "
                    "probe, expected finite numbers",
                    "Run verify --bisect in that precision: it writes a plan that keeps such nodes in float32.",
                )
            self.largest[tensor] = max(self.largest[tensor], largest)
        return {name: results[name] for name in self.stage.outputs}


def _concerned(cast: ir.Node, low: frozenset[str]) -> str:
    """The node of low precision that computes what is rounded here, or else the first that reads it."""
    origin = cast.inputs[0].producer() if cast.op_type == "Cast" and cast.inputs[0] is not None else cast
    if origin is None or origin.name not in low:
        for reader in _readers(cast):
            if reader.name in low:
                return str(reader.name)
    return str(origin.name if origin is not None else cast.outputs[0].name)


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """Yields the nodes that compute with a result, with nothing but movement and casts in between."""
    for reader in node.successors():
        if reader.op_type in MOVEMENT or reader.op_type == "Cast":
            yield from _readers(reader)
        else:
            yield reader
