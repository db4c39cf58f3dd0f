"""The costs of graphs in lower precision beside the float32 ones: as a record, as JSON and as a terminal's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from rich.console import Console
from rich.table import Table

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.terminal.tables import file_size, table

COST_NOTE = (
    "Bytes moved: what the kernels of one run read and write, predicted. Float32 nodes and MACs: those that the "
    "plan keeps."
)


@dataclass(frozen=True)
class GraphCost:
    """A stage's graph in lower precision beside the float32 one.

    Attributes:
        size, original_size: bytes of the ONNX files.
        casts: inserted.
        nodes, kept: how many compute numbers, and how many of them do so in float32.
        macs, kept_macs: multiply-accumulates of one run, and those of them in float32.
        bytes_moved, original_bytes_moved: what the kernels of one run read and write, predicted.
        flushed: numbers in constants that are zero or subnormal and were neither in float32.
    """

    size: int
    original_size: int
    casts: int
    nodes: int
    kept: int
    macs: int
    kept_macs: int
    bytes_moved: int
    original_bytes_moved: int
    flushed: int


def costs_to_json(costs: Mapping[str, GraphCost]) -> dict[str, object]:
    """Returns costs by stage as plain values, as ``provenance`` and ``--json`` hold them."""
    return {stage: asdict(cost) for stage, cost in costs.items()}


def read_costs(manifest: Manifest) -> dict[str, GraphCost]:
    """Reads the costs in a converted bundle's ``provenance``; any other bundle has none."""
    graphs = _mapping(_mapping(manifest.provenance, "precision"), "graphs")
    names = [field.name for field in fields(GraphCost)]
    found: dict[str, GraphCost] = {}
    for stage in manifest.graph_stages:
        values = [_mapping(graphs, stage.name).get(name) for name in names]
        numbers = [value for value in values if isinstance(value, int) and value >= 0]
        if len(numbers) == len(names):
            found[stage.name] = GraphCost(*numbers)
    return found


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
    """Prints the table with its note; nothing where there are no costs."""
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


def _mapping(found: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}
