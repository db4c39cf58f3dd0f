"""``mrsep-deploy cache``: built engines, run plans, and everything else that can be made again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from mrsep_deploy.engines.cache import Pruned
    from mrsep_deploy.engines.side_car import Entry

OTHERS = {
    "bundles": ("unpacked or converted bundle", "unpacked or converted bundles"),
    "ort-trt": ("engine cache of ONNX Runtime", "engine caches of ONNX Runtime"),
    "torch": ("cache of PyTorch", "caches of PyTorch"),
    "downloads": ("fetched model's checkpoints", "fetched models' checkpoints"),
}
"""Folders in the cache beside ``engines`` and ``plans``, and what one and several entries in them are called."""
PLANS = ("run plan", "run plans")


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
    """List and delete built engines and all else in the cache.

    All of it can be made again, so all of it may be deleted at any time.
    """


@cache.command("list", epilog="\b\nExample:\n  mrsep-deploy cache list --json")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON, with every part of the keys.")
def list_entries(as_json: bool) -> None:
    """List built engines and run plans by the time of their last use, and what else the cache holds."""
    from mrsep_deploy.engines.cache import EngineCache
    from mrsep_deploy.files.strict_json import plain
    from mrsep_deploy.runtime.plan import plans_dir, stored_plans
    from mrsep_deploy.terminal.progress import print_result
    from mrsep_deploy.terminal.tables import file_size

    engines, plans = EngineCache().entries(), stored_plans()
    entries = sorted([*engines, *plans], key=lambda entry: (entry.used, entry.name))

    def show(screen: Console) -> None:
        def line(count: str, sizes: Iterable[int], folder: Path) -> None:
            screen.print(f"{count}, {file_size(sum(sizes))}, in {folder}", soft_wrap=True)

        if entries:
            screen.print(_table(entries))
            screen.print()
        if plans:
            line(_count(len(plans), PLANS), (plan.bytes for plan in plans), plans_dir())
        for kind, names in OTHERS.items():
            folder, found = _others(kind)
            if found:
                line(_count(len(found), names), map(_bytes, found), folder)
        line(f"{len(engines)} engines", (engine.bytes for engine in engines), EngineCache().folder)

    print_result(
        as_json,
        lambda: [{**plain(each), "used": each.used.isoformat(timespec="seconds")} for each in entries],
        show,
    )


@cache.command("prune", epilog="\b\nExample:\n  mrsep-deploy cache prune --older-than 30")
@click.option(
    "--older-than",
    "days",
    metavar="DAYS",
    type=click.FloatRange(min=0),
    help="Also engines and run plans that were not used for so long.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Everything: engines, run plans, unpacked and converted bundles, caches of ONNX Runtime and PyTorch, "
    "checkpoints that were fetched.",
)
def prune(days: float | None, everything: bool) -> None:
    """Delete damaged engines and run plans, and what interrupted builds left.

    What another process is building stays.
    """
    from mrsep_deploy.engines.cache import EngineCache
    from mrsep_deploy.runtime.plan import prune_plans
    from mrsep_deploy.terminal.tables import file_size

    age = None if days is None else timedelta(days=days)
    done = EngineCache().prune(older_than=age, everything=everything)
    counted = [f"{done.removed} engines"]
    plans, freed = prune_plans(age, everything)
    if plans:
        counted.append(_count(plans, PLANS))
    done.bytes += freed
    for kind, names in OTHERS.items() if everything else ():
        others = _delete_others(kind)
        if others.removed:
            counted.append(_count(others.removed, names))
        done.bytes += others.bytes
        done.busy += others.busy
    being = f"; {done.busy} are being built and stay" if done.busy else ""
    click.echo(f"deleted {', '.join(counted)}, {file_size(done.bytes)}{being}")


def _count(number: int, names: tuple[str, str]) -> str:
    return f"{number} {names[number != 1]}"


def _others(kind: str) -> tuple[Path, list[Path]]:
    """A folder of the cache, and what lies in it but locks."""
    from mrsep_deploy.files import paths

    folder = paths.cache_dir(kind)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return folder, [path for path in found if path.suffix != ".lock"]


def _bytes(path: Path) -> int:
    files = [path] if not path.is_dir() else path.rglob("*")
    return sum(each.stat().st_size for each in files if each.is_file() and not each.is_symlink())


def _delete_others(kind: str) -> Pruned:
    """Delete what lies in a folder of the cache."""
    import shutil

    from mrsep_deploy.engines.cache import Pruned, alone
    from mrsep_deploy.files.parts import explained

    folder, found = _others(kind)
    done = Pruned()
    for path in found:
        with explained(path), alone(folder / f"{path.name}.lock") as is_alone:
            if not is_alone:
                done.busy += 1
                continue
            done.bytes += _bytes(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            done.removed += 1
    return done


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
