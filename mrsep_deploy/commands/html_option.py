"""``--html`` and ``--overwrite`` as the commands that write reports share them, and the command line as typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TypeVar

import click
from click.core import ParameterSource

ARGUMENTS = "mrsep_deploy.arguments"
"""Where ``ctx.meta`` keeps what was typed."""
PROGRAM = "mrsep-deploy"
SETTINGS = (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)

Command = TypeVar("Command")


def html_option(command: Command) -> Command:
    """``--html FILE``."""
    return click.option("--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                        help="Write a report: one page with plots, to be opened in a browser. Needs the extra "
                        "mrsep-deploy[report].")(command)  # type: ignore[type-var]  # fmt: skip


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
