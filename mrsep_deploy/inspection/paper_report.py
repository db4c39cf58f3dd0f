"""The paper's tables for a terminal, and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from mrsep_deploy.export.families.family import PaperTable
from mrsep_deploy.inspection.paper import PaperRow
from mrsep_deploy.terminal.tables import Table, optional, print_table

Filled = Sequence[tuple[PaperTable, Sequence[PaperRow]]]

FILL_TIME = "Times: --measure measures them here (minutes each), --times FILE takes them from a results file."
FILL_SDR = 'SDR: --sdr FILE takes it from a file, {"htdemucs_n": dB, ...}; the keys are those of --json.'


def runtimes(filled: Filled) -> list[str]:
    """What times were measured with, in order of appearance; torch and ort if there are none at all."""
    found = {name: None for _, rows in filled for row in rows for name in row.seconds}
    return list(found) or ["torch", "ort"]


def print_paper(screen: Console, filled: Filled) -> None:
    """Every table, then what fills the cells that are empty."""
    names = runtimes(filled)
    for layout, rows in filled:
        screen.print(f"{layout.title}", style="bold")
        print_table(screen, paper_table(layout, rows, names))
        screen.print()
    every = [row for _, rows in filled for row in rows]
    segments = sorted({row.cost.segment for row in every})
    screen.print(
        f"For one segment of {' and '.join(f'{s:g}' for s in segments)} s, batch 1, four sources; "
        "a FLOP count is twice the multiply-accumulates.",
        style="dim",
    )
    if any(name not in row.seconds for row in every for name in names):
        screen.print(FILL_TIME, style="dim")
    if any(row.sdr is None for row in every):
        screen.print(FILL_SDR, style="dim")


def paper_table(layout: PaperTable, rows: Sequence[PaperRow], names: Sequence[str]) -> Table:
    """One table; a dash where nothing is known."""
    numbers = ("FLOPs", "MACs", "parameters", *(f"time, {name}" for name in names), "SDR")
    cells = [
        [
            row.label,
            f"{row.cost.flops / 1e9:.1f} G",
            f"{row.cost.macs / 1e9:.1f} G",
            f"{row.cost.parameters / 1e6:.2f} M",
            *(optional(row.seconds.get(name), "{:.3f} s") for name in names),
            optional(row.sdr, "{:.2f} dB"),
        ]
        for row in rows
    ]
    return Table(layout.title, (layout.column, *numbers), cells)


def paper_to_plain(filled: Filled) -> list[dict[str, object]]:
    """For ``--json``: numbers unrounded, None where nothing is known."""
    return [
        {
            "title": layout.title,
            "rows": [
                {
                    layout.column: row.label,
                    "key": row.key,
                    "segment_seconds": row.cost.segment,
                    "flops": row.cost.flops,
                    "macs": row.cost.macs,
                    "parameters": row.cost.parameters,
                    "activations": row.cost.activations,
                    "seconds": dict(row.seconds),
                    "sdr_db": row.sdr,
                    "configuration": asdict(model),
                }
                for (_, model), row in zip(layout.rows, rows, strict=True)
            ],
        }
        for layout, rows in filled
    ]
