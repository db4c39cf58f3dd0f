"""Learnt fusion weights as plots."""

from __future__ import annotations

from collections.abc import Sequence

from mrsep_deploy.inspection.inspect import resolution_names
from mrsep_deploy.pages.blocks import Block, Key, Plain, Plot, Strip
from mrsep_deploy.pages.scales import Scale


def fusion_blocks(fusion: Sequence[Plain], branches: Sequence[Plain]) -> list[Block]:
    """A plot for every place where resolutions are weighted, from a manifest's ``fusion`` and ``branches``."""
    names = resolution_names((branch["name"], branch.get("transform") is None) for branch in branches)
    return [_plot(shares, names) for shares in fusion]


def _plot(shares: Plain, names: Sequence[str]) -> Plot:
    scale = Scale.over([weight for row in shares["weights"] for weight in row])
    strips = []
    for number, weights in enumerate(shares["weights"]):
        group = shares["sources"][number] if shares["sources"] else "all sources"
        for name, weight in zip(names, weights, strict=False):
            said = f"{group}, {name}: {weight:.1%}"
            strips.append(Strip(name, [scale.bar(weight)], f"{weight:.1%}", said, group=group))
    return Plot(
        f"Weight of each resolution, {shares['where']}",
        "Learnt; the weights of a source add up to 100 %.",
        scale.ticks(lambda value: f"{value:.0%}"),
        strips,
        [Key("bar", "share of a resolution")],
    )
