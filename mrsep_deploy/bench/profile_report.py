"""A profile for people: a line a stage with its floor, then the operators of all stages together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from mrsep_deploy.bench.floor import FAULTY, times_floor
from mrsep_deploy.terminal.tables import count, file_size, table

STAGE_COLUMNS = ("stage", "ms", "share", "MACs", "bytes", "floor, ms", "× floor", "operators")
OPERATOR_COLUMNS = ("operator", "ms", "share", "count")
KINDS_SHOWN = 4
OPERATORS_SHOWN = 14
NOTHING = "–"


def print_profiles(screen: Console, profiles: Sequence[Mapping[str, Any]]) -> None:
    """Both tables of each profile."""
    for found in profiles:
        screen.print(profile_title(found), style="bold", soft_wrap=True)
        if found["status"] == "ok":
            for columns, rows in profile_tables(found):
                made = table(
                    *columns, right=[c for c in columns if c not in ("stage", "operator", "operators")]
                )
                for row in rows:
                    made.add_row(*row)
                screen.print(made)
            for remark in profile_remarks(found):
                screen.print(remark, soft_wrap=True)
        screen.print()


def profile_title(found: Mapping[str, Any]) -> str:
    """What was profiled, or why it could not be."""
    what = f"{found['model']} on {found['label']}"
    if found["status"] != "ok":
        return f"{what} {found['status']}: {found['reason']}. {found['fix']}".rstrip(". ") + "."
    return (
        f"{what}: {1e3 * found['seconds']:.1f} ms a batch of {found['batch']}, median of {found['runs']}, with "
        f"profiling on; no stage ran in {found['outside_stages']:.1%} of it"
    )


def profile_tables(found: Mapping[str, Any]) -> Iterator[tuple[Sequence[str], list[Sequence[str]]]]:
    """Columns and rows of both tables."""
    yield STAGE_COLUMNS, [_stage_row(stage) for stage in found["stages"]]
    yield (
        OPERATOR_COLUMNS,
        [
            (each["kind"], _milliseconds(each["seconds"]), f"{each['share']:.1%}", str(each["count"]))
            for each in found["operators"][:OPERATORS_SHOWN]
        ],
    )


def profile_remarks(found: Mapping[str, Any]) -> Iterator[str]:
    """What has to be known to read the tables."""
    faulty = [stage["name"] for stage in found["stages"] if _times(stage) is None and stage["floor"]["floor"]]
    if faulty:
        yield f"Not shown, × floor of {', '.join(faulty)}: {FAULTY}."


def _times(stage: Mapping[str, Any]) -> float | None:
    return times_floor(stage["seconds"], stage["floor"])


def _stage_row(stage: Mapping[str, Any]) -> Sequence[str]:
    times = _times(stage)
    kinds = ", ".join(f"{each['kind']} {each['share']:.0%}" for each in stage["operators"][:KINDS_SHOWN])
    return (
        stage["name"],
        _milliseconds(stage["seconds"]),
        f"{stage['share']:.1%}",
        count(stage["macs"]) if stage["macs"] else NOTHING,
        file_size(stage["bytes"]),
        _milliseconds(stage["floor"]["floor"]),
        NOTHING if times is None else f"{times:.1f}",
        kinds or "on the host",
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.1f}"
