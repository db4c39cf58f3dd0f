"""A benchmark as a page, from what ``mrsep-deploy bench --json`` writes (``mrsep_deploy.bench.results``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mrsep_deploy.bench.profile_report import profile_part
from mrsep_deploy.bench.report import RATIO_NOTE, race_remarks, race_table, race_title
from mrsep_deploy.pages.batch_curves import batch_curves
from mrsep_deploy.pages.bench_plots import latency, memory, shares, start_up, timelines
from mrsep_deploy.pages.bench_verdict import race_rows, race_verdict, warnings
from mrsep_deploy.pages.blocks import Block, Page, Section, Text
from mrsep_deploy.pages.environment import day, install_steps, machine_facts
from mrsep_deploy.pages.fusion import fusion_blocks

Plain = Mapping[str, Any]

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
        traced = sorted(_traced(result, name), key=lambda row: float(row["median"]))
        if traced:
            yield Section(f"{name}: where the time goes", [*shares(traced, facts), *timelines(traced)])
        if facts["fusion"]:
            yield Section(f"{name}: fusion weights", fusion_blocks(facts["fusion"], facts["branches"]))
    for found in result["profiles"]:
        part = profile_part(found)
        blocks = [Text([part.title, *part.remarks]), *part.tables]
        yield Section(f"{found['model']} on {found['label']}, operators", blocks)


def _traced(result: Plain, model: str) -> Iterator[Plain]:
    """Rows with a timeline; one is taken once a contender, at its first workload."""
    return (row for row in result["rows"] if row["model"] == model and row["timeline"] and row["median"])


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
