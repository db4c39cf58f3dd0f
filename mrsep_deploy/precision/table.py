"""What graphs of lower precision cost, beside the float32 ones, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from mrsep_deploy.precision.choice import GraphCost
from mrsep_deploy.terminal.tables import file_size, table

COST_NOTE = (
    "Bytes moved: what the kernels of one run read and write, predicted. Float32 nodes and MACs: those that the "
    "plan keeps."
)


def cost_table(costs: Mapping[str, GraphCost], precision: str) -> Table:
    """Sizes, casts, and what stays in float32, stage by stage and in total."""
    numbers = (
        "float32 graph",
        precision,
        "casts",
        "float32 nodes",
        "float32 MACs",
        "bytes moved",
        f"in {precision}",
    )
    made = table("stage", *numbers, right=numbers)
    for stage, cost in costs.items():
        made.add_row(stage, *_cells(cost))
    made.add_row("all", *_cells(total(costs)), style="bold")
    return made


def print_costs(screen: Console, costs: Mapping[str, GraphCost], precision: str) -> None:
    """The table with its note; nothing where there are no costs."""
    if costs:
        screen.print()
        screen.print(cost_table(costs, precision))
        screen.print(f"\n{COST_NOTE}", style="dim")


def total(costs: Mapping[str, GraphCost]) -> GraphCost:
    """The sum over all stages."""
    names = GraphCost.__dataclass_fields__
    return GraphCost(**{name: sum(getattr(cost, name) for cost in costs.values()) for name in names})


def _cells(cost: GraphCost) -> tuple[str, ...]:
    share = cost.kept_macs / cost.macs if cost.macs else 0.0
    return (
        file_size(cost.original_size),
        file_size(cost.size),
        str(cost.casts),
        f"{cost.kept} of {cost.nodes}",
        f"{share:.2%}",
        file_size(cost.original_bytes_moved),
        file_size(cost.bytes_moved),
    )
