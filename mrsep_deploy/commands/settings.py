"""Settings in a TOML file: options of commands, by their long names, below the name of the command.

    [run]
    out = "/music/stems"
    flac = true
    overlap = 0.5

What is given on the command line comes first, then environment variables (``MRSEP_DEPLOY_RUN_OUT``), then this
file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.reading import read_start, toml

MAX_BYTES = 2**20

Values = dict[str, object]


def read_settings(path: Path, command: Callable[[str], click.Command | None]) -> dict[str, Values]:
    """Values for click's ``default_map``.

    Args:
        path: the TOML file.
        command: gives the command of a name, None if there is none.

    Raises:
        UsageError: it cannot be read, is not TOML, or names a command or an option that does not exist.
    """
    settings = {}
    for name, section in _parsed(path).items():
        found = command(name)
        if found is None or not isinstance(section, dict):
            raise UsageError(
                f"{path} has {name!r}, expected sections named as commands, such as [run]", _fix(path)
            )
        settings[name] = {key: value for option, given in section.items() for key, value in
                          [_value(path, name, found, option, given)]}  # fmt: skip
    return settings


def _parsed(path: Path) -> Mapping[str, object]:
    try:
        data = read_start(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(
            f"the settings {path} cannot be read: {error.strerror or error}", _fix(path)
        ) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"the settings {path} have more than {MAX_BYTES} bytes", _fix(path))
    try:
        return toml(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the settings {path} are not TOML: {error}", _fix(path)) from error


def _value(path: Path, name: str, command: click.Command, option: str, given: object) -> tuple[str, object]:
    """The parameter's name, and its value as the command line would have it."""
    known = {
        text[2:]: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for text in parameter.opts
        if text.startswith("--")
    }
    parameter = known.get(option)
    if parameter is None or parameter.name is None:
        raise UsageError(f"{path} sets {option!r} in [{name}], which is no option of {name}", _fix(path))
    if isinstance(given, list):
        given = ",".join(map(str, given))
    if isinstance(given, dict) or (parameter.is_flag and not isinstance(given, bool)):
        expected = "true or false" if parameter.is_flag else "a value"
        raise UsageError(f"{path} sets {option} in [{name}] to {given!r}, expected {expected}", _fix(path))
    return parameter.name, given


def _fix(path: Path) -> str:
    return f"Correct {path}, or choose another file with --config."
