"""The tables and lines of a benchmark or a profile, from its plain values.

The terminal, Markdown, CSV and pages all show these. A race has a row for each contender; a profile has one for each
stage with its floor, then the operators of all stages together.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from mrsep_deploy.bench.floor import FAULTY, times_floor
from mrsep_deploy.bench.noise import rough
from mrsep_deploy.bench.results import TAILS, Result, tails_remark
from mrsep_deploy.files.strict_json import dumped
from mrsep_deploy.measuring.limits import WORST_STEM, worst_stem
from mrsep_deploy.measuring.statistics import CONFIDENCE
from mrsep_deploy.terminal.markdown import document
from mrsep_deploy.terminal.tables import (
    NOTHING,
    Part,
    Table,
    count,
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
STAGE_COLUMNS = ("stage", "ms", "share", "MACs", "bytes", "floor, ms", "× floor", "operators")
OPERATOR_COLUMNS = ("operator", "ms", "share", "count")
KINDS_SHOWN = 4
OPERATORS_SHOWN = 14
CSV_COLUMNS = (
    "model", "workload", "label", "engine", "mode", "precision", "device", "threads", "lanes", "batch",
    "audio_seconds", "status", "mark", "reason", "rounds", "median", "p25", "p75", "min", "max", "p95", "p99",
    "realtime", "baseline", "ratio", "ratio_low", "ratio_high", "floor", "times_floor", "cold_start", "warm_start",
    "loaded_bytes", "peak_bytes", "device_bytes", "joules_cpu", "joules_gpu", "worst_snr_db",
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
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for race in found["races"]:
        writer.writerows(_csv_row(row, race) for row in rows_of(found, race))
    return text.getvalue()


def _parts(found: Plain) -> Iterator[Part]:
    for race in found["races"]:
        rows = rows_of(found, race)
        failures = [_failure(row["label"], row) for row in rows if row["status"] != "ok"]
        remarks, noise = [*failures, *race_remarks(race, rows)], race["noise"]
        if noise is not None and not noise["quiet"]:
            said = rough(noise, int(found["machine"]["cores"]))
            remarks.append(f"{said}. Seen: {'; '.join(noise['remarks'])}.")
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
    made = {**dict.fromkeys(COLUMNS, NOTHING), "contender": row["label"]}
    worst = _worst_stem(row)
    if worst is not None:
        stem, snr, limit = worst
        number = f"{decibels(snr)} dB, {stem}" if math.isfinite(snr) else "exact" if snr > 0 else "no number"
        made.update({"SNR": number, "limit": f"{limit:.0f} dB"})
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
        "× floor": optional(times_floor(row["median"], row["floor"]), "{:.1f}"),
        "first stems": duration(row["start_up"]["warm"]["total"]) if row["start_up"] else NOTHING,
        "memory": NOTHING if peak is None else file_size(peak),
        "energy": f"{sum(joules):.3g} J" if joules else NOTHING,
        "failed": row["mark"] or NOTHING,
    }


def short_ratio(found: Mapping[str, float] | None) -> str:
    """Returns how many times faster, with its interval: ``1.50 [1.40, 1.60]``; empty where there is no ratio."""
    return "" if found is None else f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _worst_stem(row: Plain) -> tuple[str, float, float] | None:
    """Returns the worst stem whose SNR counts: its name, SNR and limit."""
    parity = row["parity"]
    if parity is None:
        return None
    # JSON has None for stems that are equal and for those that are no numbers.
    snr = {stem: -math.inf if value is None else value for stem, value in parity["snr_db"].items()}
    snr.update(dict.fromkeys(parity["exact"], math.inf))
    worst = worst_stem(snr, parity["limit_db"])
    return None if worst is None else (worst, snr[worst], parity["limit_db"][worst])


def _failure(what: str, found: Plain) -> str:
    """Returns why a row or a profile is not ok, and what would change that."""
    reason = f"{found['reason']}. {found['fix']}".rstrip(". ")
    return f"{what} {found['status']}: {reason}."


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
    yield from _faulty({row["label"]: (row["median"], row["floor"]) for row in rows})
    reference = next((row["parity"]["reference"] for row in rows if row["parity"] is not None), "")
    if reference and race["no_exact_reference"]:
        why = race["no_exact_reference"]
        yield f"Stems are compared with those of {reference}, not with PyTorch in float64: {why}."
    meters = [meter for row in rows for meter in row["energy"].values()]
    missing = {f"{meter['source']}: {meter['reason']}" for meter in meters if meter["reason"]}
    if missing:
        yield f"Energy not available ({'; '.join(sorted(missing))})."
    for row in rows:
        if row.get("about"):  # results of earlier versions have none
            yield f"{row['label']} is {row['about']}."
        yield from _by_mix(row)


def _by_mix(row: Plain) -> Iterator[str]:
    """Says which stems of a row pass by the mix, with both figures."""
    parity = row["parity"] or {}
    for stem, way in parity.get("passes_by", {}).items():
        if way == "mix":
            yield (
                f"{stem} of {row['label']} passes by the mix: its error is {parity['below_mix_db'][stem]:.1f} dB below "
                f"that, its SNR {decibels(parity['snr_db'][stem])} dB."
            )


def _faulty(runs: Mapping[str, tuple[float | None, Plain | None]]) -> Iterator[str]:
    """Says which runs, each with its seconds and floor, took less than their floor."""
    faulty = [
        name
        for name, (seconds, floor) in runs.items()
        if seconds and floor and floor["floor"] and times_floor(seconds, floor) is None
    ]
    if faulty:
        yield f"Not shown, × floor of {', '.join(faulty)}: {FAULTY}."


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
    """The columns of a row, among other fields of it."""
    ratio, floor, worst = row["ratios"].get(race["baseline"]) or {}, row["floor"] or {}, _worst_stem(row)
    return {
        **row,
        **row["memory"],
        **{f"{name}_start": seconds["total"] for name, seconds in row["start_up"].items()},
        **{f"joules_{name}": meter["median"] for name, meter in row["energy"].items()},
        "mode": row["mode"] if row["engine"] else "",
        "rounds": len(row["seconds"]),
        "baseline": race["baseline"],
        "ratio": ratio.get("median"),
        "ratio_low": ratio.get("low"),
        "ratio_high": ratio.get("high"),
        "floor": floor.get("floor"),
        "times_floor": floor.get("times"),
        "worst_snr_db": None if worst is None else worst[1],
    }


def profile_part(found: Plain) -> Part:
    """Returns what was profiled with both tables, or why it could not be."""
    what = f"{found['model']} on {found['label']}"
    if found["status"] != "ok":
        return Part(_failure(what, found))
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
        [*_faulty({stage["name"]: (stage["seconds"], stage["floor"]) for stage in found["stages"]})],
    )


def _stage_row(stage: Plain) -> tuple[str, ...]:
    kinds = ", ".join(f"{each['kind']} {each['share']:.0%}" for each in stage["operators"][:KINDS_SHOWN])
    return (
        stage["name"],
        _milliseconds(stage["seconds"]),
        f"{stage['share']:.1%}",
        count(stage["macs"]) if stage["macs"] else NOTHING,
        file_size(stage["bytes"]),
        _milliseconds(stage["floor"]["floor"]),
        optional(times_floor(stage["seconds"], stage["floor"]), "{:.1f}"),
        kinds or "on the host",
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.1f}"
