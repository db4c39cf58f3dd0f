"""What was measured on, as facts for a page."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

Plain = Mapping[str, Any]


def machine_facts(machine: Plain) -> Iterator[tuple[str, str]]:
    """Name and value, from what ``mrsep_deploy.measuring.surroundings.machine_info`` told."""
    yield "processor", f"{machine['cpu']}, {machine['cores']} cores"
    if machine["memory_gib"] is not None:
        yield "memory", f"{machine['memory_gib']:g} GiB"
    yield "system", str(machine["system"])
    yield "software", ", ".join([f"Python {machine['python']}", *_versions(machine["versions"])])
    if machine["commit"]:
        changed = machine["commit"].endswith("+")
        yield (
            "commit",
            machine["commit"].removesuffix("+")
            + (", with changes that were not committed" if changed else ""),
        )
    if machine["load_before"] is not None:
        yield "load before the start", f"{machine['load_before']:.2f} processes"
    yield "date", day(machine["date"])


def _versions(versions: Plain) -> list[str]:
    return [f"{name} {version}" for name, version in versions.items()]


def day(moment: str) -> str:
    """``2026-11-22T23:54:34+00:00`` as ``22 November 2026, 23:54 UTC``."""
    when = datetime.datetime.fromisoformat(moment).astimezone(datetime.timezone.utc)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def install_steps(machine: Plain) -> list[str]:
    """What has to be there before the command can be run again."""
    at = f" at commit {machine['commit'].removesuffix('+')}" if machine["commit"] else ""
    return [
        f"With mrsep-deploy {machine['versions']['mrsep-deploy']}{at}, the versions above, and the same files."
    ]
