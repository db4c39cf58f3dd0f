"""A benchmark as a page, from what ``mrsep-deploy bench --json`` writes (``mrsep_deploy.bench.results``).

Its verdicts say in words which contender won and by how much, which lost, and what makes the result doubtful.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mrsep_deploy.bench.noise import rough
from mrsep_deploy.bench.report import RATIO_NOTE, profile_part, race_remarks, race_table, race_title, rows_of
from mrsep_deploy.pages.bench_plots import batch_curves, latency, memory, shares, start_up, timelines
from mrsep_deploy.pages.blocks import Block, Page, Plain, Section, Text, Tone, Verdict
from mrsep_deploy.pages.page import day, fusion_blocks, licence_facts

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
        machine=result["machine"],
        facts=[*_facts(result)],
        command=result["command"],
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
            remarks = [text for text in race_remarks(race, rows) if text not in said]
            said.update(remarks)
            blocks: list[Block] = [latency(ready, race)] if ready else []
            table = replace(race_table(rows, race), strong=[0] if ready else [], note=RATIO_NOTE)
            blocks += [table, *memory(ready), *once, Text(remarks)]
            yield Section(race_title(result, race), blocks)
    curves = batch_curves(result)
    if curves:
        yield Section("Batches", curves)
    for name, facts in result["models"].items():
        # a timeline is taken once a contender, at its first workload
        rows = [row for row in result["rows"] if row["model"] == name and row["timeline"] and row["median"]]
        traced = sorted(rows, key=lambda row: float(row["median"]))
        if traced:
            yield Section(f"{name}: where the time goes", [*shares(traced, facts), *timelines(traced)])
        if facts["fusion"]:
            yield Section(f"{name}: fusion weights", fusion_blocks(facts["fusion"], facts["branches"]))
    for found in result["profiles"]:
        part = profile_part(found)
        blocks = [Text([part.title, *part.remarks]), *part.tables]
        yield Section(f"{found['model']} on {found['label']}, operators", blocks)


def _facts(result: Plain) -> Iterator[tuple[str, str]]:
    settings = result["settings"]
    yield "threads", str(settings["threads"])
    yield "music", settings["audio"] or "made up by the program"
    yield "order", f"drawn anew each round, seed {settings['seed']}"
    for device, found in result["ceilings"].items():
        if "bytes_per_second" in found:
            rates = found["flop_per_second"]
            best = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in rates.items() if rate)
            bandwidth = f"{found['bytes_per_second'] / 1e9:.1f} GB/s"
            yield f"at best, {device}", f"{best}; {bandwidth}, both measured there"
    for name, facts in result["models"].items():
        where = " in its graphs" if facts["macs_counted"] == "graphs" else ""
        yield (
            name,
            f"{facts['family']}, {facts['parameters'] / 1e6:.2f} M parameters, {facts['macs'] / 1e9:.1f} GMAC a "
            f"segment{where}, layout {facts['layout']}, batch {facts['batch']}, bundle {facts['digest'][:12]}",
        )
        yield from licence_facts(facts)


def race_rows(result: Plain, race: Plain) -> list[Plain]:
    """The rows of a race: those with times first, the fastest at the top."""
    return sorted(rows_of(result, race), key=lambda row: (row["status"] != "ok", row["median"] or 0.0))


def race_verdict(result: Plain, race: Plain) -> Verdict:
    """The winner against who came next, and against the baseline; then everybody who lost or failed."""
    rows = race_rows(result, race)
    ready = [row for row in rows if row["status"] == "ok"]
    title = race_title(result, race)
    failures = [f"{row['label']} {row['status']}: {row['reason']}." for row in rows if row["status"] != "ok"]
    if not ready:
        timed = any(row["seconds"] for row in rows)
        said = "Nobody won: no row has right stems." if timed else "Nothing was measured."
        return Verdict(title, said, "bad", failures)
    headline, tone = _headline(ready, race["baseline"])
    details = [*_comparisons(ready, race["baseline"]), *failures]
    if race["noise"] is not None and not race["noise"]["quiet"]:
        tone = "bad" if tone == "bad" else "plain"
        details.insert(0, f"{rough(race['noise'], result['machine']['cores'])}.")
    return Verdict(title, headline, tone, details)


def _headline(ready: Sequence[Plain], baseline: str) -> tuple[str, Tone]:
    winner = ready[0]
    rate = f"{winner['realtime']:.2f} times real time"
    if len(ready) == 1:
        return f"{winner['label']}: {rate}. There was nothing to compare it with.", "plain"
    if winner["label"] == baseline:
        return f"Nothing is faster than the baseline {baseline}: {rate}.", "bad"
    found = winner["ratios"].get(baseline)
    if found is None:
        return f"{winner['label']} has the shortest median: {rate}.", "plain"
    if found["low"] <= 1:
        lead = f"its lead over {baseline} is within the noise: {times(found)}"
        return f"{winner['label']} has the shortest median, but {lead}.", "plain"
    return f"{winner['label']} is {found['median']:.2f} times as fast as {baseline}: {rate}.", "good"


def _comparisons(ready: Sequence[Plain], baseline: str) -> Iterator[str]:
    winner = ready[0]
    against_baseline = winner["ratios"].get(baseline)
    if against_baseline is not None:
        yield f"{winner['label']} against {baseline}: {times(against_baseline)}."
    for second in ready[1:2]:
        found = winner["ratios"].get(second["label"])
        if found is not None and second["label"] != baseline:
            lead = "Ahead of" if found["low"] > 1 else "Not to be told apart from"
            yield f"{lead} {second['label']}, which came second: {times(found)}."
    for row in ready[1:]:
        found = row["ratios"].get(baseline)
        if found is None or row["label"] == baseline:
            continue
        if found["high"] < 1:
            yield f"{row['label']} is slower than {baseline}: {times(found)}."
        elif found["low"] <= 1:
            yield f"{row['label']} cannot be told apart from {baseline}: {times(found)}."


def times(found: Mapping[str, float]) -> str:
    """A ratio with its interval."""
    return f"{found['median']:.2f} × (95 % from {found['low']:.2f} to {found['high']:.2f})"


def warnings(result: Plain) -> Iterator[str]:
    """What makes the times doubtful, race by race."""
    if result["interrupted"]:
        yield "The run was interrupted; what was measured before stands."
    for race in result["races"]:
        noise = race["noise"]
        if noise is not None and not noise["quiet"]:
            title = race_title(result, race)
            yield f"The machine was not quiet ({title}): {'; '.join(noise['remarks'])}."
    for name, facts in result["models"].items():
        if not facts["trained"]:
            yield f"{name} is untrained: as fast as a trained model, its weights are random, and it separates nothing."
