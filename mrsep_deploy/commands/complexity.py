"""``mrsep-deploy complexity``: parameters, multiply-accumulates and activations; the paper's tables."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mrsep_deploy.commands import completing
from mrsep_deploy.commands.arguments import LateChoice, ListingOption, parse_arguments
from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.families import family_of, variants


def _parse_sizes(_ctx: click.Context, _option: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() for size in sizes):
        raise click.BadParameter(f"{text!r} is no list of window lengths, such as 2048,4096,8192")
    return [int(size) for size in sizes]


@click.command(
    "complexity",
    epilog="""\b
Examples:
  mrsep-deploy complexity 955717e8-8726e21a.th
  mrsep-deploy complexity --family htdemucs_n --nfft 2048,4096,8192 --channels 24
  mrsep-deploy complexity --paper --times times.json --sdr sdr.json
  mrsep-deploy complexity --paper --measure --times times.json
""",
)
@click.argument("model", metavar="[CKPT|BUNDLE|NAME]", required=False, shell_complete=completing.models)
@click.option("--family", type=LateChoice(variants), metavar="FAMILY", cls=ListingOption,
              help="Instead of a model: a configuration. One of NAMES.")  # fmt: skip
@click.option("--nfft", metavar="N,...", callback=_parse_sizes,
              help="For --family: window lengths in samples.  [default: the family's]")  # fmt: skip
@click.option("--channels", type=click.IntRange(min=1),
              help="For --family: channels of the first layer.  [default: the family's]")  # fmt: skip
@click.option("--set", "arguments", metavar="KEY=VALUE", multiple=True, callback=parse_arguments,
              help="For --family: a constructor argument.")  # fmt: skip
@click.option("--paper", is_flag=True, help="Instead: the paper's tables.")
@click.option("--times", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="For --paper: times measured before; with --measure, where they are kept.")  # fmt: skip
@click.option("--sdr", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="For --paper: SDR in dB by model, as JSON.")  # fmt: skip
@click.option("--measure", is_flag=True,
              help="For --paper: measure the times here, PyTorch eager and ONNX Runtime, random weights. Takes "
              "minutes a model; models in --times FILE are not measured again.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, numbers unrounded.")
def complexity(
    model: str | None,
    family: str | None,
    nfft: list[int] | None,
    channels: int | None,
    arguments: dict[str, object],
    paper: bool,
    times: Path | None,
    sdr: Path | None,
    measure: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Count parameters, multiply-accumulates and activations.

    Of a bundle, a checkpoint, or a configuration; for each stage, the whole, and a second of audio. MACs are those
    of the model as published, as inspect gives them; a bundle's graphs, rewritten, have a column of their own.
    Without an argument: the model that run takes. Softmax attention counts in full; torch's own counter does
    not look inside its fused kernels on a CPU and shows 109.6 GMAC for the published HTDemucs, not 171.3. Needs
    the extra mrsep-deploy[export].

    --paper prints four tables. 1: HTDemucs, _n, _nf and _nn with the published defaults. 2: HTDemucs_n with
    2 (2048, 4096), 3 (2048 to 8192), 4 (1024 to 8192) and 5 (1024 to 16384) resolutions; the published defaults
    are powers of two around 4096, where the shared bottleneck works, and the even numbers keep that. 3: HTDemucs_n
    with 16, 24, 32 and 48 channels. 4: the five branches of _nf fused by weights, by a convolution, by a U-Net.
    """
    if (model is not None) + (family is not None) + paper > 1:
        raise click.UsageError("Give a model, --family FAMILY, or --paper, only one of them.")
    if family is None and (nfft or channels or arguments):
        raise click.UsageError("--nfft, --channels and --set need --family FAMILY.")
    if not paper and (times or sdr or measure):
        raise click.UsageError("--times, --sdr and --measure need --paper.")
    if paper:
        _paper(times, sdr, measure, quiet, as_json)
    else:
        _model(model, family, _constructor(family, nfft, channels, arguments), as_json)


def _constructor(
    family: str | None, nfft: list[int] | None, channels: int | None, arguments: dict[str, object]
) -> dict[str, object]:
    """The constructor's arguments; a family says how its window lengths are given."""
    given: dict[str, object] = {}
    if nfft is not None and family is not None:
        try:
            given = family_of(family).windows(family, nfft)
        except UsageError as error:
            raise click.UsageError(error.message) from error
    if channels is not None:
        given["channels"] = channels
    twice = sorted(given.keys() & arguments.keys())
    if twice:
        raise click.UsageError(f"{twice[0]} is given twice, by --set and by an option of its own.")
    return {**given, **arguments}


def _model(model: str | None, family: str | None, arguments: dict[str, object], as_json: bool) -> None:
    from mrsep_deploy.inspection.complexity import complexity as count_model
    from mrsep_deploy.inspection.complexity import configuration_cost
    from mrsep_deploy.inspection.complexity_report import print_cost
    from mrsep_deploy.inspection.costs import to_plain
    from mrsep_deploy.terminal.progress import console

    cost = count_model(model) if family is None else configuration_cost(family, arguments)
    if as_json:
        click.echo(json.dumps(to_plain(cost), indent=2))
    else:
        print_cost(console(), cost)


def _check_times(times: Path | None, sdr: Path | None) -> None:
    """Refuse, before anything is measured, a place for the times that cannot be written or holds something else."""
    from mrsep_deploy.commands import output_files as kinds

    files = kinds.wanted(("--times", times, kinds.TIMES))
    kinds.check_output_files(files, [sdr] if sdr is not None else [], overwrite=None)


def _paper(times: Path | None, sdr: Path | None, measure: bool, quiet: bool, as_json: bool) -> None:
    from mrsep_deploy.inspection.paper import filled_tables, paper_models, read_sdr, read_times
    from mrsep_deploy.inspection.paper_report import paper_to_plain, print_paper
    from mrsep_deploy.terminal.progress import console, step_progress

    ratios = read_sdr(sdr) if sdr is not None else {}
    if measure:
        from mrsep_deploy.export.api import require_extra

        require_extra("measuring models")
        _check_times(times, sdr)
        from mrsep_deploy.inspection.paper_times import measure as measure_models

        with step_progress(quiet or as_json) as progress:
            seconds = measure_models(paper_models(), times, progress)
    else:
        seconds = read_times(times)[0] if times is not None else {}
    filled = filled_tables(seconds, ratios)
    if as_json:
        click.echo(json.dumps(paper_to_plain(filled), indent=2))
    else:
        print_paper(console(), filled)
