"""What the commands that write reports share: ``--html``, ``--overwrite``, the command line as it was typed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

from mrsep_deploy.errors import one_line

if TYPE_CHECKING:
    from mrsep_deploy.pages.blocks import Page

ARGUMENTS = "mrsep_deploy.arguments"
"""Where ``ctx.meta`` keeps what was typed."""
PROGRAM = "mrsep-deploy"
SETTINGS = (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)

Command = TypeVar("Command")


def html_option(command: Command) -> Command:
    """``--html FILE``; refused before anything is measured where no page can be made."""
    return click.option(
        "--html",
        "html_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        callback=_require_templates,
        help="Write a report: one page with plots, to be opened in a browser. Needs the extra "
        "mrsep-deploy[report].",
    )(command)  # type: ignore[type-var]


def _require_templates(_ctx: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        from mrsep_deploy.pages.page import require_templates

        require_templates()
    return path


def write_page(path: Path | None, make: Callable[[], Page]) -> None:
    """Writes the page that ``--html`` asked for, if it did."""
    if path is not None:
        from mrsep_deploy.files.parts import write_file
        from mrsep_deploy.pages.page import render

        write_file(path, render(make()).encode())


def say_remarks(remarks: Iterable[str]) -> None:
    """Prints how songs are heard otherwise than they are, as ``run`` does: on stderr, a line each."""
    for remark in remarks:
        click.echo(f"{PROGRAM}: {one_line(remark)}", err=True)


def overwrite_option(command: Command) -> Command:
    """``--overwrite``, for commands that write reports."""
    return click.option("--overwrite", is_flag=True,
                        help="Let reports replace files that are none of mrsep-deploy's. Inputs are never "
                        "replaced.")(command)  # type: ignore[type-var]  # fmt: skip


def given_files(*given: str | Path | None) -> list[Path]:
    """What a command was given to read, without the None among it, and the file of settings."""
    config = click.get_current_context().find_root().params.get("config")
    return [Path(path) for path in (*given, config) if path is not None]


def command_line() -> str:
    """What was typed, ready to be typed again, with the options that settings gave.

    Of absolute paths only the last part is kept: where files lie is nobody else's business.
    """
    context = click.get_current_context()
    words = [*context.meta.get(ARGUMENTS, ()), *_from_settings(context)]
    return shlex.join([PROGRAM, *map(_without_folders, words)])


def _without_folders(word: str) -> str:
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return name + equals + (PurePath(value).name or value if Path(value).is_absolute() else value)


def _from_settings(context: click.Context) -> Iterator[str]:
    """Options that a settings file or variables gave, as if they had been typed."""
    for option in context.command.params:
        if option.name and context.get_parameter_source(option.name) in SETTINGS:
            given = option.value_from_envvar(context)
            given = context.lookup_default(option.name) if given is None else given
            for value in given if isinstance(given, (list, tuple)) else [given]:
                yield option.opts[-1] if getattr(option, "is_flag", False) else f"{option.opts[-1]}={value}"
