"""Plots of a benchmark: latency, memory, start-up, shares of the stages, who ran when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrsep_deploy.bench.report import short_ratio
from mrsep_deploy.pages.blocks import Drawing, Key, Mark, Plot, Strip
from mrsep_deploy.pages.scales import Scale
from mrsep_deploy.runtime.timeline import branch_order, timeline_svg
from mrsep_deploy.runtime.trace import TraceEvent
from mrsep_deploy.terminal.tables import Table, duration, file_size

Plain = Mapping[str, Any]

OURS, OTHERS = 0, -1
SHARED = "shared by the branches, or no stage"
COMPARED = Key("bar", "the same of what it is compared with", OTHERS)


def _colour(row: Plain) -> int:
    return OURS if row["engine"] else OTHERS


def latency(rows: Sequence[Plain], race: Plain) -> Plot:
    """Seconds of every round: median, quartiles, range."""
    scale = Scale.over([value for row in rows for value in row["seconds"]])
    return Plot(
        f"Seconds, {race['rounds']} rounds",
        "Less is better.",
        scale.ticks(lambda value: f"{value:g} s"),
        [_latency_strip(row, race, scale, first=row is rows[0]) for row in rows],
        [
            Key("dot", "median", OURS), Key("bar", "quartiles of an engine", OURS), COMPARED,
            Key("line", "range", OURS), Key("round", "a round"),
        ],
    )  # fmt: skip


def _latency_strip(row: Plain, race: Plain, scale: Scale, first: bool) -> Strip:
    colour = _colour(row)
    marks = [
        Mark("line", scale.at(row["min"]), scale.at(row["max"]), colour),
        Mark("bar", scale.at(row["p25"]), scale.at(row["p75"]), colour),
        *(Mark("round", scale.at(value)) for value in row["seconds"]),
        Mark("dot", scale.at(row["median"]), colour=colour, title=duration(row["median"])),
    ]
    said = (
        f"{row['label']}: median {duration(row['median'])}, quartiles {duration(row['p25'])} to "
        f"{duration(row['p75'])}, range {duration(row['min'])} to {duration(row['max'])}"
    )
    note = (
        "baseline" if row["label"] == race["baseline"] else short_ratio(row["ratios"].get(race["baseline"]))
    )
    return Strip(row["label"], marks, duration(row["median"]), said, note, strong=first)


def memory(rows: Sequence[Plain]) -> Iterator[Plot]:
    """Peak memory, the least first, where it is known."""
    known = [row for row in rows if row["memory"].get("peak_bytes")]
    if not known:
        return
    scale = Scale.over([row["memory"]["peak_bytes"] for row in known])
    strips = []
    for row in sorted(known, key=lambda row: float(row["memory"]["peak_bytes"])):
        peak, loaded = row["memory"]["peak_bytes"], row["memory"].get("loaded_bytes")
        device = row["memory"].get("device_bytes")
        marks = [Mark("bar", 0.0, scale.at(peak), _colour(row))]
        marks += [Mark("limit", scale.at(loaded), colour=_colour(row))] if loaded else []
        said = f"{row['label']}: {file_size(peak)} at most"
        said += f", {file_size(loaded)} until it was loaded" if loaded else ""
        note = f"and {file_size(device)} on the device" if device else ""
        strips.append(Strip(row["label"], marks, file_size(peak), f"{said} {note}".strip(), note))
    yield Plot(
        "Memory", "The most that the process held in the host's memory, all of it counted.",
        scale.ticks(lambda value: f"{value / 1e9:g} GB"), strips,
        [Key("bar", "at most"), COMPARED, Key("limit", "until it was loaded")],
    )  # fmt: skip


def start_up(rows: Sequence[Plain]) -> Iterator[Plot]:
    """Seconds from the start of a process to its first stems."""
    known = [row for row in rows if row["start_up"]]
    if not known:
        return
    totals = {row["label"]: [row["start_up"][state]["total"] for state in ("warm", "cold")] for row in known}
    scale = Scale.over([value for pair in totals.values() for value in pair])
    strips = []
    for row in sorted(known, key=lambda row: totals[row["label"]][0]):
        warm, cold = totals[row["label"]]
        marks = [
            Mark("bar", 0.0, scale.at(warm), _colour(row)),
            Mark("limit", scale.at(cold), colour=_colour(row)),
        ]
        said = f"{row['label']}: {duration(warm)} warm, {duration(cold)} cold"
        strips.append(Strip(row["label"], marks, duration(warm), said, f"cold {duration(cold)}"))
    yield Plot(
        "To the first stems", "From the start of the process; once each, so without a spread.",
        scale.ticks(lambda value: f"{value:g} s"), strips,
        [Key("bar", "warm: engines built before"), COMPARED, Key("limit", "cold: nothing built yet")],
    )  # fmt: skip


def _events(row: Plain) -> list[TraceEvent]:
    return [TraceEvent(**event) for event in row["timeline"]["events"]]


def shares(rows: Sequence[Plain], facts: Plain) -> tuple[Plot, Table]:
    """Share of every stage in its order: the fastest contender's as a plot, all of them as a table.

    Args:
        rows: those with a timeline, the fastest first, one a contender.
        facts: of the model.
    """
    first, branches = rows[0], {stage["name"]: stage["branch"] for stage in facts["stages"]}
    colours = {branch: n for n, branch in enumerate(branch_order(_events(first)))}
    colours[SHARED] = -1
    by_label = {row["label"]: _with_rest(row) for row in rows}
    found = by_label[first["label"]]
    scale = Scale.over(found.values())
    strips = [
        Strip(
            stage, [Mark("bar", 0.0, scale.at(share), colours.get(branches.get(stage, ""), -1))], f"{share:.1%}",
            f"{stage}: {share:.1%}",
        )
        for stage, share in found.items()
    ]  # fmt: skip
    note = "Of the time of some segments back to back; stages side by side add up to more than the whole."
    cells = [
        [stage, *(f"{each.get(stage, 0.0):.1%}" for each in by_label.values())]
        for stage in dict.fromkeys(stage for each in by_label.values() for stage in each)
    ]
    return (
        Plot(
            f"Share of each stage, {first['label']}", note, scale.ticks(lambda value: f"{value:.0%}"), strips,
            [Key("bar", branch, colour) for branch, colour in colours.items()],
        ),
        Table("Share of each stage", ["stage", *by_label], cells),
    )  # fmt: skip


def _with_rest(row: Plain) -> dict[str, float]:
    timeline = row["timeline"]
    return {**timeline["shares"], "no stage": timeline["outside_stages"]}


def timelines(rows: Sequence[Plain]) -> Iterator[Drawing]:
    """Which stage ran when on which stream, one drawing a contender."""
    for row in rows:
        events = _events(row)
        streams = len({event.stream for event in events})
        word = "stream" if streams == 1 else "streams"
        yield Drawing(
            f"{row['label']}: stages on {streams} {word}",
            f"No stage ran in {row['timeline']['outside_stages']:.1%} of the time.",
            timeline_svg(events),
            f"Timeline of {row['label']}: {len(events)} runs of stages on {streams} {word}; the shares are above",
        )
