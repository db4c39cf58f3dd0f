"""``mrsep-deploy verify``: is what an engine computes still what the model computes?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing
from mrsep_deploy.commands.html_option import (
    command_line,
    given_files,
    html_option,
    overwrite_option,
    say_remarks,
    write_page,
)
from mrsep_deploy.commands.precision_options import least_snr
from mrsep_deploy.engines import AUTO, ENGINE_NAMES
from mrsep_deploy.errors import FAILED, UsageError
from mrsep_deploy.precision.names import ASKED

if TYPE_CHECKING:
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.precision.names import AskedPrecision
    from mrsep_deploy.verification.job import Job, Request
    from mrsep_deploy.verification.results import Verification
    from mrsep_deploy.verification.tracks import Track


@click.command(
    "verify",
    epilog="""\b
Examples:
  mrsep-deploy verify htdemucs
  mrsep-deploy verify htdemucs --precision fp16 --audio song.flac --html report.html
  mrsep-deploy verify htdemucs --precision fp16 --bisect --output plan.json
  mrsep-deploy verify htdemucs --calibrate --audio song.flac
\b
Exit codes: 0 passed, 1 failed, 2 wrong usage.
""",
)
@click.argument("model", metavar="[NAME|BUNDLE]", required=False, shell_complete=completing.models)
@click.option("--engine", type=click.Choice([AUTO, *ENGINE_NAMES]),
              help=f"What runs the bundle.  [default: {AUTO}; for lower precision ort, which rounds on the CPU "
              "after every operator, as a GPU does]")  # fmt: skip
@click.option("--precision", type=click.Choice(ASKED),
              help="Derive a bundle of this precision and verify that; mixed is as --plan says.  "
              "[default: the bundle's own]")  # fmt: skip
@click.option("--plan", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Precision plan to derive it by.  [default: the rules for this family]")  # fmt: skip
@click.option("--against", type=click.Path(path_type=Path), metavar="CKPT|BUNDLE",
              help="The reference.  [default: PyTorch in float64; with --precision or --plan the "
              "float32 bundle]")  # fmt: skip
@click.option("--audio", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Listen to this: an audio file, a .stem.mp4, a folder with mixture.wav and true stems. May be "
              "repeated.  [default: built-in signals]")  # fmt: skip
@least_snr
@click.option("--bisect", "search", is_flag=True,
              help="If it fails, find the nodes that have to be float32, and write a plan.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="PLAN",
              help="For --bisect: where the plan goes.  [default: MODEL.plan.json]")  # fmt: skip
@click.option("--calibrate", is_flag=True,
              help="Instead: measure the range of every tensor in float32, store it in the bundle, and tell "
              "what would break in fp16.")  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 for all.  [default: 0]"
)
@html_option
@overwrite_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, numbers unrounded.")
def verify(
    model: str | None,
    engine: str | None,
    precision: AskedPrecision | None,
    plan: Path | None,
    against: Path | None,
    audio: tuple[Path, ...],
    limit: float | None,
    search: bool,
    output: Path | None,
    calibrate: bool,
    threads: int,
    html_file: Path | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare what an engine computes with what the model should.

    Every stage by itself on the reference's inputs, and every stem from end to end: SNR, SI-SDR, the worst
    sample, NaN and infinities, and for audio with true stems the change in SDR. Without a model: the one that
    run takes.
    """
    if search and (calibrate or (plan is None and precision in (None, "fp32"))):
        raise click.UsageError("--bisect needs --precision fp16 or bf16, or --plan FILE, and no --calibrate.")
    if output is not None and not search:
        raise click.UsageError("--output is where --bisect writes its plan; give --bisect, too.")
    if html_file is not None and calibrate:
        raise click.UsageError("--calibrate has no report; leave out --html.")
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.commands import output_files as kinds
    from mrsep_deploy.verification.job import Request

    bundle = Bundle.open(resolve(model))
    request = Request(bundle, engine, precision, plan, against, audio, limit, threads, html_file is not None)
    if calibrate:
        _calibrate(request, quiet, as_json)
        return
    plan_file = _plan_file(bundle, output) if search else None
    files = kinds.wanted(("--output", plan_file, kinds.PLAN), ("--html", html_file, kinds.PAGE))
    kinds.check_output_files(files, given_files(model, plan, against, *audio), overwrite)
    if not _verify(request, plan_file, html_file, quiet, as_json):
        raise SystemExit(FAILED)


