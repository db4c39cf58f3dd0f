"""Learnt fusion weights as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrsep_deploy.inspection.inspect import resolution_names
from mrsep_deploy.pages.blocks import Block, Key, Mark, Plot, Strip
from mrsep_deploy.pages.scales import Scale

Plain = Mapping[str, Any]


def fusion_blocks(fusion: Sequence[Plain], branches: Sequence[Plain]) -> list[Block]:
    """A plot for every place where resolutions are weighted.

    Args:
        fusion: as the manifest has it: ``where``, ``sources`` (empty if they share a row), ``weights``.
        branches: of the model, ``name`` and ``transform``, None for the waveform.
    """
    names = resolution_names((branch["name"], branch.get("transform") is None) for branch in branches)
    return [_plot(shares, names) for shares in fusion]


def _plot(shares: Plain, names: Sequence[str]) -> Plot:
    scale = Scale.over([weight for row in shares["weights"] for weight in row])
    strips = []
    for number, weights in enumerate(shares["weights"]):
        group = shares["sources"][number] if shares["sources"] else "all sources"
        for name, weight in zip(names, weights, strict=False):
            mark = Mark("bar", 0.0, scale.at(weight))
            strips.append(Strip(name, [mark], f"{weight:.1%}", f"{group}, {name}: {weight:.1%}", group=group))
    return Plot(
        f"Weight of each resolution, {shares['where']}",
        "Learnt; the weights of a source add up to 100 %.",
        scale.ticks(lambda value: f"{value:.0%}"),
        strips,
        [Key("bar", "share of a resolution")],
    )
