"""The range of every tensor on real signals, measured in float32 before any GPU is involved.

Every graph gets, for each of its tensors, a few reductions that become outputs of their own: what leaves a
run is a handful of numbers for each tensor, not the tensors, which would be gigabytes. Beside each product
stands the same product of squares: how large its terms are, whose sum may be small.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import EngineError, ExportError, UsageError, first_line
from mrsep_deploy.precision.graph import PRODUCTS, computing, elements, is_float, read_graph, serialised
from mrsep_deploy.precision.numbers import smallest_normal
from mrsep_deploy.precision.ranges import Calibration, Range
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.verification.chain import Chain
from mrsep_deploy.verification.tracks import ISOLATED, Progress, Track, batches, count_batches, silent

Array = NDArray[Any]

FIGURES = ("highest", "lowest", "squares", "smallest", "tiny")
PRODUCT = "product"
MARK = "calibration."
STEP = 61
"""Of large tensors every so many numbers are a sample; prime, so that it falls on all rows and columns."""
_HUGE = float(np.finfo(np.float32).max)


def measure(
    bundle: Bundle, tracks: Sequence[Track], threads: int = 0, progress: Progress = silent
) -> Calibration:
    """Measures the ranges of all tensors of a float32 bundle.

    Args:
        bundle: in float32.
        tracks: what to run, up to ``ISOLATED`` batches of each.
        threads: CPU threads, 0 for all.
        progress: called before every batch.

    Raises:
        UsageError: the bundle is not in float32.
        ExportError: a tensor is not finite in float32.
    """
    manifest = bundle.manifest
    if manifest.precision != "float32":
        raise UsageError(
            f"{manifest.name} is of precision {manifest.precision}, ranges are measured in float32",
            "Give the bundle it was made from.",
        )
    stages = [
        _Stage(stage, bundle.graph_bytes(stage), threads or cpu_budget()) for stage in manifest.graph_stages
    ]
    signals: Counter[str] = Counter()
    total = sum(min(count_batches(track, manifest), ISOLATED) for track in tracks)
    engine = choose("ort", EngineOptions(threads)).engine
    with contextlib.closing(engine), Chain(bundle, engine) as chain:
        for track in tracks:
            for batch in batches(track, manifest):
                if not batch.isolated:
                    continue
                progress(track.name, signals.total(), total)
                signals[track.name] += 1
                tensors = chain.run(batch.mix)
                for stage in stages:
                    stage.measure(tensors, track.name)
    progress("done", total, total)
    return Calibration(dict(signals), {stage.name: stage.ranges() for stage in stages})


# --- one stage


class _Stage:
    """A graph that also gives its tensors' figures, and what they were in every run."""

    def __init__(self, stage: Stage, data: bytes, threads: int) -> None:
        import onnxruntime as ort

        self.name, self.inputs = stage.name, stage.inputs
        model = read_graph(data, stage.name)
        tensors = tuple(_measured(model.graph))
        self.sizes = {str(value.name): elements(value) for value in tensors}
        self.figures = _Figures(model.graph, tensors).names
        self.runs: list[Array] = []
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Stages take turns: what one has let go of is the next one's.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        # Reductions run as soon as their tensor is there, so that it can be let go of.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        try:
            self.session = ort.InferenceSession(serialised(model), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise EngineError(
                f"ONNX Runtime cannot calibrate stage {self.name}: {first_line(error)}"
            ) from error

    def measure(self, tensors: Mapping[str, Array], track: str) -> None:
        """Runs on one batch, given every tensor between stages."""
        values = self.session.run(None, {name: tensors[name] for name in self.inputs})
        for (name, figure), value in zip(self.figures, values, strict=True):
            if figure == "squares" and not np.isfinite(value):
                raise ExportError(
                    f"{name} in stage {self.name} is not finite in float32 on {track}",
                    "The model itself breaks there; export a sound checkpoint.",
                )
        self.runs.append(np.array(values, np.float64))

    def ranges(self) -> dict[str, Range]:
        """Returns the range of every tensor, in the graph's order."""
        found = dict(zip(self.figures, np.array(self.runs).T, strict=True))
        ranges = {}
        for name, size in self.sizes.items():
            highest, lowest, squares, smallest, tiny = (found[name, figure] for figure in FIGURES)
            terms = found.get((name, PRODUCT), np.zeros(1))
            power = float(squares.mean()) / size
            sounding = squares[squares > 0]
            ranges[name] = Range(
                largest=float(max(highest.max(), -lowest.min())),
                smallest=float(smallest.min()) if smallest.min() < _HUGE else 0.0,
                rms=power**0.5,
                quietest=float(sounding.min() / size) ** 0.5 if len(sounding) else 0.0,
                tiny=float(tiny.mean()),
                amplification=(float(terms.mean()) / power) ** 0.5 if power else 0.0,
            )
        return ranges


def _measured(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields values with a range of their own: the float inputs, and what is computed; movement changes nothing."""
    computed = (value for node in computing(graph) for value in node.outputs)
    return (value for value in (*graph.inputs, *computed) if is_float(value))


class _Figures:
    """Adds reductions to a graph: a scalar for every figure of some of its tensors; it has no other outputs then.

    Attributes:
        names: tensor and figure of every output, in their order.
    """

    def __init__(self, graph: ir.Graph, tensors: Sequence[ir.Value]) -> None:
        self.graph = graph
        self.names: list[tuple[str, str]] = []
        numbers = {"zero": 0.0, "huge": _HUGE, "normal": smallest_normal("float16")}
        places = {"flat": [-1], "start": [0], "end": [2**62], "step": [STEP], "one": [1]}
        constants = {name: np.array(value, np.float32) for name, value in numbers.items()}
        constants |= {name: np.array(value, np.int64) for name, value in places.items()}
        self.constants = {
            name: ir.val(MARK + name, const_value=ir.tensor(value, name=MARK + name))
            for name, value in constants.items()
        }
        for constant in self.constants.values():
            graph.register_initializer(constant)
        graph.outputs.clear()
        nodes = list(graph)
        for value in tensors:
            producer, made = value.producer(), self._of_tensor(value)
            if producer is None:
                graph.insert_before(nodes[0], made)
            else:
                graph.insert_after(producer, made)
        for node in nodes:
            if node.op_type in PRODUCTS:
                graph.insert_after(node, self._of_product(node))

    def _output(
        self, tape: ir.tape.Tape, operator: str, value: ir.Value, tensor: ir.Value, figure: str
    ) -> None:
        made = tape.op(operator, [value], {"keepdims": 0})
        made.name = f"{MARK}{tensor.name}.{figure}"
        made.dtype, made.shape = ir.DataType.FLOAT, ir.Shape([])
        self.names.append((str(tensor.name), figure))
        self.graph.outputs.append(made)

    def _of_tensor(self, value: ir.Value) -> Sequence[ir.Node]:
        """The reductions of one tensor, over all axes."""
        tape, known = ir.tape.Tape(), self.constants
        self._output(tape, "ReduceMax", value, value, "highest")
        self._output(tape, "ReduceMin", value, value, "lowest")
        self._output(tape, "ReduceSumSquare", value, value, "squares")
        # the others would copy the tensor, so they see a sample of it
        step = known["step" if elements(value) > STEP * STEP else "one"]
        flat = tape.op("Reshape", [value, known["flat"]])
        taken = tape.op("Slice", [flat, known["start"], known["end"], known["start"], step])
        sample = tape.op("Abs", [taken])
        positive = tape.op("Greater", [sample, known["zero"]])
        magnitude = tape.op("Where", [positive, sample, known["huge"]])
        self._output(tape, "ReduceMin", magnitude, value, "smallest")
        share = tape.op("Cast", [tape.op("Less", [magnitude, known["normal"]])], {"to": ir.DataType.FLOAT})
        self._output(tape, "ReduceMean", share, value, "tiny")
        return tape.nodes

    def _of_product(self, node: ir.Node) -> Sequence[ir.Node]:
        """The same product of squares: the mean energy of its terms, were there no cancellation."""
        tape = ir.tape.Tape()
        squares = {value: tape.op("Mul", [value, value]) for value in node.inputs if value is not None}
        inputs = [squares[value] if value is not None else None for value in node.inputs]
        terms = tape.op(node.op_type, inputs, node.attributes)
        self._output(tape, "ReduceMean", terms, node.outputs[0], PRODUCT)
        return tape.nodes
