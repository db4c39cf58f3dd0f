"""Blocks to HTML, by a template, and what reports have in common: the machine, moments, learnt fusion weights."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from mrsep_deploy.bundle.licence import Licence
from mrsep_deploy.errors import OutputError
from mrsep_deploy.inspection.inspect import resolution_names
from mrsep_deploy.pages.blocks import Block, Key, Page, Plain, Plot, Strip
from mrsep_deploy.pages.scales import Scale

if TYPE_CHECKING:
    from jinja2 import Template

INSTALL = 'Run pip install "mrsep-deploy[report]"'


def require_templates() -> None:
    """Raise ``OutputError`` where jinja2 is not installed: before anything is measured, not after it."""
    if importlib.util.find_spec("jinja2") is None:
        raise OutputError("--html needs the package jinja2, not installed here", INSTALL)


def render(page: Page) -> str:
    """The page as HTML, UTF-8, with all that it needs in itself; what UTF-8 cannot hold becomes a question mark.

    Raises ``OutputError`` where jinja2 is not installed.
    """
    require_templates()
    environment = [*_machine_facts(page.machine), *page.facts]
    commit = (page.machine["commit"] or "").removesuffix("+")
    made = _template().render(page=page, environment=environment, commit=commit, style=_file("style.css"))
    return f"{made.rstrip()}\n".encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _file(name: str) -> str:
    return resources.files("mrsep_deploy.pages").joinpath(name).read_text(encoding="utf-8")


def _machine_facts(machine: Plain) -> Iterator[tuple[str, str]]:
    """Name and value, from what ``mrsep_deploy.measuring.surroundings.machine_info`` told."""
    yield "processor", f"{machine['cpu']}, {machine['cores']} cores"
    if machine["memory_gib"] is not None:
        yield "memory", f"{machine['memory_gib']:g} GiB"
    yield "system", str(machine["system"])
    yield (
        "software",
        ", ".join(
            [
                f"Python {machine['python']}",
                *(f"{name} {version}" for name, version in machine["versions"].items()),
            ]
        ),
    )
    if machine["commit"]:
        yield "commit", machine["commit"].replace("+", ", with changes that were not committed")
    if machine["load_before"] is not None:
        yield "load before the start", f"{machine['load_before']:.2f} processes"
    yield "date", day(machine["date"])


def day(moment: str) -> str:
    """``2026-11-22T23:54:34+00:00`` as ``22 November 2026, 23:54 UTC``."""
    when = datetime.datetime.fromisoformat(moment).astimezone(datetime.timezone.utc)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def licence_facts(found: Plain) -> Iterator[tuple[str, str]]:
    """Yields the licence of a model's weights; results from before it was recorded have none."""
    if "licence" in found:
        yield "licence of the weights", str(Licence(**found["licence"]))


def fusion_blocks(fusion: Sequence[Plain], branches: Sequence[Plain]) -> list[Block]:
    """A plot for every place where resolutions are weighted, from a manifest's ``fusion`` and ``branches``."""
    names = resolution_names((branch["name"], branch.get("transform") is None) for branch in branches)
    return [_weights(shares, names) for shares in fusion]


def _weights(shares: Plain, names: Sequence[str]) -> Plot:
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
