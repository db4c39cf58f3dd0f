"""``mrsep-deploy inspect``: what a bundle or a checkpoint is made of."""

from __future__ import annotations

import click

from mrsep_deploy.commands import completing


@click.command(
    "inspect",
    epilog="""\b
Examples:
  mrsep-deploy inspect
  mrsep-deploy inspect htdemucs --json
  mrsep-deploy inspect 955717e8-8726e21a.th
""",
)
@click.argument("model", metavar="[NAME|BUNDLE|CHECKPOINT]", required=False, shell_complete=completing.models)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, numbers unrounded.")
def inspect(model: str | None, as_json: bool) -> None:
    """Show what a bundle or a checkpoint is made of.

    Its sources, the resolution of every branch in time and frequency, parameters and multiply-accumulates
    of every stage (of the model as published, as complexity gives them), the learnt fusion weights and their
    entropy, and where it comes from. Without an argument: the model that run takes. A checkpoint needs the extra
    mrsep-deploy[export].
    """
    show(model, as_json)


def show(model: str | None, as_json: bool) -> None:
    """Print an inspection, for people or for programs."""
    from mrsep_deploy.inspection.inspect import inspect as inspect_model
    from mrsep_deploy.inspection.report import print_inspection, to_plain
    from mrsep_deploy.terminal.progress import print_result

    found = inspect_model(model)
    print_result(as_json, lambda: to_plain(found), lambda screen: print_inspection(screen, found))
