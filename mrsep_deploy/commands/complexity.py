"""``mrsep-deploy complexity``: parameters, multiply-accumulates and activations; the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from mrsep_deploy.commands import completing
from mrsep_deploy.commands.arguments import constructor_arguments, one_of
from mrsep_deploy.commands.options import CommaList, argument, flag, option, report_file, takes
from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.families import family_of, variants

_SIZES = CommaList(
    "N,...",
    lambda size: int(size) if size.isdecimal() else None,
    "{text!r} is no list of window lengths, such as 2048,4096,8192",
)


@dataclass(frozen=True)
class ComplexityOptions:
    model: str | None = argument("[CKPT|BUNDLE|NAME]", required=False, shell_complete=completing.models)
    family: str | None = one_of(
        variants, "Instead of a model: a configuration. One of NAMES.", metavar="FAMILY"
    )
    nfft: tuple[int, ...] | None = option(
        "For --family: window lengths in samples.  [default: the family's]", type=_SIZES
    )
    channels: int | None = option(
        "For --family: channels of the first layer.  [default: the family's]", type=click.IntRange(min=1)
    )
    arguments: dict[str, object] = constructor_arguments("For --family: a constructor argument.", "--set")
    paper: bool = flag("Instead: the paper's tables.")
    times: Path | None = report_file(
        "For --paper: times measured before; with --measure, where they are kept."
    )
    sdr: Path | None = report_file("For --paper: SDR in dB by model, as JSON.")
    measure: bool = flag(
        "For --paper: measure the times here, PyTorch eager and ONNX Runtime, random weights. Takes minutes "
        "a model; models in --times FILE are not measured again."
    )
    quiet: bool = flag("No progress.", "-q")
    as_json: bool = flag("Print everything as JSON, numbers unrounded.", "--json")


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
@takes(ComplexityOptions)
def complexity(asked: ComplexityOptions) -> None:
    """Count parameters, multiply-accumulates and activations.

    Of a bundle, a checkpoint, or a configuration; for each stage, the whole, and a second of audio. MACs are those
    of the model as published, as inspect gives them; a bundle's graphs, rewritten, have a column of their own.
    Without an argument: the model that run takes. Softmax attention counts in full; torch's own counter does
    not look inside its fused kernels on a CPU and shows 109.6 GMAC for the published HTDemucs, not 171.3. Needs
    the extra mrsep-deploy[export].

    --paper prints four tables. 1: HTDemucs, _n, _nf and _nn with the published defaults,
    HDemucs, and BS-RoFormer of 12 layers of 512 for one source. 2: HTDemucs_n with
    2 (2048, 4096), 3 (2048 to 8192), 4 (1024 to 8192) and 5 (1024 to 16384) resolutions; the published defaults
    are powers of two around 4096, where the shared bottleneck works, and the even numbers keep that. 3: HTDemucs_n
    with 16, 24, 32 and 48 channels. 4: the five branches of _nf fused by weights, by a convolution, by a U-Net.
    """
    if (asked.model is not None) + (asked.family is not None) + asked.paper > 1:
        raise click.UsageError("Give a model, --family FAMILY, or --paper, only one of them.")
    if asked.family is None and (asked.nfft or asked.channels or asked.arguments):
        raise click.UsageError("--nfft, --channels and --set need --family FAMILY.")
    if not asked.paper and (asked.times or asked.sdr or asked.measure):
        raise click.UsageError("--times, --sdr and --measure need --paper.")
    if asked.paper:
        _paper(asked)
    else:
        _model(asked)


def _model(asked: ComplexityOptions) -> None:
    arguments = _constructor(asked)
    from mrsep_deploy.inspection.complexity import complexity as count_model
    from mrsep_deploy.inspection.complexity import configuration_cost, print_cost, to_plain
    from mrsep_deploy.terminal.progress import print_result

    family = asked.family
    cost = count_model(asked.model) if family is None else configuration_cost(family, arguments)
    print_result(asked.as_json, lambda: to_plain(cost), lambda screen: print_cost(screen, cost))


def _constructor(asked: ComplexityOptions) -> dict[str, object]:
    """The constructor's arguments; a family says how its window lengths are given."""
    given: dict[str, object] = {}
    if asked.nfft is not None and asked.family is not None:
        try:
            given = family_of(asked.family).windows(asked.family, asked.nfft)
        except UsageError as error:
            raise click.UsageError(error.message) from error
    if asked.channels is not None:
        given["channels"] = asked.channels
    twice = sorted(given.keys() & asked.arguments.keys())
    if twice:
        raise click.UsageError(f"{twice[0]} is given twice, by --set and by an option of its own.")
    return {**given, **asked.arguments}


def _paper(asked: ComplexityOptions) -> None:
    from mrsep_deploy.inspection.paper import filled_tables, paper_models, print_paper, read_sdr, read_times
    from mrsep_deploy.terminal.progress import print_result, step_progress

    ratios = read_sdr(asked.sdr) if asked.sdr is not None else {}
    seconds: Mapping[str, Mapping[str, float]] = {}
    if asked.measure:
        from mrsep_deploy.commands.output_files import TIMES, check_output_files
        from mrsep_deploy.export.api import require_extra

        require_extra("measuring models")
        check_output_files([("--times", asked.times, TIMES)], [asked.sdr], overwrite=None)
        from mrsep_deploy.inspection.paper import measure

        with step_progress(asked.quiet or asked.as_json) as progress:
            seconds = measure(paper_models(), asked.times, progress)
    elif asked.times is not None:
        seconds = read_times(asked.times)[0]
    filled = filled_tables(seconds, ratios)
    print_result(asked.as_json, lambda: filled, lambda screen: print_paper(screen, filled))
