"""Proof of a conversion: converted graphs run on a probe as a GPU would round, before anything is written.

Every stage reads exact tensors, those of the float32 graphs, so that its error is its own; then all stages follow each
other. A number that is not finite inside of a stage may be gone at its end (``x / inf = 0``), so every rounded tensor
of a stage is watched. What comes near the largest number on the probe is told, too: other signals are louder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import MIX, STEMS, Manifest, Stage
from mrsep_deploy.errors import BundleError
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.probe import probe_signal
from mrsep_deploy.precision.convert_graph import TypedGraph
from mrsep_deploy.precision.emulate import rounded_model
from mrsep_deploy.precision.graph import cast as cast_to
from mrsep_deploy.precision.graph import computing, elements, serialised, sources
from mrsep_deploy.precision.hazards import overflow, ranked
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.node_types import FLOAT
from mrsep_deploy.precision.numbers import LOW_TYPES
from mrsep_deploy.precision.proof_record import (
    EXACT_DB,
    LEAST_DB,
    ONE_ROUNDING_DB,
    Hazard,
    Proof,
    StageProof,
)
from mrsep_deploy.precision.watch import Array, Arrays, Watched, run_graph
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.transforms.host import host_runner

SHOWN_BYTES = 2**29
"""Tensors that are looked at together, when the node that loses most is looked for."""


def prove(
    bundle: Bundle, typed: Mapping[str, TypedGraph], converted: Manifest, hazards: Iterable[Hazard] = ()
) -> Proof:
    """Runs converted graphs beside the float32 ones.

    Args:
        bundle: in float32.
        typed: the converted graph of every graph stage.
        converted: the manifest to be; it gives the tensors between stages their types.
        hazards: known before.

    Raises:
        BundleError: a tensor is not finite; names the stage and the node.
    """
    run = _Run(bundle.at_batch(1), typed, converted)
    for stage in bundle.manifest.stages:
        run.step(stage)
    sources = bundle.manifest.model.sources
    pairs = zip(sources, run.found[STEMS][0], run.exact[STEMS][0], strict=True)
    stems = {source: _snr(low, high) for source, low, high in pairs}
    return Proof(run.stages, stems, tuple(ranked([*hazards, *run.hazards])))


class _Run:
    """Both chains of stages on the probe, side by side.

    Attributes:
        exact, found: the tensors of the float32 graphs, and of the converted ones one after the other.
        stages, hazards: of the stages so far.
    """

    def __init__(self, bundle: Bundle, typed: Mapping[str, TypedGraph], converted: Manifest) -> None:
        self.bundle, self.typed, self.converted = bundle, typed, converted
        model = bundle.manifest.model
        mix = probe_signal(model.audio_channels, model.segment_samples, model.sample_rate)[None]
        self.exact: Arrays = {MIX: mix}
        self.found: Arrays = {MIX: mix}
        self.stages: dict[str, StageProof] = {}
        self.hazards: list[Hazard] = []

    def step(self, stage: Stage) -> None:
        """Runs one stage in both chains; where both read the same, what is the same runs once."""
        same = all(self.found[name] is self.exact[name] for name in stage.inputs)
        if stage.kind != "graph":
            manifest = self.bundle.manifest
            self.exact |= _on_host(manifest, stage, self.exact)
            if same:
                self.found |= {name: self.exact[name] for name in stage.outputs}
            else:
                self.found |= _on_host(manifest, stage, self.found)
            return
        self._run_exact(stage)
        typed, precision = self.typed[stage.name], cast("Low", self.converted.precision)
        watched = Watched(typed.data, stage, precision, typed.low)
        alone = watched.run(self._rounded(stage, self.exact))
        self._judge(stage, alone)
        self.found |= alone if same else watched.run(self._rounded(stage, self.found))
        for tensor, largest in watched.largest.items():
            kind = overflow(largest, precision)
            if kind is not None:
                self.hazards.append(Hazard(stage.name, watched.nodes[tensor], tensor, kind, largest, "probe"))

    def _run_exact(self, stage: Stage) -> None:
        given = {name: self.exact[name] for name in stage.inputs}
        made = run_graph(self.bundle.graph_bytes(stage), stage.name, given, stage.outputs)
        for name, value in made.items():
            if not np.isfinite(value).all():
                raise BundleError(
                    f"{name} of stage {stage.name} is not finite in float32 on the probe, expected finite numbers",
                    "The model itself breaks there; export a sound checkpoint.",
                )
        self.exact |= made

    def _judge(self, stage: Stage, alone: Arrays) -> None:
        """Records what a stage loses on exact inputs, and where, if it is much."""
        snr = min(_snr(alone[name], self.exact[name]) for name in stage.outputs)
        weakest = None
        if snr < LEAST_DB:
            given = {name: self.exact[name] for name in stage.inputs}
            typed, precision = self.typed[stage.name], cast("Low", self.converted.precision)
            weakest = _weakest(typed, precision, given, self._rounded(stage, self.exact))
        self.stages[stage.name] = StageProof(snr, weakest)

    def _rounded(self, stage: Stage, tensors: Mapping[str, Array]) -> Arrays:
        specs = {name: self.converted.tensor(name) for name in stage.inputs}
        with np.errstate(over="ignore"):
            return {name: tensors[name].astype(spec.dtype, copy=False) for name, spec in specs.items()}


def _snr(found: Array, exact: Array) -> float:
    """SNR in dB to a tenth, between the bounds of :class:`~mrsep_deploy.precision.proof_record.Proof`."""
    snr = Deviation.between(found.astype(np.float32), exact).snr
    return round(float(np.clip(snr, -EXACT_DB, EXACT_DB)), 1)


def _on_host(manifest: Manifest, stage: Stage, tensors: Mapping[str, Array]) -> Arrays:
    given = {name: tensors[name].astype(np.float32, copy=False) for name in stage.inputs}
    made = {name: np.empty(manifest.tensor(name).shape, np.float32) for name in stage.outputs}
    host_runner(stage, manifest.branches, cpu_budget())({**given, **made})
    return made


def _weakest(typed: TypedGraph, precision: Low, exact: Mapping[str, Array], low: Mapping[str, Array]) -> str:
    """The node at which a stage loses most: its result's SNR is furthest below those of what it reads.

    That a result is rounded at all is no loss: of bfloat16 it would hide every other one.

    Args:
        typed: the stage's graph.
        precision: of its low nodes.
        exact, low: its inputs, for the float32 graph and for the converted one.
    """
    graph = typed.source
    nodes = [node for node in computing(graph.model.graph) if node.outputs[0].name]
    found: dict[str, float] = {}
    for part in _parts(nodes):
        names = [str(node.outputs[0].name) for node in part]
        high = _shown(graph.model.clone(), names, graph.stage, exact)
        rounded = _shown(rounded_model(typed.data), names, graph.stage, low)
        for name, value, other in zip(names, high, rounded, strict=True):
            found[name] = _snr(other, value)

    def loss(node: ir.Node) -> float:
        read = (producer.outputs[0].name for producer in sources(node))
        before = (found[name] for name in map(str, read) if name in found)
        return min([ONE_ROUNDING_DB[precision], *before]) - found[str(node.outputs[0].name)]

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
    """What the nodes of a graph compute under these names; in float32, as ONNX Runtime gives no arrays of bfloat16."""
    graph, shown = model.graph, []
    values = {str(value.name): value for node in graph for value in node.outputs}
    for name in names:
        value = values[name]
        if value.dtype in LOW_TYPES:
            wide = cast_to(value, FLOAT, f"{name}.shown")
            graph.append(wide)
            value = wide.outputs[0]
        if not value.is_graph_output():
            graph.outputs.append(value)
        shown.append(str(value.name))
    return list(run_graph(serialised(model, None), stage, inputs, shown).values())
