"""The tables of a profile: a row for each stage with its floor, then the operators of all stages together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mrsep_deploy.bench.floor import FAULTY, times_floor
from mrsep_deploy.terminal.tables import NOTHING, Part, Table, count, file_size, optional

Plain = Mapping[str, Any]

STAGE_COLUMNS = ("stage", "ms", "share", "MACs", "bytes", "floor, ms", "× floor", "operators")
OPERATOR_COLUMNS = ("operator", "ms", "share", "count")
KINDS_SHOWN = 4
OPERATORS_SHOWN = 14


def profile_part(found: Plain) -> Part:
    """Returns what was profiled with both tables, or why it could not be."""
    what = f"{found['model']} on {found['label']}"
    if found["status"] != "ok":
        why = f"{found['reason']}. {found['fix']}".rstrip(". ")
        return Part(f"{what} {found['status']}: {why}.")
    title = (
        f"{what}: {1e3 * found['seconds']:.1f} ms a batch of {found['batch']}, median of {found['runs']}, with "
        f"profiling on; no stage ran in {found['outside_stages']:.1%} of it"
    )
    operators = [
        (each["kind"], _milliseconds(each["seconds"]), f"{each['share']:.1%}", str(each["count"]))
        for each in found["operators"][:OPERATORS_SHOWN]
    ]
    words = (0, len(STAGE_COLUMNS) - 1)
    stages = Table("Stages", STAGE_COLUMNS, [_stage_row(stage) for stage in found["stages"]], words)
    return Part(
        title,
        [stages, Table("Operators, all stages together", OPERATOR_COLUMNS, operators)],
        [*_remarks(found)],
    )


def _remarks(found: Plain) -> Iterator[str]:
    faulty = [stage["name"] for stage in found["stages"] if _times(stage) is None and stage["floor"]["floor"]]
    if faulty:
        yield f"Not shown, × floor of {', '.join(faulty)}: {FAULTY}."


def _times(stage: Plain) -> float | None:
    return times_floor(stage["seconds"], stage["floor"])


def _stage_row(stage: Plain) -> tuple[str, ...]:
    kinds = ", ".join(f"{each['kind']} {each['share']:.0%}" for each in stage["operators"][:KINDS_SHOWN])
    return (
        stage["name"],
        _milliseconds(stage["seconds"]),
        f"{stage['share']:.1%}",
        count(stage["macs"]) if stage["macs"] else NOTHING,
        file_size(stage["bytes"]),
        _milliseconds(stage["floor"]["floor"]),
        optional(_times(stage), "{:.1f}"),
        kinds or "on the host",
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.1f}"
