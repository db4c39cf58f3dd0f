"""``mrsep-deploy models``: the exported models by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing
from mrsep_deploy.commands.inspect import show
from mrsep_deploy.errors import FAILED, PARTIAL, MrsepError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mrsep_deploy.bundle.manifest import Manifest
    from mrsep_deploy.bundle.registry import RegisteredModel
    from mrsep_deploy.bundle.registry_file import Default


@click.group(
    "models",
    invoke_without_command=True,
    epilog="""\b
Examples:
  mrsep-deploy models
  mrsep-deploy models show htdemucs
  mrsep-deploy models use htdemucs
  mrsep-deploy models remove htdemucs htdemucs_n
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List, show, choose and remove exported models.

    Without a command: list them. The one with a * is the default, which is taken where no model is named: the one
    exported last, unless another was chosen.
    """
    if ctx.invoked_subcommand is None:
        _list(as_json)


@models.command("show", epilog="\b\nExample:\n  mrsep-deploy models show htdemucs")
@click.argument("name", shell_complete=completing.models)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, numbers unrounded.")
def show_model(name: str, as_json: bool) -> None:
    """Show what a model is made of, as inspect does."""
    show(name, as_json)


@models.command(
    "use", epilog="\b\nExamples:\n  mrsep-deploy models use htdemucs\n  mrsep-deploy models use --last"
)
@click.argument("name", required=False, shell_complete=completing.names)
@click.option("--last", is_flag=True, help="The one exported last, as before anything was chosen.")
def use(name: str | None, last: bool) -> None:
    """Choose the model that is taken where none is named.

    Exports do not change it then.
    """
    if (name is not None) == last:
        raise click.UsageError("Give the NAME of a model, or --last.")
    from mrsep_deploy.bundle import registry

    registry.use(name)
    if name is None:
        click.echo(f"the default is {_default()}")
    else:
        click.echo(f"the default is {name}: run takes it where no model is named, whatever is exported later")


@models.command("remove", epilog="\b\nExample:\n  mrsep-deploy models remove htdemucs htdemucs_n")
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=completing.removable_names
)
def remove(names: tuple[str, ...]) -> None:
    """Forget models by name. A default that was chosen is chosen no longer.

    Deletes bundles that export put among this program's own; a bundle that was given another place stays
    there.
    """
    from mrsep_deploy.bundle import registry

    failed = 0
    for name in names:
        try:
            known = {model.name: model for model in registry.list_models()}
            before = registry.default_model()
            registry.remove(name)
        except MrsepError as error:
            if len(names) == 1:
                raise
            click.echo(f"mrsep-deploy: error: {error}", err=True)
            failed += 1
            continue
        path = known[name].path
        click.echo(f"deleted {path}" if known[name].managed else f"forgot {name}; {path} stays as it is")
        if (before.name, before.reason) == (name, "chosen"):
            click.echo(f"{name} was the default; now it is {_default()}")
    if failed:
        raise SystemExit(FAILED if failed == len(names) else PARTIAL)


def _default() -> str:
    from mrsep_deploy.bundle.registry import default_model

    found = default_model()
    return f"{found.name} ({found.why})"


def _list(as_json: bool) -> None:
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import default_model, list_models
    from mrsep_deploy.terminal.progress import WIDE, print_result

    default = default_model()
    found = [
        (model, Bundle.open(model.path, verify=False).manifest if model.status == "ok" else None)
        for model in list_models()
    ]

    def show(screen: Console) -> None:
        width = screen.measure(_table(found), options=screen.options.update(width=WIDE)).maximum
        screen.print(_table(found, detailed=width <= screen.width))
        screen.print(f"* taken where no model is named: {default.why}")

    print_result(as_json, lambda: [_plain(model, manifest, default) for model, manifest in found], show)


def _table(found: list[tuple[RegisteredModel, Manifest | None]], detailed: bool = True) -> Table:
    """The list; on a narrow terminal without the columns that ``models show`` has, too."""
    from mrsep_deploy.terminal.tables import file_size, table

    details = ("segment", "layout") if detailed else ()
    columns = ("", "name", "family", "sources", *details, "size", "exported", "licence", "status")
    made = table(*columns, right=("segment", "size"))
    for column in made.columns:
        column.no_wrap = str(column.header) not in ("name", "sources", "licence")
    for model, manifest in found:
        row = [""] * (3 + len(details))
        status = model.status if manifest is None or manifest.model.trained else "untrained"
        if manifest is not None:
            info = manifest.model
            more = (f"{float(info.segment):g} s", manifest.layout) if detailed else ()
            row = [info.family, ", ".join(info.sources), *more, file_size(_size(manifest))]
        made.add_row(
            *("*" if model.is_default else "", model.name, *row, model.exported[:10] or "shipped"),
            *("" if manifest is None else manifest.licence.brief, status),
        )
    return made


def _size(manifest: Manifest) -> int:
    return sum(info.bytes for info in manifest.files.values())


def _plain(model: RegisteredModel, manifest: Manifest | None, default: Default) -> dict[str, object]:
    plain: dict[str, object] = {
        "name": model.name,
        "path": str(model.path),
        "digest": model.digest,
        "exported": model.exported,
        "default": model.is_default,
        "default_reason": default.reason if model.is_default else None,
        "managed": model.managed,
        "shipped": model.shipped,
        "status": model.status,
    }
    if manifest is not None:
        plain |= {
            "family": manifest.model.family,
            "sources": manifest.model.sources,
            "segment_seconds": float(manifest.model.segment),
            "layout": manifest.layout,
            "batch": manifest.batch,
            "trained": manifest.model.trained,
            "licence": asdict(manifest.licence),
            "bytes": _size(manifest),
        }
    return plain
