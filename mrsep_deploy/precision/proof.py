"""Proof of a conversion: converted graphs run on a probe as a GPU would round, before anything is written.

Every stage reads exact tensors, those of the float32 graphs, so that its error is its own; then all stages follow each
other. A number that is not finite inside of a stage may be gone at its end (``x / inf = 0``), so every rounded tensor
of a stage is watched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import BATCH, MIX, STEMS, Manifest, Stage, TensorSpec
from mrsep_deploy.errors import BundleError, first_line
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.probe import probe_signal
from mrsep_deploy.precision.convert_graph import StageGraph, TypedGraph
from mrsep_deploy.precision.emulate import rounded_model
from mrsep_deploy.precision.graph import computing, elements, serialised, sources
from mrsep_deploy.precision.node_types import FLOAT
from mrsep_deploy.precision.numbers import LOW_TYPES
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.transforms.host import host_runner

Array = NDArray[Any]
Arrays = dict[str, Array]

LEAST_DB = 40.0
"""A stage below it is warned of: well below what the rules leave (50 dB and more), well above what breaks."""
EXACT_DB = 120.0
"""Results that are nearer than float32 tells apart count as exact."""
SHOWN_BYTES = 2**29
_MARK = "proof."


@dataclass(frozen=True)
class Proof:
    """What a conversion costs on the probe: SNR in dB against the float32 graphs.

    Attributes:
        stages: of the worst output of every stage, on exact inputs.
        stems: of every source, through all stages.
        weak: for each stage below ``LEAST_DB``, the node at which most is lost.
    """

    stages: Mapping[str, float]
    stems: Mapping[str, float]
    weak: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """The proof as the ``checks`` of a manifest."""
        stages = {stage: {"snr_db": _finite(snr)} for stage, snr in self.stages.items()}
        return {
            "signal": "seeded music-like probe, one segment, every rounding emulated; SNR in dB against float32",
            **stages,
            "stems": {source: _finite(snr) for source, snr in self.stems.items()},
        }


def _finite(snr: float) -> float | None:
    return round(snr, 1) if np.isfinite(snr) else None


def prove(bundle: Bundle, typed: Mapping[str, TypedGraph], converted: Manifest) -> Proof:
    """Runs converted graphs beside the float32 ones.

    Args:
        bundle: in float32.
        typed: the converted graph of every graph stage.
        converted: the manifest to be; it gives the tensors between stages their types.

    Raises:
        BundleError: a tensor is not finite; names the stage and the node.
    """
    bundle = bundle.at_batch(1)
    manifest, model = bundle.manifest, bundle.manifest.model
    exact: Arrays = {MIX: probe_signal(model.audio_channels, model.segment_samples, model.sample_rate)[None]}
    stages: dict[str, float] = {}
    weak: dict[str, str] = {}
    found = dict(exact)
    for stage in manifest.stages:
        if stage.kind != "graph":
            exact |= _on_host(manifest, stage, exact)
            found |= _on_host(manifest, stage, found)
            continue
        exact |= _run(bundle.graph_bytes(stage), stage, exact)
        watched = _Watched(typed[stage.name].data, stage)
        specs = {name: converted.tensor(name) for name in (*stage.inputs, *stage.outputs)}
        single = watched.run(_rounded(exact, specs, stage.inputs))
        stages[stage.name] = min(
            Deviation.between(single[n].astype(np.float32), exact[n]).snr for n in stage.outputs
        )
        if stages[stage.name] < LEAST_DB:
            given = {name: exact[name] for name in stage.inputs}
            graph, data = StageGraph.of(bundle, stage), typed[stage.name].data
            weak[stage.name] = _weakest(graph, data, given, _rounded(exact, specs, stage.inputs))
        found |= watched.run(_rounded(found, specs, stage.inputs))
    pairs = zip(model.sources, found[STEMS][0], exact[STEMS][0], strict=True)
    return Proof(stages, {source: Deviation.between(low, high).snr for source, low, high in pairs}, weak)


def _on_host(manifest: Manifest, stage: Stage, tensors: Mapping[str, Array]) -> Arrays:
    given = {name: tensors[name].astype(np.float32, copy=False) for name in stage.inputs}
    made = {name: np.empty(manifest.tensor(name).shape, np.float32) for name in stage.outputs}
    host_runner(stage, manifest.branches, cpu_budget())({**given, **made})
    return made


def _rounded(tensors: Mapping[str, Array], specs: Mapping[str, TensorSpec], names: Sequence[str]) -> Arrays:
    with np.errstate(over="ignore"):
        return {name: tensors[name].astype(specs[name].dtype, copy=False) for name in names}


def _session(graph: bytes, stage: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = cpu_budget()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(BATCH, 1)
    # What one tensor lets go of is the next one's: whole stages are watched.
    options.enable_mem_pattern = False
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise BundleError(
            f"ONNX Runtime cannot run stage {stage} to prove its conversion: {first_line(error)}",
            "Use the float32 bundle, and report this.",
        ) from error


def _run(graph: bytes, stage: Stage, tensors: Mapping[str, Array]) -> Arrays:
    results = _session(graph, stage.name).run(
        list(stage.outputs), {name: tensors[name] for name in stage.inputs}
    )
    return dict(zip(stage.outputs, results, strict=True))


class _Watched:
    """A converted graph, emulated, with the sum of every rounded tensor: it is finite if all its numbers are."""

    def __init__(self, data: bytes, stage: Stage) -> None:
        self.stage = stage
        model = rounded_model(data)
        graph, tape = model.graph, ir.tape.Tape()
        self.nodes: dict[str, str] = {}
        for node in list(graph):
            value = node.outputs[0]
            if node.op_type != "Cast" or value.dtype not in LOW_TYPES:
                continue
            origin = node.inputs[0].producer() if node.inputs[0] is not None else None
            wide = tape.op("Cast", [value], {"to": FLOAT})
            total = _scalar(tape, "ReduceSum", wide, f"{_MARK}{len(self.nodes)}")
            self.nodes[str(total.name)] = str(origin.name if origin is not None else value.name)
            graph.outputs.append(total)
        graph.extend(tape.nodes)
        self.session = _session(serialised(model, None), stage.name)

    def run(self, tensors: Mapping[str, Array]) -> Arrays:
        names = [*self.stage.outputs, *self.nodes]
        results = dict(zip(names, self.session.run(names, dict(tensors)), strict=True))
        broken = next((node for total, node in self.nodes.items() if not np.isfinite(results[total])), None)
        if broken is not None:
            raise BundleError(
                f"stage {self.stage.name} leaves the range of its precision at the node {broken}: NaN or infinity on "
                "the probe, expected finite numbers",
                "Keep it in float32 with a plan (--precision mixed --plan FILE), and report this.",
            )
        return {name: results[name] for name in self.stage.outputs}


def _scalar(tape: ir.tape.Tape, operator: str, value: ir.Value, name: str) -> ir.Value:
    made = tape.op(operator, [value], {"keepdims": 0})
    made.name, made.dtype, made.shape = name, FLOAT, ir.Shape([])
    assert made.producer() is not None
    return made


def _weakest(graph: StageGraph, data: bytes, exact: Mapping[str, Array], low: Mapping[str, Array]) -> str:
    """The node at which a stage loses most: its result's SNR is furthest below those of what it reads.

    Args:
        graph, data: of the stage, in float32 and converted.
        exact, low: its inputs, for either.
    """
    nodes = [node for node in computing(graph.model.graph) if node.outputs[0].name]
    found: dict[str, float] = {}
    for part in _parts(nodes):
        names = [str(node.outputs[0].name) for node in part]
        high = _shown(graph.model.clone(), names, graph.stage, exact)
        rounded = _shown(rounded_model(data), names, graph.stage, low)
        for name, value, other in zip(names, high, rounded, strict=True):
            found[name] = min(Deviation.between(other.astype(np.float32), value).snr, EXACT_DB)

    def loss(node: ir.Node) -> float:
        read = (producer.outputs[0].name for producer in sources(node))
        before = min((found.get(str(name), EXACT_DB) for name in read), default=EXACT_DB)
        return before - found[str(node.outputs[0].name)]

    return str(max(nodes, key=loss).name)


def _parts(nodes: Sequence[ir.Node]) -> Iterator[list[ir.Node]]:
    """Nodes in groups whose results take up to ``SHOWN_BYTES`` together."""
    part: list[ir.Node] = []
    size = 0
    for node in nodes:
        more = 4 * elements(node.outputs[0])
        if part and size + more > SHOWN_BYTES:
            yield part
            part, size = [], 0
        part.append(node)
        size += more
    if part:
        yield part


def _shown(model: ir.Model, names: Sequence[str], stage: str, inputs: Mapping[str, Array]) -> list[Array]:
    """What the nodes of a graph compute under these names."""
    ends = {str(value.name) for value in model.graph.outputs}
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in ends)
    results: list[Array] = _session(serialised(model, None), stage).run(list(names), dict(inputs))
    return results
