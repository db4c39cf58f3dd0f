"""The tables and lines of a benchmark, from its plain values; the terminal, Markdown, CSV and pages all show these."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from mrsep_deploy.bench.floor import FAULTY, times_floor
from mrsep_deploy.bench.noise import rough
from mrsep_deploy.bench.profile_report import profile_part
from mrsep_deploy.bench.results import TAILS, Result, tails_remark
from mrsep_deploy.files.strict_json import dumped
from mrsep_deploy.measuring.limits import WORST_STEM, worst_stem
from mrsep_deploy.measuring.statistics import CONFIDENCE
from mrsep_deploy.terminal.markdown import document
from mrsep_deploy.terminal.tables import (
    NOTHING,
    Part,
    Table,
    decibels,
    duration,
    file_size,
    optional,
    print_parts,
    without_empty,
)

Plain = Mapping[str, Any]

COLUMNS = (
    "contender", "seconds", "quartiles", "p95", "p99", "× realtime", "× baseline", "× floor", "first stems", "memory",
    "energy", "SNR", "limit", "failed",
)  # fmt: skip
RATIO_NOTE = (
    "× baseline above 1 is faster than the baseline, below 1 slower. × floor: times the least that the arithmetic or "
    "the memory traffic could take here."
)
OF_A_ROW = (
    "model", "workload", "label", "engine", "mode", "precision", "device", "threads", "lanes", "batch",
    "audio_seconds", "status", "mark", "reason", "median", "p25", "p75", "min", "max", "p95", "p99", "realtime",
)  # fmt: skip
CSV_COLUMNS = (
    *OF_A_ROW[:14], "rounds", *OF_A_ROW[14:], "baseline", "ratio", "ratio_low", "ratio_high", "floor", "times_floor",
    "cold_start", "warm_start", "loaded_bytes", "peak_bytes", "device_bytes", "joules_cpu", "joules_gpu",
    "worst_snr_db",
)  # fmt: skip


def print_result(screen: Console, result: Result) -> None:
    """Prints a table for each race and profile, and what has to be known to read it."""
    found = result.plain()
    print_parts(screen, _parts(found))
    for remark in general_remarks(found):
        screen.print(remark, soft_wrap=True)


def to_markdown(result: Result) -> str:
    """Returns the same tables and lines as Markdown."""
    found = result.plain()
    measured = Part("How it was measured", (), tuple(general_remarks(found)))
    return document("Benchmark", (), [*_parts(found), measured])


def to_json(result: Result) -> str:
    """Returns everything; ``mrsep_deploy.bench.results`` says what is what."""
    return f"{dumped(result.plain())}\n"


def to_csv(result: Result) -> str:
    """Returns a line for each row, numbers unrounded."""
    text, found = io.StringIO(), result.plain()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for race in found["races"]:
        writer.writerows(_csv_row(row, race) for row in rows_of(found, race))
    return text.getvalue()


def _parts(found: Plain) -> Iterator[Part]:
    for race in found["races"]:
        rows = rows_of(found, race)
        remarks = [*_failures(rows), *race_remarks(race, rows), *_noise(found, race)]
        yield Part(race_title(found, race), [race_table(rows, race)], remarks)
    yield from map(profile_part, found["profiles"])


def rows_of(found: Plain, race: Plain) -> list[Plain]:
    """Returns the rows of a race, the baseline first."""
    key = race["model"], race["workload"]
    return [row for row in found["rows"] if (row["model"], row["workload"]) == key]


def race_title(found: Plain, race: Plain) -> str:
    """Returns the model and what it ran on: ``htdemucs: a segment of 7.8 s``."""
    rows = rows_of(found, race)
    if not rows or race["workload"] != "segments":
        return f"{race['model']}: {race['workload']}"
    batch, seconds = rows[0]["batch"], found["models"][race["model"]]["segment_seconds"]
    count = "a segment" if batch == 1 else f"{batch} segments at once, each"
    return f"{race['model']}: {count} of {seconds:.3g} s"


def race_table(rows: Sequence[Plain], race: Plain) -> Table:
    """Returns the figures of a race, a row for each contender, without the columns in which nothing stands."""
    cells = [[_cells(row, race)[column] for column in COLUMNS] for row in rows]
    return without_empty(Table("All figures", COLUMNS, cells))


def _cells(row: Plain, race: Plain) -> dict[str, str]:
    snr, limit = _worst_stem(row)
    made = {**dict.fromkeys(COLUMNS, NOTHING), "contender": row["label"], "SNR": snr, "limit": limit}
    if not row["seconds"]:
        return {**made, "seconds": row["status"]}
    joules = [meter["median"] for meter in row["energy"].values() if meter["median"] is not None]
    peak = row["memory"].get("peak_bytes")
    ratio = row["ratios"].get(race["baseline"])
    return {
        **made,
        "seconds": duration(row["median"]),
        "quartiles": f"{duration(row['p25'])} to {duration(row['p75'])}",
        **{p: NOTHING if row[p] is None else duration(row[p]) for p in (f"p{percent}" for percent in TAILS)},
        "× realtime": optional(row["realtime"], "{:.2f}"),
        "× baseline": "1" if row["label"] == race["baseline"] else short_ratio(ratio) or NOTHING,
        "× floor": optional(_times_floor(row), "{:.1f}"),
        "first stems": duration(row["start_up"]["warm"]["total"]) if row["start_up"] else NOTHING,
        "memory": NOTHING if peak is None else file_size(peak),
        "energy": f"{sum(joules):.3g} J" if joules else NOTHING,
        "failed": row["mark"] or NOTHING,
    }


def short_ratio(found: Mapping[str, float] | None) -> str:
    """Returns how many times faster, with its interval: ``1.50 [1.40, 1.60]``; empty where there is no ratio."""
    return "" if found is None else f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _times_floor(row: Plain) -> float | None:
    return None if row["floor"] is None or row["median"] is None else times_floor(row["median"], row["floor"])


def _snr(parity: Plain) -> dict[str, float]:
    """Returns the SNR by stem: JSON has None for stems that are equal and for those that are no numbers."""
    values = {stem: -math.inf if value is None else value for stem, value in parity["snr_db"].items()}
    return {**values, **dict.fromkeys(parity["exact"], math.inf)}


def _worst_stem(row: Plain) -> tuple[str, str]:
    """Returns the cells of the worst stem that is judged: its SNR with its name, and its limit."""
    parity = row["parity"]
    worst = None if parity is None else worst_stem(_snr(parity), parity["limit_db"])
    if worst is None:
        return NOTHING, NOTHING
    snr, limit = _snr(parity)[worst], f"{parity['limit_db'][worst]:.0f} dB"
    if math.isinf(snr):
        return decibels(snr) if snr > 0 else "no number", limit
    return f"{decibels(snr)} dB, {worst}", limit


def _failures(rows: Sequence[Plain]) -> Iterator[str]:
    for row in rows:
        if row["status"] != "ok":
            reason = f"{row['reason']}. {row['fix']}".rstrip(". ")
            yield f"{row['label']} {row['status']}: {reason}."


def race_remarks(race: Plain, rows: Sequence[Plain]) -> Iterator[str]:
    """Returns what has to be known to read the figures of a race."""
    if race["rounds"]:
        word = "round" if race["rounds"] == 1 else "rounds"
        order = f"{race['rounds']} {word} in an order drawn anew each time; medians"
        baseline = race["baseline"] or "none"
        yield f"{order}, baseline {baseline}, brackets hold the ratio with {CONFIDENCE:.0%}."
        tails = tails_remark(race["rounds"])
        if tails:
            yield f"No percentile that the rounds cannot carry: {tails}."
    faulty = [
        row["label"]
        for row in rows
        if row["floor"] and row["floor"]["floor"] and row["median"] and _times_floor(row) is None
    ]
    if faulty:
        yield f"Not shown, × floor of {', '.join(faulty)}: {FAULTY}."
    reference = next((row["parity"]["reference"] for row in rows if row["parity"] is not None), "")
    if reference and race["no_exact_reference"]:
        why = race["no_exact_reference"]
        yield f"Stems are compared with those of {reference}, not with PyTorch in float64: {why}."
    meters = [meter for row in rows for meter in row["energy"].values()]
    missing = {f"{meter['source']}: {meter['reason']}" for meter in meters if meter["reason"]}
    if missing:
        yield f"Energy not available ({'; '.join(sorted(missing))})."


def _noise(found: Plain, race: Plain) -> Iterator[str]:
    noise = race["noise"]
    if noise is not None and not noise["quiet"]:
        yield f"{rough(noise, int(found['machine']['cores']))}. Seen: {'; '.join(noise['remarks'])}."


def general_remarks(found: Plain) -> Iterator[str]:
    """Returns what holds for all of it."""
    if found["interrupted"]:
        yield "Interrupted: what was measured before stands."
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = found["settings"]["threads"]
    yield f"{machine['cpu']}, {threads} of {machine['cores']} cores; {versions}; {machine['date']}."
    for device, rates in found["ceilings"].items():
        if "bytes_per_second" in rates:
            rate, moved = rates["flop_per_second"].get("fp32", math.nan), rates["bytes_per_second"]
            yield f"Measured at best, {device}: {rate / 1e9:.0f} GFLOP/s in float32, {moved / 1e9:.1f} GB/s."
    if found["races"]:
        yield (
            "Seconds are from a mix in memory to stems in memory; first stems: from the start of a process, engine "
            f"built before, to the first ones; memory: the most that process held; SNR: {WORST_STEM}, in dB."
        )


def _csv_row(row: Plain, race: Plain) -> dict[str, object]:
    ratio = row["ratios"].get(race["baseline"])
    parity = row["parity"]
    worst = None if parity is None else worst_stem(_snr(parity), parity["limit_db"])
    made: dict[str, object] = {name: row[name] for name in OF_A_ROW}
    made.update(mode=row["mode"] if row["engine"] else "", rounds=len(row["seconds"]), **row["memory"])
    made.update(baseline=race["baseline"], worst_snr_db=None if worst is None else _snr(parity)[worst])
    if ratio is not None:
        made.update(ratio=ratio["median"], ratio_low=ratio["low"], ratio_high=ratio["high"])
    if row["floor"] is not None:
        made.update(floor=row["floor"]["floor"], times_floor=row["floor"]["times"])
    if row["start_up"]:
        made.update({f"{name}_start": seconds["total"] for name, seconds in row["start_up"].items()})
    made.update({f"joules_{name}": meter["median"] for name, meter in row["energy"].items()})
    return made
