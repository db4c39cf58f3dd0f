"""``mrsep-deploy export``: a checkpoint to a bundle."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrsep_deploy.commands import options
from mrsep_deploy.commands.arguments import constructor_arguments, one_of
from mrsep_deploy.commands.options import argument, flag, option, takes
from mrsep_deploy.commands.output_files import given_files, refuse_inputs
from mrsep_deploy.export.families import rewrites, variants

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.bundle.manifest import Layout
    from mrsep_deploy.export.load import LoadedModel
    from mrsep_deploy.inspection.inspect import Inspection
    from mrsep_deploy.precision.costs import GraphCost
    from mrsep_deploy.precision.names import AskedPrecision


@dataclass(frozen=True)
class ExportOptions:
    checkpoint: Path | None = argument(required=False, type=options.PATH)
    config: Path | None = option(
        "Configuration of a CHECKPOINT that is a bare state dict.  [default: the .yaml beside it of its name]",
        type=options.PATH,
        metavar="FILE",
    )
    name: str | None = option("Name of the model.  [default: the file's name]", "-n")
    output: Path | None = options.folder(
        "Folder of the bundle.  [default: one that is found by the name]", "-o"
    )
    layout: Layout = options.layout()
    precision: AskedPrecision = options.precision(
        help="Of the bundle's graphs. run and build convert float32 ones when asked to.", default="fp32"
    )
    plan: Path | None = options.plan()
    archive: Path | None = option(
        "Write the bundle as one file, too.", "--zip", type=options.PATH, metavar="FILE"
    )
    overwrite: bool = flag("Replace a bundle that is already there.")
    untrained: str | None = one_of(
        variants, "Instead of CHECKPOINT: random weights. One of NAMES.", metavar="FAMILY"
    )
    seed: int | None = option(
        "For --untrained.  [default: 0]", type=click.IntRange(0, 2**32 - 1), metavar="N"
    )
    arguments: dict[str, object] = constructor_arguments(
        "A constructor argument, for --untrained or in place of the configuration's.", "--set"
    )
    without: tuple[str, ...] = one_of(
        rewrites,
        "Leave out an exact rewrite of the graphs: NAMES.",
        "--no-rewrite",
        multiple=True,
        metavar="NAME",
    )
    licence: str | None = option(
        "Licence of the weights, as their author states it: an SPDX identifier, such as MIT, or words.  "
        "[default: what is known of published checkpoints, else not stated]",
        *("--licence", "--license"),
        metavar="TEXT",
    )
    source: str | None = option("Where that is stated: an address or a file.", metavar="TEXT")
    commercial: bool = flag("It allows commercial use. Known for SPDX identifiers.")
    segment: float | None = option(
        "Seconds of a segment, for HDemucs and Demucs.  [default: the model's own, or the bag's]",
        type=click.FloatRange(0.1, 600),
        metavar="SECONDS",
    )
    quiet: bool = options.quiet()
    as_json: bool = flag("Print the result as JSON.", "--json")


@click.command(
    "export",
    epilog="""\b
Examples:
  mrsep-deploy export 955717e8-8726e21a.th --name htdemucs
  mrsep-deploy export model.th -o bundles/model --zip model.zip
  mrsep-deploy export bs_roformer.ckpt --config bs_roformer.yaml --set zero_dc=false
  mrsep-deploy export --untrained htdemucs_n --seed 1 --set nfft_list=2048,4096
""",
)
@takes(ExportOptions)
def export(asked: ExportOptions) -> None:
    """Turn a trained checkpoint into a bundle.

    Reads .th and .safetensors files of the Demucs family, .yaml bags of one model, and .ckpt files of BS-RoFormer
    and Mel-Band RoFormer with their configuration, without running any code in them. Every graph is compared
    with PyTorch before anything is written. The model exported last is the one that run takes if none is named
    and none was chosen with models use. Needs the extra mrsep-deploy[export].
    """
    if (asked.checkpoint is None) == (asked.untrained is None):
        raise click.UsageError("Give a CHECKPOINT, or --untrained FAMILY.")
    if asked.untrained is not None and asked.segment is not None:
        raise click.UsageError("--segment is for a CHECKPOINT; give --set segment=SECONDS.")
    if asked.untrained is None and asked.seed is not None:
        raise click.UsageError("--seed needs --untrained FAMILY; a checkpoint has its own weights.")
    if asked.licence is None and (asked.source is not None or asked.commercial):
        raise click.UsageError("--source and --commercial need --licence TEXT.")
    if asked.untrained is not None and asked.config is not None:
        raise click.UsageError("--config needs a CHECKPOINT; --untrained FAMILY takes --set KEY=VALUE.")
    from mrsep_deploy.bundle import check_archive_place, write_archive
    from mrsep_deploy.bundle.licence import stated
    from mrsep_deploy.export import api
    from mrsep_deploy.files.strict_json import plain
    from mrsep_deploy.inspection.inspect import inspect_bundle
    from mrsep_deploy.inspection.report import to_plain
    from mrsep_deploy.precision.costs import read_costs
    from mrsep_deploy.terminal.progress import print_result, step_progress

    started = time.perf_counter()
    if asked.archive is not None:
        check_archive_place(asked.archive, overwrite=asked.overwrite)
        refuse_inputs("--zip", asked.archive, given_files(asked.checkpoint, asked.config, asked.plan))
    with step_progress(asked.quiet) as progress:
        names = "name layout precision plan without segment overwrite"
        how: dict[str, Any] = {name: getattr(asked, name) for name in names.split()}
        if asked.licence is not None:
            how["licence"] = stated(asked.licence, asked.source or "", asked.commercial or None)
        source: Path | LoadedModel | None = asked.checkpoint
        if asked.untrained is not None:
            api.require_extra("making a model")
            from mrsep_deploy.export.load import untrained_model

            source = untrained_model(asked.untrained, asked.seed or 0, **asked.arguments)
        else:
            how |= {"config": asked.config, "arguments": asked.arguments}
        assert source is not None
        bundle = api.export(source, asked.output, progress=progress, **how)
        archive = asked.archive and write_archive(bundle, asked.archive, asked.overwrite)
    costs = read_costs(bundle.manifest)
    found, seconds = inspect_bundle(bundle), time.perf_counter() - started
    more = {"costs": plain(costs), "archive": archive and str(archive), "seconds": seconds}
    print_result(
        asked.as_json,
        lambda: {**to_plain(found), **more},
        lambda screen: _print(screen, found, costs, archive, seconds),
        asked.quiet,
    )


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
