"""Settings in a TOML file: options of commands, by their long names, below the name of the command.

    [run]
    out = "/music/stems"
    flac = true
    overlap = 0.5

What is given on the command line comes first, then environment variables (``MRSEP_DEPLOY_RUN_OUT``), then this
file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.reading import read_start, toml

MAX_BYTES = 2**20

Values = dict[str, object]


def read_settings(path: Path, command: Callable[[str], click.Command | None]) -> dict[str, Values]:
    """Returns values for click's ``default_map``; ``command`` gives the command of a name.

    Raises:
        UsageError: it cannot be read, is not TOML, or names a command or an option that does not exist.
    """
    fix = f"Correct {path}, or choose another file with --config."
    try:
        data = read_start(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"the settings {path} cannot be read: {error.strerror or error}", fix) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"the settings {path} have more than {MAX_BYTES} bytes", fix)
    try:
        sections = toml(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the settings {path} are not TOML: {error}", fix) from error
    settings: dict[str, Values] = {}
    for name, section in sections.items():
        found = command(name)
        if found is None or not isinstance(section, dict):
            raise UsageError(f"{path} has {name!r}, expected sections named as commands, such as [run]", fix)
        known = {
            text: parameter
            for parameter in found.params
            if isinstance(parameter, click.Option)
            for text in parameter.opts
        }
        settings[name] = {}
        for option, given in section.items():
            parameter = known.get(f"--{option}")
            if parameter is None or parameter.name is None:
                raise UsageError(f"{path} sets {option!r} in [{name}], which is no option of {name}", fix)
            if isinstance(given, list):
                given = ",".join(map(str, given))
            if isinstance(given, dict) or (parameter.is_flag and not isinstance(given, bool)):
                expected = "true or false" if parameter.is_flag else "a value"
                raise UsageError(f"{path} sets {option} in [{name}] to {given!r}, expected {expected}", fix)
            settings[name][parameter.name] = given
    return settings
