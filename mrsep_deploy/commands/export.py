"""``mrsep-deploy export``: a checkpoint to a bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing
from mrsep_deploy.commands.arguments import LateChoice, ListingOption, parse_arguments
from mrsep_deploy.commands.html_option import given_files
from mrsep_deploy.commands.precision_options import plan_for_mixed
from mrsep_deploy.export.families import rewrites, variants
from mrsep_deploy.precision.names import ASKED

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.bundle.manifest import Layout
    from mrsep_deploy.export.load import LoadedModel
    from mrsep_deploy.inspection.inspect import Inspection
    from mrsep_deploy.precision.costs import GraphCost
    from mrsep_deploy.precision.names import AskedPrecision


@click.command(
    "export",
    epilog="""\b
Examples:
  mrsep-deploy export 955717e8-8726e21a.th --name htdemucs
  mrsep-deploy export model.th -o bundles/model --zip model.zip
  mrsep-deploy export --untrained htdemucs_n --seed 1 --set nfft_list=2048,4096
""",
)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("-n", "--name", help="Name of the model.  [default: the file's name]")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completing.folders,
              help="Folder of the bundle.  [default: one that is found by the name]")  # fmt: skip
@click.option("--layout", type=click.Choice(["split", "whole"]), default="split", show_default=True,
              help="A graph for every stage, or one for the whole.")  # fmt: skip
@click.option("--precision", type=click.Choice(ASKED), default="fp32",
              show_default=True,
              help="Of the bundle's graphs. run and build convert float32 ones when asked to.")  # fmt: skip
@plan_for_mixed
@click.option("--zip", "archive", metavar="FILE", type=click.Path(path_type=Path),
              help="Write the bundle as one file, too.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@click.option("--untrained", metavar="FAMILY", type=LateChoice(variants), cls=ListingOption,
              help="Instead of CHECKPOINT: random weights. One of NAMES.")  # fmt: skip
@click.option("--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), help="For --untrained.  [default: 0]")
@click.option("--set", "arguments", metavar="KEY=VALUE", multiple=True, callback=parse_arguments,
              help="For --untrained: a constructor argument.")  # fmt: skip
@click.option("--no-rewrite", "without", metavar="NAME", multiple=True, type=LateChoice(rewrites),
              cls=ListingOption, help="Leave out an exact rewrite of the graphs: NAMES.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(
    checkpoint: Path | None,
    name: str | None,
    output: Path | None,
    layout: Layout,
    precision: AskedPrecision,
    plan: Path | None,
    archive: Path | None,
    overwrite: bool,
    untrained: str | None,
    seed: int | None,
    arguments: dict[str, object],
    without: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn a trained checkpoint into a bundle.

    Reads .th and .safetensors files of the Demucs family, and .yaml bags of one model, without running any
    code in them. Every graph is compared with PyTorch before anything is written. The model exported last is
    the one that run takes if none is named and none was chosen with models use. Needs the extra
    mrsep-deploy[export].
    """
    if (checkpoint is None) == (untrained is None):
        raise click.UsageError("Give a CHECKPOINT, or --untrained FAMILY.")
    if untrained is None and (arguments or seed is not None):
        raise click.UsageError(
            "--set and --seed need --untrained FAMILY; a checkpoint has its own arguments."
        )
    from mrsep_deploy.bundle import check_archive_place, write_archive
    from mrsep_deploy.commands.output_files import refuse_inputs
    from mrsep_deploy.export.api import export as export_checkpoint
    from mrsep_deploy.inspection.inspect import inspect_bundle
    from mrsep_deploy.precision.costs import read_costs
    from mrsep_deploy.terminal.progress import console, step_progress

    started = time.perf_counter()
    if archive is not None:
        check_archive_place(archive, overwrite=overwrite)
        refuse_inputs("--zip", archive, given_files(checkpoint, plan))
    with step_progress(quiet) as progress:
        bundle = export_checkpoint(
            checkpoint or _untrained(str(untrained), seed or 0, arguments), output, name=name, layout=layout,
            precision=precision, plan=plan, without=without, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
        archive = archive and write_archive(bundle, archive, overwrite)
    costs = read_costs(bundle.manifest)
    found, seconds = inspect_bundle(bundle), time.perf_counter() - started
    if as_json:
        click.echo(_json(found, costs, archive, seconds))
    elif not quiet:
        _print(console(), found, costs, archive, seconds)


def _untrained(family: str, seed: int, arguments: dict[str, object]) -> LoadedModel:
    from mrsep_deploy.export.api import require_extra

    require_extra("making a model")
    from mrsep_deploy.export.load import untrained_model

    return untrained_model(family, seed, **arguments)


def _json(found: Inspection, costs: Mapping[str, GraphCost], archive: Path | None, seconds: float) -> str:
    from mrsep_deploy.inspection.report import to_plain
    from mrsep_deploy.precision.costs import costs_to_json

    result = {
        **to_plain(found),
        "costs": costs_to_json(costs),
        "archive": archive and str(archive),
        "seconds": seconds,
    }
    return json.dumps(result, indent=2)


def _print(
    screen: Console, found: Inspection, costs: Mapping[str, GraphCost], archive: Path | None, seconds: float
) -> None:
    from mrsep_deploy.bundle.registry import default_model
    from mrsep_deploy.inspection.report import stage_table, untrained_note
    from mrsep_deploy.precision.costs import print_costs
    from mrsep_deploy.terminal.tables import print_table

    default = default_model()
    print_table(screen, stage_table(found))
    print_costs(screen, costs, found.precision)
    if not found.model.trained:
        screen.print(f"This model is {untrained_note(found)}.", style="yellow")
    screen.print(f"\n{found.name} exported in {seconds:.1f} s to", soft_wrap=True)
    for place in (found.path, archive):
        if place is not None:
            screen.print(f"  {place}", soft_wrap=True)
    screen.print(f"Try it: mrsep-deploy run -n {found.name} SONG", soft_wrap=True)
    screen.print(f"Without -n run takes {default.name} ({default.why}).", soft_wrap=True)
