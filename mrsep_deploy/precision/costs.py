"""The costs of graphs in lower precision beside the float32 ones: as a record, and as a terminal's table."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Annotated

from msgspec import Meta
from rich.console import Console

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.bundle.provenance import within
from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.typed_json import typed
from mrsep_deploy.terminal.tables import file_size, table

_Count = Annotated[int, Meta(ge=0)]


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

    size: _Count
    original_size: _Count
    casts: _Count
    nodes: _Count
    kept: _Count
    macs: _Count
    kept_macs: _Count
    bytes_moved: _Count
    original_bytes_moved: _Count
    flushed: _Count


def read_costs(manifest: Manifest) -> dict[str, GraphCost]:
    """Reads the costs in a converted bundle's ``provenance``; any other bundle has none."""
    found: dict[str, GraphCost] = {}
    for stage in manifest.graph_stages:
        with suppress(FormatError):
            cost = within(manifest.provenance, "precision", "graphs", stage.name)
            found[stage.name] = typed(cost, GraphCost, "cost", "")
    return found


def print_costs(screen: Console, costs: Mapping[str, GraphCost], precision: str) -> None:
    """Prints sizes, casts, and what stays in float32, stage by stage and in total; nothing where there are no costs."""
    if not costs:
        return
    sizes = ("float32 graph", precision, "casts", "float32 nodes", "float32 MACs")
    numbers = (*sizes, "bytes moved", f"in {precision}")
    made = table("stage", *numbers, right=numbers)
    for stage, cost in costs.items():
        made.add_row(stage, *_cells(cost))
    names = [field.name for field in fields(GraphCost)]
    total = GraphCost(*(sum(getattr(cost, name) for cost in costs.values()) for name in names))
    made.add_row("all", *_cells(total), style="bold")
    screen.print()
    screen.print(made)
    screen.print(
        "\nBytes moved: what the kernels of one run read and write, predicted. Float32 nodes and MACs: those that "
        "the plan keeps.",
        style="dim",
    )


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
