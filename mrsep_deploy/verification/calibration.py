"""The range of every tensor on real signals, measured in float32 before any GPU is involved.

Every graph gets, for each of its tensors, a few reductions that become outputs of their own: what leaves a
run is a handful of numbers for each tensor, not the tensors, which would be gigabytes. Beside each product
stands the same product of squares: how large its terms are, whose sum may be small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import EngineError, ExportError, UsageError, first_line
from mrsep_deploy.precision.fold import centred_view
from mrsep_deploy.precision.graph import MOVEMENT, PRODUCTS, GraphView
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
_HUGE = np.float32(np.finfo(np.float32).max)


def calibrate(
    bundle: Bundle, tracks: Sequence[Track], threads: int = 0, progress: Progress | None = None
) -> Bundle:
    """Measure the ranges of all tensors of a float32 bundle and store them in it.

    Args:
        bundle: a folder, not an archive.
        tracks: what to listen to, up to ``ISOLATED`` batches of each.
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
        engine.device.close()


# --- one stage


@dataclass
class _Gathered:
    """What is known of a tensor so far; sums are of squares."""

    largest: float = 0.0
    smallest: float = float(_HUGE)
    squares: float = 0.0
    quietest: float = float(_HUGE)
    tiny: float = 0.0
    product: float = 0.0
    runs: int = 0


class _Stage:
    """A graph that also gives its tensors' figures, and what they have been."""

    def __init__(self, stage: Stage, data: bytes, threads: int) -> None:
        import onnxruntime as ort

        self.name, self.inputs = stage.name, stage.inputs
        # as reduced precision will have it: its rules speak of the graph with centred folds
        self.view = centred_view(GraphView(data, stage.name))
        self.tensors = tuple(measured(self.view))
        self.gathered = {name: _Gathered() for name in self.tensors}
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Stages take turns: what one has let go of is the next one's.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        # Reductions run as soon as their tensor is there, so that it can be let go of.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        model = _with_figures(self.view, self.tensors)
        self.outputs = [output.name for output in model.graph.output]
        try:
            self.session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise EngineError(
                f"ONNX Runtime cannot calibrate stage {self.name}: {first_line(error)}"
            ) from error

    def measure(self, tensors: Mapping[str, Array], track: str) -> None:
        """Run on one batch, given every tensor between stages."""
        values = self.session.run(self.outputs, {name: tensors[name] for name in self.inputs})
        found = dict(zip(self.outputs, (float(value) for value in values), strict=True))
        for name in self.tensors:
            highest, lowest, squares, smallest, tiny = (found[_named(name, figure)] for figure in FIGURES)
            if not np.isfinite(squares):
                raise ExportError(
                    f"{name} in stage {self.name} is not finite in float32 on {track}",
                    "The model itself breaks there; export a sound checkpoint.",
                )
            gathered = self.gathered[name]
            gathered.runs += 1
            gathered.largest = max(gathered.largest, highest, -lowest)
            gathered.smallest = min(gathered.smallest, smallest)
            gathered.squares += squares
            gathered.tiny += tiny
            gathered.product += found.get(_named(name, PRODUCT), 0.0)
            if squares:
                gathered.quietest = min(gathered.quietest, squares)

    def ranges(self) -> dict[str, Range]:
        """All tensors, in the graph's order."""
        return {name: self._range(name) for name in self.tensors}

    def _range(self, name: str) -> Range:
        found, elements = self.gathered[name], self.view.elements(name)
        runs = max(found.runs, 1)
        power = found.squares / runs / elements
        return Range(
            largest=found.largest,
            smallest=found.smallest if found.smallest < _HUGE else 0.0,
            rms=power**0.5,
            quietest=(found.quietest / elements) ** 0.5 if found.largest else 0.0,
            tiny=found.tiny / runs,
            amplification=(found.product / runs / power) ** 0.5 if power else 0.0,
        )


def measured(view: GraphView) -> Iterator[str]:
    """Tensors with a range of their own: the float inputs, and what is computed; movement changes nothing."""
    yield from (name for name in view.inputs if view.is_float(name))
    for node in view.floats():
        if node.op_type not in MOVEMENT:
            yield from (name for name in node.output if name and view.is_float(name))


def _named(tensor: str, figure: str) -> str:
    return f"{MARK}{tensor}.{figure}"


def _with_figures(view: GraphView, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with a scalar output for every figure of every tensor, and no other outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    graph = model.graph
    numbers = {"zero": 0.0, "huge": float(_HUGE), "normal": smallest_normal("float16")}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), MARK + name) for name, value in numbers.items()
    )
    places = {"flat": [-1], "start": [0], "end": [2**62], "step": [STEP], "one": [1]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), MARK + name) for name, value in places.items()
    )
    wanted = set(tensors)
    nodes: list[NodeProto] = [made for name in view.inputs if name in wanted for made in _figures(view, name)]
    for node in view.nodes:
        nodes.append(node)
        nodes += [made for name in node.output if name in wanted for made in _figures(view, name)]
        if node.op_type in PRODUCTS:
            nodes += _product(node)
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    outputs = [name for node in nodes for name in node.output if _is_figure(name)]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in outputs)
    return model


def _is_figure(name: str) -> bool:
    return name.startswith(MARK) and name.rpartition(".")[2] in (*FIGURES, PRODUCT)


def _figures(view: GraphView, tensor: str) -> list[NodeProto]:
    """The reductions of one tensor, over all axes."""

    def inner(step: str) -> str:
        return f"{MARK}{tensor}.{step}.inner"

    def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(operator, inputs, [output], **attributes)

    size = math.prod(view.shapes[tensor])
    step = f"{MARK}{'step' if size > STEP * STEP else 'one'}"
    positive, magnitude = inner("positive"), inner("magnitude")
    return [
        node("ReduceMax", [tensor], _named(tensor, "highest"), keepdims=0),
        node("ReduceMin", [tensor], _named(tensor, "lowest"), keepdims=0),
        node("ReduceSumSquare", [tensor], _named(tensor, "squares"), keepdims=0),
        # the others would copy the tensor, so they see a sample of it
        node("Reshape", [tensor, f"{MARK}flat"], inner("flat")),
        node("Slice", [inner("flat"), f"{MARK}start", f"{MARK}end", f"{MARK}start", step], inner("sample")),
        node("Abs", [inner("sample")], inner("abs")),
        node("Greater", [inner("abs"), f"{MARK}zero"], positive),
        node("Where", [positive, inner("abs"), f"{MARK}huge"], magnitude),
        node("ReduceMin", [magnitude], _named(tensor, "smallest"), keepdims=0),
        node("Less", [magnitude, f"{MARK}normal"], inner("less")),
        node("Cast", [inner("less")], inner("share"), to=TensorProto.FLOAT),
        node("ReduceMean", [inner("share")], _named(tensor, "tiny"), keepdims=0),
    ]


def _product(node: NodeProto) -> Iterator[NodeProto]:
    """The same product of squares: the mean energy of its terms, were there no cancellation."""
    squared = []
    for name in node.input:
        square = f"{MARK}{node.name}.{name}.square"
        if not name:
            squared.append("")
            continue
        if square not in squared:
            yield helper.make_node("Mul", [name, name], [square])
        squared.append(square)
    made = NodeProto()
    made.CopyFrom(node)
    made.name = MARK + node.name
    del made.input[:], made.output[:]
    made.input.extend(squared)
    made.output.append(f"{MARK}{node.name}.terms")
    yield made
    yield helper.make_node("ReduceMean", [made.output[0]], [_named(node.output[0], PRODUCT)], keepdims=0)
