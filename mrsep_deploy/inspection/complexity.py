"""What a model costs: parameters, multiply-accumulates and activations, by stage and in all.

    parameters    learnt numbers
    MACs          multiply-accumulates of convolutions, linear layers and both products of attention in the model
                  as published; ``inspect`` gives the same. A FLOP count is twice that
    in graphs     those of a bundle's ONNX graphs, which compute the same rewritten: norms folded into
                  convolutions multiply a little more, and a convolution that fuses branches becomes products
                  with matrices that are half zeros
    activations   elements that those same operators put out (Radosavovic et al., "Designing Network Design
                  Spaces", 2020); the scores of softmax attention are among them, which a fused kernel
                  never stores. Of a bundle they are those of its graphs

All of it is for one segment, a batch of one. Spectrograms and their inverses are no part of the network and
count nothing. Counting needs the extra ``export``.

    >>> complexity("htdemucs").macs                                       # doctest: +SKIP
    167025803264
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.bundle.registry import resolve
from mrsep_deploy.errors import BundleError
from mrsep_deploy.inspection.inspect import is_checkpoint
from mrsep_deploy.terminal.tables import NOTHING, Table, count, file_size, print_table

if TYPE_CHECKING:
    from mrsep_deploy.export.families.family import Audio
    from mrsep_deploy.export.families.staged import StagedModel


FLOAT32_BYTES = 4

Kind = Literal["bundle", "checkpoint", "configuration"]

NOTE = (
    "For one segment, batch 1; spectrograms and inverses are not counted. MACs, share and FLOPs: of the model as "
    "published. Activations: elements that convolutions and matrix products put out; float32: the bytes they take."
)
GRAPHS_NOTE = "In graphs: MACs of the ONNX graphs, rewritten; activations are theirs, too."


@dataclass(frozen=True)
class StageCost:
    """One stage of the network.

    Attributes:
        branch: the branch it belongs to, or ``shared``.
        macs: of the model as published.
        graph_macs: of its ONNX graph; None where there is none.
    """

    name: str
    branch: str
    parameters: int
    macs: int
    graph_macs: int | None
    activations: int


@dataclass(frozen=True)
class ModelCost:
    """A model and its stages, in the order in which they run.

    Attributes:
        segment: length of a segment in seconds.
        parameters: of the whole model. Learnt weights that no graph holds (those of the resolutions, folded
            into the de-normalisation) make it more than the sum over the stages.
    """

    kind: Kind
    name: str
    family: str
    segment: float
    parameters: int
    stages: tuple[StageCost, ...]

    @property
    def macs(self) -> int:
        return sum(stage.macs for stage in self.stages)

    @property
    def graph_macs(self) -> int | None:
        """Of a bundle's graphs; None for anything else."""
        return sum(stage.graph_macs or 0 for stage in self.stages) if self.kind == "bundle" else None

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def activations(self) -> int:
        return sum(stage.activations for stage in self.stages)

    @property
    def outside(self) -> int:
        """Parameters that belong to no stage."""
        return self.parameters - sum(stage.parameters for stage in self.stages)


def complexity(path_or_name: str | os.PathLike[str] | None = None) -> ModelCost:
    """Counts a bundle (its path, its registered name, or None for the default) or a checkpoint.

    Raises:
        UsageError: nothing of that name is registered.
        BundleError, CheckpointError: it is damaged, or of a kind that is not supported.
        ExportError: the extra is not installed.
    """
    from mrsep_deploy.export.api import default_name, require_extra

    if path_or_name is not None and is_checkpoint(path_or_name):
        require_extra("counting a checkpoint")
        from mrsep_deploy.export.load import load_model

        loaded = load_model(Path(path_or_name))
        return _cost("checkpoint", default_name(loaded), loaded.variant, loaded.staged(), loaded.audio)
    bundle = Bundle.open(resolve(path_or_name))
    require_extra("counting a bundle's graphs")
    return bundle_cost(bundle)


def bundle_cost(bundle: Bundle) -> ModelCost:
    """Counts the graph stages of a bundle; needs the packages ``onnx`` and ``onnx-ir``.

    Parameters and MACs are the manifest's, which the export counted on the model; MACs in graphs and activations
    are counted here. The norms folded into DConv take some products of their own (0.3 % of the trained HTDemucs),
    and a crop done as padding leaves out elements that the checkpoint's operators compute and throw away.

    Raises:
        BundleError: a graph is damaged, or its shapes are not static.
    """
    name, model = bundle.manifest.name, bundle.manifest.model
    stages = tuple(_stage_cost(bundle, stage) for stage in bundle.manifest.graph_stages)
    return ModelCost("bundle", name, model.family, float(model.segment), model.parameters, stages)


