"""Plots of a benchmark: latency, memory, start-up, shares of the stages, who ran when, times real time by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mrsep_deploy.bench.report import short_ratio
from mrsep_deploy.pages.blocks import Block, Curve, Curves, Drawing, Key, Mark, Plain, Plot, Strip, Tick
from mrsep_deploy.pages.scales import Scale
from mrsep_deploy.runtime.timeline import branch_order, timeline_svg
from mrsep_deploy.runtime.trace import TraceEvent
from mrsep_deploy.terminal.tables import Table, duration, file_size, optional

Points = dict[int, float]

COLOURS = 7
OURS, OTHERS = 0, -1
SHARED = "shared by the branches, or no stage"
COMPARED = Key("bar", "the same of what it is compared with", OTHERS)


def _colour(row: Plain) -> int:
    return OURS if row["engine"] else OTHERS


def latency(rows: Sequence[Plain], race: Plain) -> Plot:
    """Seconds of every round: median, quartiles, range."""
    scale = Scale.over([value for row in rows for value in row["seconds"]])
    strips = []
    for row in rows:
        colour, ratio = _colour(row), row["ratios"].get(race["baseline"])
        median, low, high, least, most = (
            duration(row[name]) for name in ("median", "p25", "p75", "min", "max")
        )
        marks = [
            Mark("line", scale.at(row["min"]), scale.at(row["max"]), colour),
            Mark("bar", scale.at(row["p25"]), scale.at(row["p75"]), colour),
            *(Mark("round", scale.at(value)) for value in row["seconds"]),
            Mark("dot", scale.at(row["median"]), colour=colour, title=median),
        ]
        said = f"{row['label']}: median {median}, quartiles {low} to {high}, range {least} to {most}"
        note = "baseline" if row["label"] == race["baseline"] else short_ratio(ratio)
        strips.append(Strip(row["label"], marks, median, said, note, strong=row is rows[0]))
    return Plot(
        f"Seconds, {race['rounds']} rounds", "Less is better.",
        scale.ticks(lambda value: f"{value:g} s"), strips,
        [
            Key("dot", "median", OURS), Key("bar", "quartiles of an engine", OURS), COMPARED,
            Key("line", "range", OURS), Key("round", "a round"),
        ],
    )  # fmt: skip


def memory(rows: Sequence[Plain]) -> Iterator[Plot]:
    """Peak memory, the least first, where it is known."""
    known = [row for row in rows if row["memory"].get("peak_bytes")]
    scale = Scale.over([row["memory"]["peak_bytes"] for row in known])
    strips = []
    for row in sorted(known, key=lambda row: float(row["memory"]["peak_bytes"])):
        peak, loaded = row["memory"]["peak_bytes"], row["memory"].get("loaded_bytes")
        device = row["memory"].get("device_bytes")
        said = f"{row['label']}: {file_size(peak)} at most"
        said += f", {file_size(loaded)} until it was loaded" if loaded else ""
        note = f"and {file_size(device)} on the device" if device else ""
        marks = _bar_to_limit(row, scale, peak, loaded)
        strips.append(Strip(row["label"], marks, file_size(peak), f"{said} {note}".strip(), note))
    if strips:
        yield Plot(
            "Memory", "The most that the process held in the host's memory, all of it counted.",
            scale.ticks(lambda value: f"{value / 1e9:g} GB"), strips,
            [Key("bar", "at most"), COMPARED, Key("limit", "until it was loaded")],
        )  # fmt: skip


def start_up(rows: Sequence[Plain]) -> Iterator[Plot]:
    """Seconds from the start of a process to its first stems."""
    known = [row for row in rows if row["start_up"]]
    totals = {row["label"]: [row["start_up"][state]["total"] for state in ("warm", "cold")] for row in known}
    scale = Scale.over([value for pair in totals.values() for value in pair])
    strips = []
    for row in sorted(known, key=lambda row: totals[row["label"]][0]):
        warm, cold = totals[row["label"]]
        said = f"{row['label']}: {duration(warm)} warm, {duration(cold)} cold"
        marks = _bar_to_limit(row, scale, warm, cold)
        strips.append(Strip(row["label"], marks, duration(warm), said, f"cold {duration(cold)}"))
    if strips:
        yield Plot(
            "To the first stems", "From the start of the process; once each, so without a spread.",
            scale.ticks(lambda value: f"{value:g} s"), strips,
            [Key("bar", "warm: engines built before"), COMPARED, Key("limit", "cold: nothing built yet")],
        )  # fmt: skip


def _bar_to_limit(row: Plain, scale: Scale, value: float, limit: float | None) -> list[Mark]:
    bar = scale.bar(value, _colour(row))
    return [bar, Mark("limit", scale.at(limit), colour=_colour(row))] if limit else [bar]


def _events(row: Plain) -> list[TraceEvent]:
    return [TraceEvent(**event) for event in row["timeline"]["events"]]


def shares(rows: Sequence[Plain], facts: Plain) -> tuple[Plot, Table]:
    """Share of every stage of a model in its order: the fastest contender's as a plot, all of them as a table.

    ``rows`` are those with a timeline, the fastest first, one a contender.
    """
    first, branches = rows[0], {stage["name"]: stage["branch"] for stage in facts["stages"]}
    colours = {branch: n for n, branch in enumerate(branch_order(_events(first)))}
    colours[SHARED] = -1
    by_label = {
        row["label"]: {**row["timeline"]["shares"], "no stage": row["timeline"]["outside_stages"]}
        for row in rows
    }
    found = by_label[first["label"]]
    scale = Scale.over(found.values())
    strips = [
        Strip(
            stage, [scale.bar(share, colours.get(branches.get(stage, ""), -1))], f"{share:.1%}",
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


def batch_curves(result: Plain) -> list[Block]:
    """Times real time against the batch: a plot and its table for every model that was measured with several."""
    blocks: list[Block] = []
    for family, by_label in _by_model(result).items():
        batches = sorted({batch for points in by_label.values() for batch in points})
        if len(batches) > 1:
            rows = [
                [label, *(optional(points.get(batch), "{:.2f}") for batch in batches)]
                for label, points in by_label.items()
            ]
            columns = ["contender", *(f"batch {batch}" for batch in batches)]
            table = Table(f"{family}: times real time", columns, rows)
            blocks += [_curves(family, by_label, batches), table]
    return blocks


def _by_model(result: Plain) -> dict[str, dict[str, Points]]:
    """Times real time of segments: by model without its batch, by contender, by batch."""
    found: dict[tuple[object, ...], dict[str, Points]] = {}
    for row in result["rows"]:
        if row["status"] != "ok" or row["workload"] != "segments":
            continue
        facts = result["models"][row["model"]]
        key = tuple(facts[name] for name in ("family", "layout", "precision", "parameters", "macs"))
        found.setdefault(key, {}).setdefault(row["label"], {})[row["batch"]] = row["realtime"]
    return {f"{key[0]}, {key[1]}, {key[2]}": points for key, points in found.items()}


def _curves(model: str, by_label: Mapping[str, Points], batches: list[int]) -> Curves:
    scale = Scale.over([value for points in by_label.values() for value in points.values()])
    places = {batch: 4 + 92 * n / (len(batches) - 1) for n, batch in enumerate(batches)}
    curves = [
        Curve(
            label,
            [(round(places[batch], 3), scale.at(points[batch])) for batch in sorted(points)],
            number % COLOURS,
            [f"{label}, batch {batch}: {points[batch]:.2f} times real time" for batch in sorted(points)],
        )
        for number, (label, points) in enumerate(by_label.items())
    ]
    return Curves(
        f"{model}: times real time by batch",
        "More is better.",
        "segments at once",
        "seconds of music per second",
        [Tick(round(place, 3), str(batch)) for batch, place in places.items()],
        scale.ticks(),
        curves,
        "; ".join(title for curve in curves for title in curve.titles),
    )
