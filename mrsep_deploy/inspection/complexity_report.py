"""Costs of a model as a table for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mrsep_deploy.inspection.complexity import FLOAT32_BYTES, ModelCost, StageCost
from mrsep_deploy.terminal.tables import count, file_size, table

NOTE = (
    "For one segment, batch 1; spectrograms and inverses are not counted. MACs, share and FLOPs: of the model as "
    "published. Activations: elements that convolutions and matrix products put out; float32: the bytes they take."
)
GRAPHS_NOTE = "In graphs: MACs of the ONNX graphs, rewritten; activations are theirs, too."


def print_cost(screen: Console, cost: ModelCost) -> None:
    """The stages, the sum, and what a second of audio costs."""
    screen.print(cost.name, style="bold")
    screen.print(f"{cost.family}, {cost.kind}, segments of {cost.segment:g} s\n")
    screen.print(cost_table(cost))
    screen.print(f"\n{NOTE}" + (f" {GRAPHS_NOTE}" if cost.kind == "bundle" else ""), style="dim")


def cost_table(cost: ModelCost) -> Table:
    """A row a stage, one for learnt weights that no stage holds, and the sums."""
    graphs = ("in graphs",) if cost.kind == "bundle" else ()
    numbers = ("parameters", "MACs", "share", "FLOPs", *graphs, "activations", "float32")
    made = table("stage", *numbers, right=numbers)
    for stage in cost.stages:
        made.add_row(stage.name, *_figures(stage, cost.macs))
    if cost.outside:
        made.add_row("weights of resolutions", count(cost.outside), *("–",) * (len(numbers) - 1))
    total = StageCost("whole", "", cost.parameters, cost.macs, cost.activations, cost.graph_macs)
    made.add_row("whole", *_figures(total, cost.macs), style="bold")
    macs, activations = round(cost.macs / cost.segment), round(cost.activations / cost.segment)
    in_graphs = None if cost.graph_macs is None else round(cost.graph_macs / cost.segment)
    second = StageCost("a second of audio", "", 0, macs, activations, in_graphs)
    made.add_row("a second of audio", "", *_figures(second, macs)[1:])
    return made


def _figures(stage: StageCost, macs: int) -> tuple[str, ...]:
    return (
        count(stage.parameters),
        count(stage.macs),
        f"{stage.macs / macs:.1%}" if macs else "–",
        count(2 * stage.macs),
        *(() if stage.graph_macs is None else (count(stage.graph_macs),)),
        count(stage.activations),
        file_size(FLOAT32_BYTES * stage.activations),
    )
