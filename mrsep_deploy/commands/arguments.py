"""What the command line takes: names of families, and constructor arguments."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

from mrsep_deploy.commands.options import option

LISTS = ("sources", "nfft_list")
"""Arguments that are lists even with one entry."""


class LateChoice(click.Choice):  # type: ignore[type-arg]  # generic in new versions of click only
    """One of some names, which are looked up whenever they are needed: tables may grow."""

    def __init__(self, names: Callable[[], tuple[str, ...]]) -> None:
        self._names = names
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        return self._names()

    @choices.setter
    def choices(self, _given: tuple[str, ...]) -> None:
        """The base class keeps what it is given; here there is nothing to keep."""


class ListingOption(click.Option):
    """An option whose help ends with the names it takes."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.type, click.Choice):
            return record
        return record[0], record[1].replace("NAMES", ", ".join(self.type.choices))


def one_of(names: Callable[[], tuple[str, ...]], help: str, *options: str, **more: Any) -> Any:
    """A field for an option that takes one of some names, which stand in its help for ``NAMES``."""
    return option(help, *options, type=LateChoice(names), cls=ListingOption, **more)


def parse_argument(text: str) -> tuple[str, object]:
    """``nfft_list=2048,4096`` -> ``("nfft_list", [2048, 4096])``, ``channels=24`` -> ``("channels", 24)``.

    Raises:
        click.BadParameter: there is no ``=``, or the name is that of an option of its own.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE, such as channels=24")
    if name in ("family", "seed"):
        raise click.BadParameter(f"{name} is no constructor argument, it has an option of its own")
    if name in LISTS or "," in value:
        return name, [_parse_value(item) for item in value.split(",") if item.strip()]
    return name, _parse_value(value)


constructor_arguments = functools.partial(
    option,
    multiple=True,
    metavar="KEY=VALUE",
    callback=lambda _ctx, _option, given: dict(map(parse_argument, given)),
)


def _parse_value(text: str) -> object:
    """A number, true, false or none if it reads as one, else the text."""
    text = text.strip()
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", text) else text
