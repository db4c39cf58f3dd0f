"""A benchmark for people and for spreadsheets: on the terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from mrsep_deploy.bench.floor import FAULTY
from mrsep_deploy.bench.noise import rough
from mrsep_deploy.bench.profile_report import print_profiles, profile_remarks, profile_tables, profile_title
from mrsep_deploy.bench.results import TAILS, Race, Result, Row, tails_remark
from mrsep_deploy.files.strict_json import dumped
from mrsep_deploy.measuring.statistics import CONFIDENCE, spread, tail
from mrsep_deploy.terminal.markdown import escaped, table_lines
from mrsep_deploy.terminal.tables import decibels, duration, file_size, table

COLUMNS = (
    "contender", "seconds", "quartiles", "p95", "p99", "× realtime", "× baseline", "× floor", "first stems", "memory",
    "energy", "SNR", "failed",
)  # fmt: skip
NOTHING = "–"

CSV_COLUMNS = (
    "model", "workload", "label", "engine", "mode", "precision", "device", "threads", "lanes", "batch", "audio_seconds",
    "status", "mark", "reason", "rounds", "median", "p25", "p75", "min", "max", "p95", "p99", "realtime", "baseline",
    "ratio", "ratio_low", "ratio_high", "floor", "times_floor", "cold_start", "warm_start", "loaded_bytes",
    "peak_bytes", "device_bytes", "joules_cpu", "joules_gpu", "worst_snr_db",
)  # fmt: skip


def print_result(screen: Console, result: Result) -> None:
    """A table a race, and what has to be known to read it."""
    for race in result.races:
        screen.print(title(race, result), style="bold")
        made = table(*_used(race), right=_used(race)[1:])
        made.columns[0].no_wrap = True  # who it is stays readable where figures have to fold
        for row in race.rows:
            made.add_row(*(cells(row, race)[column] for column in _used(race)))
        screen.print(made)
        for remark in remarks(race, result.cores):
            screen.print(remark, soft_wrap=True)
        screen.print()
    print_profiles(screen, result.profiles)
    for remark in general_remarks(result):
        screen.print(remark, soft_wrap=True)


def to_markdown(result: Result) -> str:
    """The same as a page."""
    return "\n".join(_markdown(result)) + "\n"


def _markdown(result: Result) -> Iterator[str]:
    yield "# Benchmark"
    for race in result.races:
        used = _used(race)
        values = [[cells(row, race)[column] for column in used] for row in race.rows]
        yield from ("", f"## {escaped(title(race, result))}", "", *table_lines(used, values))
        for remark in remarks(race, result.cores):
            yield from ("", escaped(remark))
    for found in result.profiles:
        yield from ("", f"## {escaped(profile_title(found))}")
        if found["status"] != "ok":
            continue
        for columns, rows in profile_tables(found):
            yield from ("", *table_lines(columns, rows))
        for remark in profile_remarks(found):
            yield from ("", escaped(remark))
    yield from ("", "## How it was measured")
    for remark in general_remarks(result):
        yield from ("", escaped(remark))


def title(race: Race, result: Result) -> str:
    """What was run."""
    batch = race.rows[0].batch if race.rows else 1
    facts: Mapping[str, Any] = result.models[race.model]
    if race.rows and race.workload == "segments":
        count = "a segment" if batch == 1 else f"{batch} segments at once, each"
        what = f"{count} of {facts['segment_seconds']:.3g} s"
    else:
        what = race.workload
    return f"{race.model}: {what}"


def _used(race: Race) -> list[str]:
    """Columns without those in which nothing stands."""
    found = [cells(row, race) for row in race.rows]
    return [c for c in COLUMNS if c == "contender" or any(each[c] != NOTHING for each in found)]


def cells(row: Row, race: Race) -> dict[str, str]:
    """One row of a table, by column."""
    made = dict.fromkeys(COLUMNS, NOTHING)
    made["contender"] = row.label
    made["SNR"] = _snr(row)
    if not row.seconds:
        return {**made, "seconds": row.status}
    found = spread(row.seconds)
    baseline = race.row(race.baseline)
    ratio = None if baseline is None or baseline is row else row.ratio_to(baseline)
    tails = {percent: tail(row.seconds, percent) for percent in TAILS}
    joules = [sum(spread(values)["median"] for values in row.joules.values())] if row.joules else []
    return {
        **made,
        "seconds": duration(found["median"]),
        "quartiles": f"{duration(found['p25'])} to {duration(found['p75'])}",
        **{f"p{percent}": NOTHING if value is None else duration(value) for percent, value in tails.items()},
        "× realtime": NOTHING if row.realtime is None else f"{row.realtime:.2f}",
        "× baseline": "1" if row is baseline else _ratio(ratio),
        "× floor": NOTHING
        if row.floor is None or row.floor["times"] is None
        else f"{row.floor['times']:.1f}",
        "first stems": duration(row.start_up["warm"]["total"]) if row.start_up else NOTHING,
        "memory": _bytes(row.memory.get("peak_bytes")),
        "energy": f"{joules[0]:.3g} J" if joules else NOTHING,
        "failed": row.mark or NOTHING,
    }


def _ratio(found: Mapping[str, float] | None) -> str:
    return NOTHING if found is None else f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _snr(row: Row) -> str:
    if row.parity is None or not row.parity.snr:
        return NOTHING
    return decibels(min(row.parity.snr.values()))


def _bytes(value: int | None) -> str:
    return NOTHING if value is None else file_size(value)


def remarks(race: Race, cores: int) -> Iterator[str]:
    """What has to be known of a race on a machine with so many cores."""
    for row in race.rows:
        if row.status != "ok":
            reason = f"{row.reason}. {row.fix}".rstrip(". ")
            yield f"{row.label} {row.status}: {reason}."
    if race.rounds:
        word = "round" if race.rounds == 1 else "rounds"
        order = f"{race.rounds} {word} in an order drawn anew each time; medians"
        yield f"{order}, baseline {race.baseline or 'none'}, brackets hold the ratio with {CONFIDENCE:.0%}."
        if tails_remark(race.rounds):
            yield f"No percentile that the rounds cannot carry: {tails_remark(race.rounds)}."
    faulty = [row.label for row in race.rows if row.floor is not None and row.floor["reason"]]
    if faulty:
        yield f"Not shown, × floor of {', '.join(faulty)}: {FAULTY}."
    reference = next((row.parity.reference for row in race.rows if row.parity is not None), "")
    if reference and race.no_exact_reference:
        yield f"Stems are compared with those of {reference}, not with PyTorch in float64: {race.no_exact_reference}."
    if race.noise is not None and not race.noise.quiet:
        yield f"{rough(race.noise.plain(), cores)}. Seen: {'; '.join(race.noise.remarks)}."
    missing = {
        f"{meter['source']}: {meter['reason']}"
        for row in race.rows
        for meter in row.meters.values()
        if meter["reason"]
    }
    if missing:
        yield f"Energy not available ({'; '.join(sorted(missing))})."


def general_remarks(result: Result) -> Iterator[str]:
    """What holds for all of it."""
    if result.interrupted:
        yield "Interrupted: what was measured before stands."
    machine: Mapping[str, Any] = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = result.settings["threads"]
    yield f"{machine['cpu']}, {threads} of {machine['cores']} cores; {versions}; {machine['date']}."
    for device, found in result.ceilings.items():
        rates: Any = found
        if "bytes_per_second" in rates:
            rate, moved = rates["flop_per_second"].get("fp32", math.nan), rates["bytes_per_second"]
            yield f"Measured at best, {device}: {rate / 1e9:.0f} GFLOP/s in float32, {moved / 1e9:.1f} GB/s."
    if not result.races:
        return
    yield (
        "Seconds are from a mix in memory to stems in memory; first stems: from the start of a process, engine "
        "built before, to the first ones; memory: the most that process held; SNR: of the worst stem, in dB."
    )


def to_json(result: Result) -> str:
    """Everything; ``mrsep_deploy.bench.results`` says what is what."""
    return f"{dumped(strict(result.plain()))}\n"


def strict(value: Any) -> Any:
    """The same with numbers that JSON has no word for as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(each) for each in value]
    return value


