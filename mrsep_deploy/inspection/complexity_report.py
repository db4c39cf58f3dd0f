"""Costs of a model as a table for a terminal."""

from __future__ import annotations

from rich.console import Console

from mrsep_deploy.inspection.costs import FLOAT32_BYTES, ModelCost, StageCost
from mrsep_deploy.terminal.tables import NOTHING, Table, count, file_size, print_table

NOTE = (
    "For one segment, batch 1; spectrograms and inverses are not counted. MACs, share and FLOPs: of the model as "
    "published. Activations: elements that convolutions and matrix products put out; float32: the bytes they take."
)
GRAPHS_NOTE = "In graphs: MACs of the ONNX graphs, rewritten; activations are theirs, too."


def print_cost(screen: Console, cost: ModelCost) -> None:
    """The stages, the sum, and what a second of audio costs."""
    screen.print(cost.name, style="bold")
    screen.print(f"{cost.family}, {cost.kind}, segments of {cost.segment:g} s\n")
    print_table(screen, cost_table(cost))
    screen.print(f"\n{NOTE}" + (f" {GRAPHS_NOTE}" if cost.kind == "bundle" else ""), style="dim")


def cost_table(cost: ModelCost) -> Table:
    """Returns a row for each stage, one for learnt weights that no stage holds, and the sums."""
    graphs = ("in graphs",) if cost.kind == "bundle" else ()
    numbers = ("parameters", "MACs", "share", "FLOPs", *graphs, "activations", "float32")
    rows = [[stage.name, *_figures(stage, cost.macs)] for stage in cost.stages]
    if cost.outside:
        rows.append(["weights of resolutions", count(cost.outside), *(NOTHING,) * (len(numbers) - 1)])
    total = StageCost("whole", "", cost.parameters, cost.macs, cost.activations, cost.graph_macs)
    rows.append(["whole", *_figures(total, cost.macs)])
    strong = [len(rows) - 1]
    macs, activations = round(cost.macs / cost.segment), round(cost.activations / cost.segment)
    in_graphs = None if cost.graph_macs is None else round(cost.graph_macs / cost.segment)
    second = StageCost("a second of audio", "", 0, macs, activations, in_graphs)
    rows.append(["a second of audio", "", *_figures(second, macs)[1:]])
    return Table("Costs", ("stage", *numbers), rows, strong=strong)


def _figures(stage: StageCost, macs: int) -> tuple[str, ...]:
    return (
        count(stage.parameters),
        count(stage.macs),
        f"{stage.macs / macs:.1%}" if macs else NOTHING,
        count(2 * stage.macs),
        *(() if stage.graph_macs is None else (count(stage.graph_macs),)),
        count(stage.activations),
        file_size(FLOAT32_BYTES * stage.activations),
    )
