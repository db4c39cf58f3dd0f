"""Times real time against the batch: bundles of one model that differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mrsep_deploy.pages.blocks import Block, Curve, Curves, Tick
from mrsep_deploy.pages.scales import Scale
from mrsep_deploy.terminal.tables import Table

Plain = Mapping[str, Any]
Points = dict[int, float]
COLOURS = 7


def batch_curves(result: Plain) -> list[Block]:
    """A plot and its table for every model that was measured with several batches."""
    blocks: list[Block] = []
    for family, by_label in _by_model(result).items():
        batches = sorted({batch for points in by_label.values() for batch in points})
        if len(batches) > 1:
            blocks += [_plot(family, by_label, batches), _table(family, by_label, batches)]
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


def _plot(model: str, by_label: Mapping[str, Points], batches: list[int]) -> Curves:
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


def _table(model: str, by_label: Mapping[str, Points], batches: list[int]) -> Table:
    rows = [
        [label, *(f"{points[batch]:.2f}" if batch in points else "–" for batch in batches)]
        for label, points in by_label.items()
    ]
    return Table(f"{model}: times real time", ["contender", *(f"batch {batch}" for batch in batches)], rows)