def to_csv(result: Result) -> str:
    """A line a row, numbers unrounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for race in result.races:
        for row in race.rows:
            writer.writerow(_csv_row(row, race))
    return text.getvalue()


def _csv_row(row: Row, race: Race) -> dict[str, object]:
    contender = row.contender
    baseline = race.row(race.baseline)
    ratio = row.ratio_to(baseline) if baseline is not None and baseline is not row else None
    made: dict[str, object] = {
        "model": row.model, "workload": row.workload, "label": row.label, "engine": contender.engine,
        "mode": contender.mode if contender.engine else "", "precision": contender.precision,
        "device": contender.device, "threads": contender.threads, "lanes": contender.lanes, "batch": row.batch,
        "audio_seconds": row.audio_seconds, "status": row.status, "mark": row.mark, "reason": row.reason,
        "rounds": len(row.seconds), "realtime": row.realtime, "baseline": race.baseline,
        **row.memory,
    }  # fmt: skip
    if row.seconds:
        made.update(spread(row.seconds))
        made.update({f"p{percent}": tail(row.seconds, percent) for percent in TAILS})
    if ratio is not None:
        made.update(ratio=ratio["median"], ratio_low=ratio["low"], ratio_high=ratio["high"])
    if row.floor is not None:
        made.update(floor=row.floor["floor"], times_floor=row.floor["times"])
    if row.start_up:
        made.update(cold_start=row.start_up["cold"]["total"], warm_start=row.start_up["warm"]["total"])
    made.update({f"joules_{name}": spread(values)["median"] for name, values in row.joules.items()})
    if row.parity is not None and row.parity.snr:
        made["worst_snr_db"] = min(row.parity.snr.values())
    return made
