"""``mrsep-deploy models``: the exported models by name."""

from __future__ import annotations

import click

from mrsep_deploy.commands import completing, models_list
from mrsep_deploy.commands.inspect import show
from mrsep_deploy.errors import FAILED, PARTIAL, MrsepError


@click.group(
    "models",
    invoke_without_command=True,
    epilog="""\b
Examples:
  mrsep-deploy models
  mrsep-deploy models list --all
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
        models_list.show(as_json, everything=False)


@models.command("list", epilog="\b\nExamples:\n  mrsep-deploy models list\n  mrsep-deploy models list --all")
@click.option("--all", "everything", is_flag=True, help="Published models, too, that fetch can get.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_all(everything: bool, as_json: bool) -> None:
    """List models: those that are here and, with --all, those that can be fetched."""
    models_list.show(as_json, everything)


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