def _stage_cost(bundle: Bundle, stage: Stage) -> StageCost:
    import onnx

    from mrsep_deploy.precision.graph import PRODUCTS, elements, inferred
    from mrsep_deploy.precision.work import node_macs

    graph = inferred(onnx.load_model_from_string(bundle.graph_bytes(stage))).graph
    nodes = [node for node in graph if node.op_type in PRODUCTS]
    for node in nodes:
        for value in (*node.inputs[:2], node.outputs[0]):
            if value is None or value.shape is None or not value.shape.is_static():
                raise BundleError(
                    f"{stage.file} in {bundle.path} does not tell the shape of {value and value.name}, "
                    "expected static shapes",
                    "Export the bundle again.",
                )
    macs = sum(map(node_macs, nodes))
    activations = sum(elements(node.outputs[0]) for node in nodes)
    return StageCost(stage.name, stage.branch, stage.parameters, stage.macs, macs, activations)


def configuration_cost(variant: str, arguments: Mapping[str, object]) -> ModelCost:
    """Counts the model that these constructor arguments make, of Demucs' four sources by default; no weights needed.

    Raises:
        CheckpointError: the arguments make no model; the message names what is wrong.
        ExportError: the extra is not installed.
    """
    from mrsep_deploy.export.api import require_extra

    require_extra("counting a configuration")
    from mrsep_deploy.export.families import family_of
    from mrsep_deploy.export.families.staged import StagedModel
    from mrsep_deploy.export.load import DEFAULT_SOURCES, meta_model

    found = family_of(variant)
    config, _ignored = found.config(variant, (), {"sources": list(DEFAULT_SOURCES), **arguments})
    staged = StagedModel(found, meta_model(variant, config))
    return _cost("configuration", variant, variant, staged, found.audio(config))


def _cost(kind: Kind, name: str, variant: str, staged: StagedModel, audio: Audio) -> ModelCost:
    """Counts every stage of a model; nothing is allocated or computed."""
    from mrsep_deploy.export.complexity import count_stages

    counted = count_stages(staged, audio)
    stages = tuple(
        StageCost(s.name, s.branch, s.parameters, s.macs, None, counted.activations[s.name])
        for s in counted.stages
        if s.kind == "graph"
    )
    seconds = audio.segment_samples / audio.sample_rate
    return ModelCost(kind, name, variant, seconds, counted.parameters, stages)


def to_plain(cost: ModelCost) -> dict[str, object]:
    """Returns the costs for ``--json``: numbers unrounded, totals and what a second of audio costs included."""
    whole = {
        "activations": cost.activations,
        "activation_bytes_float32": FLOAT32_BYTES * cost.activations,
        "macs": cost.macs,
        "flops": cost.flops,
    }
    return {
        "kind": cost.kind,
        "name": cost.name,
        "family": cost.family,
        "segment_seconds": cost.segment,
        "parameters": cost.parameters,
        "parameters_outside_stages": cost.outside,
        "graph_macs": cost.graph_macs,
        **whole,
        "per_second_of_audio": {name: value / cost.segment for name, value in whole.items()},
        "stages": [
            {**asdict(stage), "activation_bytes_float32": FLOAT32_BYTES * stage.activations}
            for stage in cost.stages
        ],
    }


def print_cost(screen: Console, cost: ModelCost) -> None:
    """Prints the stages, the sum, and what a second of audio costs."""
    screen.print(cost.name, style="bold")
    screen.print(f"{cost.family}, {cost.kind}, segments of {cost.segment:g} s\n")
    print_table(screen, _table(cost))
    screen.print(f"\n{NOTE}" + (f" {GRAPHS_NOTE}" if cost.kind == "bundle" else ""), style="dim")


def _table(cost: ModelCost) -> Table:
    """Returns a row for each stage, one for learnt weights that no stage holds, and the sums."""
    graphs = ("in graphs",) if cost.kind == "bundle" else ()
    numbers = ("parameters", "MACs", "share", "FLOPs", *graphs, "activations", "float32")
    rows = [[stage.name, *_figures(stage, cost.macs)] for stage in cost.stages]
    if cost.outside:
        rows.append(["weights of resolutions", count(cost.outside), *(NOTHING,) * (len(numbers) - 1)])
    whole = StageCost("whole", "", cost.parameters, cost.macs, cost.graph_macs, cost.activations)
    rows.append([whole.name, *_figures(whole, cost.macs)])
    strong = [len(rows) - 1]
    macs, activations = round(cost.macs / cost.segment), round(cost.activations / cost.segment)
    in_graphs = None if cost.graph_macs is None else round(cost.graph_macs / cost.segment)
    second = StageCost("a second of audio", "", 0, macs, in_graphs, activations)
    rows.append([second.name, "", *_figures(second, macs)[1:]])
    return Table("Costs", ("stage", *numbers), rows, strong=strong)


def _figures(stage: StageCost, macs: int) -> list[str]:
    return [
        count(stage.parameters),
        count(stage.macs),
        f"{stage.macs / macs:.1%}" if macs else NOTHING,
        count(2 * stage.macs),
        *([] if stage.graph_macs is None else [count(stage.graph_macs)]),
        count(stage.activations),
        file_size(FLOAT32_BYTES * stage.activations),
    ]
