"""A benchmark as a page, from what ``mrsep-deploy bench --json`` writes (``mrsep_deploy.bench.results``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrsep_deploy.bench.floor import FAULTY, times_floor
from mrsep_deploy.bench.profile_report import profile_remarks, profile_tables, profile_title
from mrsep_deploy.pages.batch_curves import batch_curves
from mrsep_deploy.pages.bench_plots import latency, memory, shares, short_ratio, start_up, timelines
from mrsep_deploy.pages.bench_verdict import race_rows, race_title, race_verdict, warnings
from mrsep_deploy.pages.blocks import Block, Page, Section, Table, Text
from mrsep_deploy.pages.environment import day, install_steps, machine_facts
from mrsep_deploy.pages.fusion import fusion_blocks
from mrsep_deploy.terminal.tables import decibels, duration

Plain = Mapping[str, Any]

NOTHING = "–"
RACED = "From a mix in memory to stems in memory; every contender a process of its own, taking turns."
PROFILED = "Time by stage and operator, one engine after the other, with profiling on."


def bench_page(result: Plain) -> Page:
    """The page of one benchmark."""
    races = result["races"]
    models = ", ".join(result["models"])
    return Page(
        title=f"Benchmark: {models}",
        lead=f"mrsep-deploy bench, {day(result['machine']['date'])}. {RACED if races else PROFILED}",
        verdicts=[race_verdict(result, race) for race in races],
        warnings=list(warnings(result)),
        sections=[*_sections(result)],
        facts=[*machine_facts(result["machine"]), *_facts(result)],
        command=result["command"],
        steps=install_steps(result["machine"]),
    )


def _sections(result: Plain) -> Iterator[Section]:
    said: set[str] = set()
    opened: set[str] = set()
    for race in result["races"]:
        rows = race_rows(result, race)
        ready = [row for row in rows if row["status"] == "ok"]
        if any(row["seconds"] for row in rows):
            once = [] if race["model"] in opened else [*start_up(ready)]
            opened.add(race["model"])
            remarks = [text for text in _remarks(race, rows) if text not in said]
            said.update(remarks)
            blocks: list[Block] = [latency(ready, race)] if ready else []
            blocks += [_table(rows, race), *memory(ready), *once, Text(remarks)]
            yield Section(race_title(result, race), blocks)
    curves = batch_curves(result)
    if curves:
        yield Section("Batches", curves)
    for name, facts in result["models"].items():
        traced = sorted(_traced(result, name), key=lambda row: float(row["median"]))
        if traced:
            yield Section(f"{name}: where the time goes", [*shares(traced, facts), *timelines(traced)])
        if facts["fusion"]:
            yield Section(f"{name}: fusion weights", fusion_blocks(facts["fusion"], facts["branches"]))
    for found in result["profiles"]:
        yield Section(f"{found['model']} on {found['label']}, operators", _profile(found))


COLUMNS = (
    "contender", "median", "quartiles", "p95", "p99", "× real time", "× baseline (95 %)", "× floor", "energy",
    "worst stem, SNR", "limit", "failed",
)  # fmt: skip


def _traced(result: Plain, model: str) -> Iterator[Plain]:
    """Rows with a timeline; one is taken once a contender, at its first workload."""
    return (row for row in result["rows"] if row["model"] == model and row["timeline"] and row["median"])


def _table(rows: Sequence[Plain], race: Plain) -> Table:
    cells = [_cells(row, race) for row in rows]
    used = [n for n in range(len(COLUMNS)) if n == 0 or any(line[n] not in (NOTHING, "") for line in cells)]
    return Table(
        "All figures",
        [COLUMNS[n] for n in used],
        [[line[n] for n in used] for line in cells],
        strong=[0] if rows[0]["status"] == "ok" else [],
        note="× baseline above 1 is faster than the baseline, below 1 slower. × floor: times the least that the "
        "arithmetic or the memory traffic could take here.",
    )


def _cells(row: Plain, race: Plain) -> list[str]:
    worst, limit = _parity(row)
    if not row["seconds"]:
        return [row["label"], row["status"], *[NOTHING] * 7, worst, limit, NOTHING]
    times = None if row["floor"] is None else times_floor(row["median"], row["floor"])
    return [
        row["label"],
        duration(row["median"]),
        f"{duration(row['p25'])} to {duration(row['p75'])}",
        *(NOTHING if row[tail] is None else duration(row[tail]) for tail in ("p95", "p99")),
        f"{row['realtime']:.2f}",
        "1" if row["label"] == race["baseline"] else short_ratio(row, race) or NOTHING,
        NOTHING if times is None else f"{times:.1f}",
        _joules(row),
        worst,
        limit,
        NOTHING if row["status"] == "ok" else row["mark"],
    ]


def _parity(row: Plain) -> tuple[str, str]:
    """SNR of the worst stem that is judged and its limit, both in dB."""
    parity = row["parity"]
    if parity is None or not parity["snr_db"]:
        return NOTHING, NOTHING
    judged = {
        s: limit for s, limit in parity["limit_db"].items() if limit is not None and s not in parity["exact"]
    }
    if not judged:
        return ("exact" if parity["exact"] else NOTHING), NOTHING
    values = {source: parity["snr_db"][source] for source in judged}
    if None in values.values():
        return "no number", NOTHING
    worst = min(values, key=lambda source: values[source])
    return f"{decibels(values[worst])} dB, {worst}", f"{judged[worst]:.0f} dB"


def _joules(row: Plain) -> str:
    known = [meter["median"] for meter in row["energy"].values() if meter["median"] is not None]
    return f"{sum(known):.3g} J" if known else NOTHING


def _remarks(race: Plain, rows: Sequence[Plain]) -> Iterator[str]:
    yield (
        "A ratio is that of times in the same round; the range after it holds the median ratio with 95 % "
        "(bootstrap over the rounds)."
    )
    faulty = [
        row["label"] for row in rows if row["floor"] and times_floor(row["median"], row["floor"]) is None
    ]
    if faulty:
        yield f"Not shown, × floor of {', '.join(faulty)}: {FAULTY}."
    tails = next((row["tails"] for row in rows if row["status"] == "ok" and row["tails"]), "")
    if tails:
        yield f"No percentile that the rounds cannot carry: {tails}."
    reference = next((row["parity"]["reference"] for row in rows if row["parity"] is not None), "")
    if reference:
        why = race["no_exact_reference"]
        yield f"Stems are compared with those of {reference}" + (
            f", not with PyTorch in float64: {why}." if why else "."
        )
    missing = {f"{m['source']}: {m['reason']}" for row in rows for m in row["energy"].values() if m["reason"]}
    if missing:
        yield f"Energy is not known here ({'; '.join(sorted(missing))})."


def _profile(found: Plain) -> list[Block]:
    if found["status"] != "ok":
        return [Text([profile_title(found)])]
    titles = ("Stages", "Operators, all stages together")
    tables = zip(titles, profile_tables(found), strict=True)
    return [
        Text([profile_title(found), *profile_remarks(found)]),
        *(
            Table(title, columns, rows, text_columns=[n for n, c in enumerate(columns) if c in WORDS])
            for title, (columns, rows) in tables
        ),
    ]


WORDS = ("stage", "operator", "operators")


def _facts(result: Plain) -> Iterator[tuple[str, str]]:
    settings = result["settings"]
    yield "threads", str(settings["threads"])
    yield "music", settings["audio"] or "made up by the program"
    yield "order", f"drawn anew each round, seed {settings['seed']}"
    for device, found in result["ceilings"].items():
        if "bytes_per_second" in found:
            rates = found["flop_per_second"]
            best = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in rates.items() if rate)
            yield (
                f"at best, {device}",
                f"{best}; {found['bytes_per_second'] / 1e9:.1f} GB/s, both measured there",
            )
    for name, facts in result["models"].items():
        where = " in its graphs" if facts["macs_counted"] == "graphs" else ""
        yield (
            name,
            f"{facts['family']}, {facts['parameters'] / 1e6:.2f} M parameters, {facts['macs'] / 1e9:.1f} GMAC a "
            f"segment{where}, layout {facts['layout']}, batch {facts['batch']}, bundle {facts['digest'][:12]}",
        )
