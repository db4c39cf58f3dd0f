"""A command's options as the fields of a dataclass: each stands in one place, with its type, default and help.

@dataclass(frozen=True)
class Options:
    model: str | None = argument("[NAME|BUNDLE]", required=False)
    jobs: int = option("Stages to build at the same time.", default=1)
    as_json: bool = flag("Print the result as JSON.", "--json")

@click.command("build")
@takes(Options)
def build(options: Options) -> None: ...
"""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path, PurePath
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from mrsep_deploy.commands import completing
from mrsep_deploy.precision.names import ASKED

Options = TypeVar("Options")
T = TypeVar("T")

PROGRAM = "mrsep-deploy"
ARGUMENTS = "mrsep_deploy.arguments"
"""Where ``ctx.meta`` keeps what was typed."""
SETTINGS = (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)


def takes(kind: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Gives a command the options that are the fields of ``kind``, and calls it with one of these."""

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**given: object) -> None:
            command(kind(**given))

        for each in reversed(fields(kind)):  # type: ignore[arg-type]  # every kind is a dataclass
            each.metadata["add"](each.name)(call)
        return call

    return decorate


def option(help: str, *names: str, default: object = None, **more: Any) -> Any:
    """A field for an option, with what ``click.option`` takes.

    Without a long name among ``names`` it has the field's. A default is shown in the help.
    """
    if default is not None:
        more = {"default": default, "show_default": True, **more}

    def add(name: str) -> Callable[[Any], Any]:
        long = any(each.startswith("--") for each in names)
        given = names if long else (*names, f"--{name.replace('_', '-')}")
        return click.option(name, *given, help=help, **more)

    return field(metadata={"add": add})


flag = functools.partial(option, is_flag=True)


def argument(metavar: str | None = None, **more: Any) -> Any:
    """A field for an argument, with what ``click.argument`` takes."""
    return field(metadata={"add": lambda name: click.argument(name, metavar=metavar, **more)})


class CommaList(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """Values separated by commas.

    Args:
        metavar: how help shows them.
        item: returns a value; None for a text that stands for none.
        problem: what is wrong then, of ``{item!r}`` and ``{text!r}``, the whole.
    """

    def __init__(self, metavar: str, item: Callable[[str], object], problem: str) -> None:
        self.name, self._item, self._problem = metavar, item, problem

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # converted already
            return value
        parts = [part.strip() for part in value.split(",")]
        found = tuple(map(self._item, parts))
        if None in found:
            self.fail(self._problem.format(item=parts[found.index(None)], text=value), param, ctx)
        return found


def names(*known: str, problem: str = "{item!r} is none of {known}") -> CommaList:
    """Some of the known names."""
    problem = problem.replace("{known}", ", ".join(known))
    return CommaList("NAME,...", {name: name for name in known}.get, problem)


def picked(kind: type[T], given: object, **more: object) -> T:
    """Makes a dataclass of what ``given`` has under the names of its fields, and of ``more`` before that."""
    names = [each.name for each in fields(kind) if hasattr(given, each.name)]  # type: ignore[arg-type]
    return kind(**{**{name: getattr(given, name) for name in names}, **more})


def command_line() -> str:
    """What was typed, ready to be typed again, with the options that settings gave.

    Of absolute paths only the last part is kept: where files lie is nobody else's business.
    """
    context = click.get_current_context()
    words = [*context.meta.get(ARGUMENTS, ())]
    for option in context.command.params:
        if option.name and context.get_parameter_source(option.name) in SETTINGS:
            given = option.value_from_envvar(context)
            given = context.lookup_default(option.name) if given is None else given
            for value in given if isinstance(given, (list, tuple)) else [given]:
                is_flag = getattr(option, "is_flag", False)
                words.append(option.opts[-1] if is_flag else f"{option.opts[-1]}={value}")
    return shlex.join([PROGRAM, *map(_without_folders, words)])


def _without_folders(word: str) -> str:
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if not Path(value).is_absolute():  # NAME=PATH,...: what lies behind an equals sign may be absolute
        return name + equals + ",".join(map(_placeless, value.split(",")))
    return name + equals + (PurePath(value).name or value)


def _placeless(item: str) -> str:
    name, equals, value = item.partition("=")
    return name + equals + PurePath(value).name if equals and Path(value).is_absolute() else item


# --- options of several commands

quiet = functools.partial(flag, "Print errors only.", "-q", "--quiet")
layout = functools.partial(
    option,
    "A graph for every stage, or one for the whole.",
    type=click.Choice(["split", "whole"]),
    default="split",
)
report_file = functools.partial(option, type=FILE, metavar="FILE")
model_name = functools.partial(option, metavar="NAME|PATH", shell_complete=completing.models)
folder = functools.partial(option, type=PATH, metavar="DIR", shell_complete=completing.folders)
threads = functools.partial(
    option,
    help="CPU threads; 0 for all.  [default: 0]",
    type=click.IntRange(min=0),
    default=0,
    show_default=False,  # the range would be shown, too
)
overlap = functools.partial(
    option, help="Share of a segment that overlaps.  [default: the model's, 0.25 mostly]", type=float
)
batch = functools.partial(
    option,
    help="Segments that one run of the graphs takes.  [default: 1]",
    type=click.IntRange(min=1),
    metavar="N",
)
checkpoint = functools.partial(option, type=PATH)
precision = functools.partial(
    option,
    help="Of the arithmetic; a float32 bundle is converted and kept in the cache.  [default: the bundle's own]",
    type=click.Choice(ASKED),
)
plan = functools.partial(
    option, help="For --precision mixed: what stays in float32 beyond the rules.", type=PATH, metavar="FILE"
)
overwrite = functools.partial(
    flag, "Let reports replace files that are none of mrsep-deploy's. Inputs are never replaced."
)


def limit() -> Any:
    """``--limit DB``."""

    def decibels(_ctx: click.Context, _option: click.Parameter, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise click.BadParameter(f"{value} is no number of decibels, such as 60")
        return value

    return option(
        "Least SNR of a stem; its error also passes 25 dB farther than that below the mix.  [default: 100 for fp32, "
        "60 for fp16, 42 for bf16]",
        type=float,
        metavar="DB",
        callback=decibels,
    )


def gate(default: str = "what verify --calibrate-gate found, or 4") -> Any:
    """``--gate BURSTINESS|off``; infinite for off. ``default`` says what holds without it."""

    def burstiness(_ctx: click.Context, _option: click.Parameter, text: str | None) -> float | None:
        if text is None or text == "off":
            return None if text is None else math.inf
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise click.BadParameter(f"{text!r} is neither off nor burstiness, such as 4")
        return value

    return option(
        "Lower precision: segments with a higher burstiness (almost silent but for a brief sound) run in "
        f"float32.  [default: {default}]",
        metavar="BURSTINESS|off",
        callback=burstiness,
        shell_complete=completing.gates,
    )


def html() -> Any:
    """``--html FILE``; refused before anything is measured where no page can be made."""

    def require_templates(_ctx: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            from mrsep_deploy.pages import page

            page.require_templates()
        return path

    return report_file(
        "Write a report: one page with plots, to be opened in a browser. Needs the extra mrsep-deploy[report].",
        "--html",
        callback=require_templates,
    )
