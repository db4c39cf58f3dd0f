"""The range of every tensor on real signals, measured in float32 before any GPU is involved.

Every graph gets, for each of its tensors, a few reductions that become outputs of their own: what leaves a
run is a handful of numbers for each tensor, not the tensors, which would be gigabytes. Beside each product
stands the same product of squares: how large its terms are, whose sum may be small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mrsep_deploy.precision.ranges import Calibration, Range, require_folder, store
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.verification.batches import batches, groups, spread, stacked
from mrsep_deploy.verification.chain import Chain
from mrsep_deploy.verification.tracks import Track

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]

FIGURES = ("highest", "lowest", "squares", "smallest", "tiny")
PRODUCT = "product"
MARK = "calibration."
STEP = 61
"""Of large tensors every so many numbers are a sample; prime, so that it falls on all rows and columns."""
_HUGE = float(np.finfo(np.float32).max)


def calibrate(
    bundle: Bundle, tracks: Sequence[Track], threads: int = 0, progress: Progress | None = None
) -> Bundle:
    """Measures the ranges of all tensors of a float32 bundle and store them in it.

    Args:
        bundle: a folder, not an archive.
        tracks: what to run, up to ``ISOLATED`` batches of each.
        threads: CPU threads, 0 for all.
        progress: called before every batch.

    Returns:
        The bundle with the ranges, opened anew.

    Raises:
        UsageError: the bundle is an archive, or not in float32.
        ExportError: a tensor is not finite in float32.
        OutputError: the bundle cannot be written; nothing has changed then.
    """
    require_folder(bundle)
    return store(bundle, measure(bundle, tracks, threads, progress))


def measure(
    bundle: Bundle, tracks: Sequence[Track], threads: int = 0, progress: Progress | None = None
) -> Calibration:
    """:func:`calibrate` without storing anything."""
    manifest = bundle.manifest
    if manifest.precision != "float32":
        raise UsageError(
            f"{manifest.name} is of precision {manifest.precision}, ranges are measured in float32",
            "Give the bundle it was made from.",
        )
    engine = choose("ort", EngineOptions(threads)).engine
    try:
        stages = [
            _Stage(stage, bundle.graph_bytes(stage), threads or cpu_budget())
            for stage in manifest.graph_stages
        ]
        signals: dict[str, int] = {}
        total = sum(len(spread(batches(track, manifest))) for track in tracks)
        with Chain(bundle, engine) as chain:
            for track in tracks:
                chosen = spread(batches(track, manifest))
                for index, group in enumerate(groups(track, manifest)):
                    if index not in chosen:
                        continue
                    if progress is not None:
                        progress(track.name, sum(signals.values()), total)
                    signals[track.name] = signals.get(track.name, 0) + 1
                    tensors = chain.run(stacked(group, manifest))
                    for stage in stages:
                        stage.measure(tensors, track.name)
        if progress is not None:
            progress("done", total, total)
        return Calibration(signals, {stage.name: stage.ranges() for stage in stages})
    finally:
        engine.close()


# --- one stage


class _Stage:
    """A graph that also gives its tensors' figures, and what they were in every run."""

    def __init__(self, stage: Stage, data: bytes, threads: int) -> None:
        import onnxruntime as ort

        self.name, self.inputs = stage.name, stage.inputs
        model = read_graph(data, stage.name)
        tensors = tuple(measured(model.graph))
        self.elements = {str(value.name): elements(value) for value in tensors}
        self.runs: list[Array] = []
        figures = _Figures(model.graph)
        figures.add(tensors)
        self.figures = figures.names
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
        return {name: self._range(found, name, size) for name, size in self.elements.items()}

    def _range(self, found: Mapping[tuple[str, str], Array], name: str, size: int) -> Range:
        """Returns the range of one tensor of ``size`` elements from its figures in every run."""
        highest, lowest, squares, smallest, tiny = (found[name, figure] for figure in FIGURES)
        terms = found.get((name, PRODUCT), np.zeros(1))
        power = float(squares.mean()) / size
        sounding = squares[squares > 0]
        return Range(
            largest=float(max(highest.max(), -lowest.min())),
            smallest=float(smallest.min()) if smallest.min() < _HUGE else 0.0,
            rms=power**0.5,
            quietest=float(sounding.min() / size) ** 0.5 if len(sounding) else 0.0,
            tiny=float(tiny.mean()),
            amplification=(float(terms.mean()) / power) ** 0.5 if power else 0.0,
        )


def measured(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields values with a range of their own: the float inputs, and what is computed; movement changes nothing."""
    yield from (value for value in graph.inputs if is_float(value))
    for node in computing(graph):
        yield from (value for value in node.outputs if is_float(value))


class _Figures:
    """Adds reductions to a graph, which become its outputs.

    Attributes:
        names: tensor and figure of every output, in their order.
    """

    def __init__(self, graph: ir.Graph) -> None:
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

    def add(self, tensors: Sequence[ir.Value]) -> None:
        """Gives the graph a scalar output for every figure of some of its tensors, and no other outputs."""
        self.graph.outputs.clear()
        nodes = list(self.graph)
        for value in tensors:
            producer = value.producer()
            made = self._of_tensor(value)
            if producer is None:
                self.graph.insert_before(nodes[0], made)
            else:
                self.graph.insert_after(producer, made)
        for node in nodes:
            if node.op_type in PRODUCTS:
                self.graph.insert_after(node, self._of_product(node))

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
        sample = tape.op(
            "Abs", [tape.op("Slice", [flat, known["start"], known["end"], known["start"], step])]
        )
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
