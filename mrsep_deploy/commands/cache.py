"""``mrsep-deploy cache``: the built engines."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mrsep_deploy.engines.cache import Entry


@click.group(
    "cache",
    epilog="""\b
Examples:
  mrsep-deploy cache list
  mrsep-deploy cache prune --older-than 30
  mrsep-deploy cache prune --all
""",
)
def cache() -> None:
    """List and delete built engines.

    All of them can be built again, so all of them may be deleted at any time.
    """


@cache.command("list", epilog="\b\nExample:\n  mrsep-deploy cache list --json")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON, with every part of the keys.")
def list_entries(as_json: bool) -> None:
    """List built engines by the time of their last use."""
    from mrsep_deploy.engines.cache import EngineCache
    from mrsep_deploy.terminal.progress import console
    from mrsep_deploy.terminal.tables import file_size

    engines = EngineCache()
    entries = engines.entries()
    if as_json:
        click.echo(json.dumps([_plain(entry) for entry in entries], indent=2))
        return
    screen = console()
    if entries:
        screen.print(_table(entries))
        screen.print()
    size = file_size(sum(entry.bytes for entry in entries))
    screen.print(f"{len(entries)} engines, {size}, in {engines.folder}", soft_wrap=True)


@cache.command("prune", epilog="\b\nExample:\n  mrsep-deploy cache prune --older-than 30")
@click.option(
    "--older-than",
    "days",
    metavar="DAYS",
    type=click.FloatRange(min=0),
    help="Also what was not used for so long.",
)
@click.option("--all", "everything", is_flag=True, help="Everything.")
def prune(days: float | None, everything: bool) -> None:
    """Delete damaged engines and what interrupted builds left.

    Engines that another process is building stay.
    """
    from mrsep_deploy.engines.cache import EngineCache
    from mrsep_deploy.terminal.tables import file_size

    age = None if days is None else timedelta(days=days)
    done = EngineCache().prune(older_than=age, everything=everything)
    busy = f"; {done.busy} are being built and stay" if done.busy else ""
    click.echo(f"deleted {done.removed} engines, {file_size(done.bytes)}{busy}")


def _table(entries: list[Entry]) -> Table:
    from mrsep_deploy.terminal.tables import file_size, table

    columns = ("key", "model", "stage", "engine", "for", "precision", "batch", "size", "last used", "problem")
    made = table(*columns, right=("batch", "size"))
    for entry in entries:
        key = entry.key
        about = [str(entry.details.get(name, "")) for name in ("model", "stage")]
        row = ["", "", "", ""]
        if key is not None:
            row = [f"{key.engine} {key.library}", key.target, key.precision, str(key.batch)]
        used = f"{entry.used.astimezone():%Y-%m-%d %H:%M}"
        made.add_row(entry.name[:12], *about, *row, file_size(entry.bytes), used, entry.problem)
    return made


def _plain(entry: Entry) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(entry), "used": entry.used.isoformat(timespec="seconds")}