def _say_remarks(tracks: Sequence[Track]) -> None:
    say_remarks(remark for track in tracks for remark in track.remarks)


def _plan_file(bundle: Bundle, output: Path | None) -> Path:
    """Where the plan goes; one that is there may have been edited by hand, so only a named one is replaced."""
    if output is not None:
        return output
    path = Path(f"{bundle.manifest.name}.plan.json")
    if path.exists():
        raise UsageError(f"{path} exists, and --bisect would write its plan there", "Give --output FILE.")
    return path


def _verify(
    request: Request, plan_file: Path | None, html_file: Path | None, quiet: bool, as_json: bool
) -> bool:
    from mrsep_deploy.pages.spectrograms import spectrogram_block
    from mrsep_deploy.pages.verify_page import verify_page
    from mrsep_deploy.terminal.progress import console, step_progress
    from mrsep_deploy.verification.job import opened
    from mrsep_deploy.verification.report import about, print_verification, to_plain

    facts = about(request.bundle, command_line())
    with opened(request) as job:
        if not quiet:
            _say_remarks(job.tracks)
        with step_progress(quiet or as_json) as progress:
            found = job.verify(progress)
        passes, result = found.passes, {**to_plain(found), **facts}
        if not as_json and not quiet:
            print_verification(console(), result)
        if plan_file is not None and not found.passes:
            passes, searched = _bisect(job, found, plan_file, quiet, as_json)
            result.update(searched)
    excerpt = found.excerpt
    pictures = None if excerpt is None else spectrogram_block(excerpt)
    write_page(html_file, lambda: verify_page(result, pictures))
    if as_json:
        click.echo(json.dumps(result, indent=2))
    return passes


def _bisect(
    job: Job, found: Verification, plan_file: Path, quiet: bool, as_json: bool
) -> tuple[bool, dict[str, object]]:
    """Whether it passes with the plan that was found, and what that gives to the result."""
    from mrsep_deploy.precision.plan import write_plan
    from mrsep_deploy.terminal.progress import console, step_progress
    from mrsep_deploy.verification.report import bisection_to_plain, print_bisections, to_plain

    with step_progress(quiet or as_json) as progress:
        searches, after = job.bisect(found, progress)
    write_plan(searches[-1].plan, plan_file)
    if not as_json and not quiet:
        print_bisections(console(), searches, found.limit.decibels, to_plain(after))
        click.echo(f"plan written to {plan_file}")
    return after.passes, {
        "bisection": [bisection_to_plain(search, found.limit.decibels) for search in searches],
        "plan": str(plan_file),
        "with_plan": to_plain(after),
    }


def _calibrate(request: Request, quiet: bool, as_json: bool) -> None:
    from mrsep_deploy.precision.requested import require_onnx

    require_onnx("calibrating")
    from mrsep_deploy.precision.plan import default_plan
    from mrsep_deploy.precision.ranges import load
    from mrsep_deploy.terminal.progress import console, step_progress
    from mrsep_deploy.verification.calibration import calibrate
    from mrsep_deploy.verification.hazard_report import prediction, print_prediction
    from mrsep_deploy.verification.job import requested_plan
    from mrsep_deploy.verification.tracks import builtin_tracks, read_tracks

    bundle = request.bundle
    plan = requested_plan(request) or default_plan("float16", bundle.manifest.float32)
    tracks = [*builtin_tracks(bundle.manifest), *read_tracks(request.audio, bundle.manifest)]
    if not quiet:
        _say_remarks(tracks)
    with step_progress(quiet or as_json) as progress:
        bundle = calibrate(bundle, tracks, request.threads, progress)
    calibration = load(bundle)
    assert calibration is not None
    found = prediction(bundle, plan, calibration)
    if as_json:
        click.echo(json.dumps(found.to_plain(), indent=2))
    elif not quiet:
        print_prediction(console(), found)
        click.echo(f"ranges stored in {bundle.path}")
