"""``mrsep-deploy fetch``: a published model by its name."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing, options
from mrsep_deploy.commands.options import argument, flag, option, takes

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.bundle.manifest import Layout
    from mrsep_deploy.fetching.fetch import Fetched


@dataclass(frozen=True)
class FetchOptions:
    published: str = argument("NAME", shell_complete=completing.published)
    name: str | None = option("Name that it gets here.  [default: the same]", "-n")
    mirror: str | None = option(
        "Get the files, by their names, from a mirror or from a folder.  [default: their published addresses]",
        "--from",
        metavar="URL|DIR",
        envvar="MRSEP_DEPLOY_FETCH_FROM",
        shell_complete=completing.folders,
    )
    layout: Layout = options.layout()
    overwrite: bool = flag("Make the model anew if it is there already.")
    quiet: bool = options.quiet()
    as_json: bool = flag("Print the result as JSON.", "--json")


@click.command(
    "fetch",
    epilog="""\b
Examples:
  mrsep-deploy models list --all
  mrsep-deploy fetch htdemucs
  mrsep-deploy fetch htdemucs_ft --from https://mirror.example.org/demucs
  mrsep-deploy fetch htdemucs --from /media/stick
""",
)
@takes(FetchOptions)
def fetch(asked: FetchOptions) -> None:
    """Get a published model by its name.

    Downloads its checkpoint, compares the SHA-256, and exports it; then run -n NAME takes it. A download that was cut
    goes on where it stopped. Nothing is ever fetched by another command. Needs the extras mrsep-deploy[fetch,export].
    """
    from mrsep_deploy.bundle.published import find, published
    from mrsep_deploy.fetching.fetch import fetch as fetch_model
    from mrsep_deploy.terminal.progress import byte_progress, print_result, remark, step_progress
    from mrsep_deploy.terminal.tables import file_size

    model = find(asked.published)
    licence = published().licence(model)
    remark(
        f"{asked.published}: {file_size(model.bytes)}, {licence.title} ({licence.source})", quiet=asked.quiet
    )
    found = fetch_model(
        asked.published,
        name=asked.name,
        mirror=asked.mirror,
        layout=asked.layout,
        overwrite=asked.overwrite,
        downloading=functools.partial(byte_progress, asked.quiet),
        exporting=functools.partial(step_progress, asked.quiet),
    )
    print_result(asked.as_json, lambda: _plain(found), lambda screen: _print(screen, found), asked.quiet)


def _print(screen: Console, found: Fetched) -> None:
    what = "a model" if len(found.models) == 1 else f"a bag of {len(found.models)} models"
    done = "is there already" if found.was_there else "fetched"
    screen.print(f"{found.name} {done}, {what} in", soft_wrap=True)
    screen.print(f"  {found.path}", soft_wrap=True)
    screen.print(f"Try it: mrsep-deploy run -n {found.name} SONG", soft_wrap=True)


def _plain(found: Fetched) -> dict[str, object]:
    return {
        "name": found.name,
        "path": str(found.path),
        "was_there": found.was_there,
        "licence": asdict(found.licence),
        "models": [{"name": bundle.manifest.name, "digest": bundle.digest} for bundle in found.models],
    }
