"""``mrsep-deploy verify``: is what an engine computes still what the model computes?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing, options
from mrsep_deploy.commands.options import argument, flag, option, picked, takes
from mrsep_deploy.engines import AUTO, ENGINE_NAMES
from mrsep_deploy.errors import FAILED, UsageError
from mrsep_deploy.precision.names import ACCUMULATIONS

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.precision.names import Accumulation, AskedPrecision
    from mrsep_deploy.verification.job import Job, Request
    from mrsep_deploy.verification.results import Verification


@dataclass(frozen=True)
class VerifyOptions:
    model: str | None = argument("[NAME|BUNDLE]", required=False, shell_complete=completing.models)
    engine: str | None = option(
        f"What runs the bundle.  [default: {AUTO}; for lower precision ort, which rounds on the CPU after "
        "every operator, as a GPU does]",
        type=click.Choice([AUTO, *ENGINE_NAMES]),
    )
    precision: AskedPrecision | None = options.precision(
        help="Derive a bundle of this precision and verify that; mixed is as --plan says.  "
        "[default: the bundle's own]"
    )
    plan: Path | None = options.report_file(
        "Precision plan to derive it by.  [default: the rules for this family]"
    )
    accumulation: Accumulation = option(
        "Of products in float16, as ort emulates them: float32 is expected of GPUs, float16 the worst that their "
        "tensor cores may do.",
        default="float32",
        type=click.Choice(ACCUMULATIONS),
    )
    against: Path | None = option(
        "The reference.  [default: PyTorch in float64; with --precision or --plan the float32 bundle]",
        type=options.PATH,
        metavar="CKPT|BUNDLE",
    )
    audio: tuple[Path, ...] = option(
        "Listen to this: an audio file, a .stem.mp4, a folder with mixture.wav and true stems. May be "
        "repeated.  [default: built-in signals]",
        type=options.PATH,
        multiple=True,
        metavar="FILE",
    )
    limit: float | None = options.limit()
    gate: float | None = options.gate("off with --bisect, else what --calibrate-gate found, or 4")
    bisect: bool = flag("If it fails, find the nodes that have to be float32, and write a plan.")
    output: Path | None = option(
        "For --bisect: where the plan goes.  [default: MODEL.plan.json]", type=options.FILE, metavar="PLAN"
    )
    calibrate: bool = flag(
        "Instead: measure the range of every tensor in float32, store it in the bundle, and tell what would "
        "break in fp16."
    )
    calibrate_gate: bool = flag(
        "Instead: find the burstiness above which segments have to run in float32, on made-up segments and "
        "--audio, and store it in the bundle."
    )
    threads: int = options.threads()
    html_file: Path | None = options.html()
    overwrite: bool = options.overwrite()
    quiet: bool = options.quiet()
    as_json: bool = flag("Print everything as JSON, numbers unrounded.", "--json")


@click.command(
    "verify",
    epilog="""\b
Examples:
  mrsep-deploy verify htdemucs
  mrsep-deploy verify htdemucs --precision fp16 --audio song.flac --html report.html
  mrsep-deploy verify htdemucs --precision fp16 --accumulation float16
  mrsep-deploy verify htdemucs --precision fp16 --bisect --output plan.json
  mrsep-deploy verify htdemucs --calibrate --audio song.flac
  mrsep-deploy verify htdemucs --calibrate-gate --audio song.flac --audio other.flac
\b
Exit codes: 0 passed, 1 failed, 2 wrong usage.
""",
)
@takes(VerifyOptions)
def verify(asked: VerifyOptions) -> None:
    """Compare what an engine computes with what the model should.

    Every stage by itself on the reference's inputs, and every stem from end to end: SNR, SI-SDR, the worst
    sample, NaN and infinities, and for audio with true stems the change in SDR. A stem passes if its SNR reaches
    the limit, or if its error lies 25 dB farther than that below the mix. Without a model: the one that run takes.
    """
    instead = "--calibrate-gate" if asked.calibrate_gate else "--calibrate" if asked.calibrate else ""
    if asked.calibrate and asked.calibrate_gate:
        raise click.UsageError("--calibrate and --calibrate-gate are two things; run one after the other.")
    if asked.bisect and (instead or (asked.plan is None and asked.precision in (None, "fp32"))):
        raise click.UsageError(
            f"--bisect needs --precision fp16 or bf16, or --plan FILE, and no {instead or '--calibrate'}."
        )
    if asked.output is not None and not asked.bisect:
        raise click.UsageError("--output is where --bisect writes its plan; give --bisect, too.")
    if asked.html_file is not None and instead:
        raise click.UsageError(f"{instead} has no report; leave out --html.")
    if asked.accumulation != "float32" and instead:
        raise click.UsageError(f"{instead} takes accumulation in float32; leave out --accumulation.")
    if asked.gate is not None and instead:
        raise click.UsageError(f"{instead} measures without a gate; leave out --gate.")
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.commands import output_files as kinds
    from mrsep_deploy.verification.job import Request

    bundle = Bundle.open(resolve(asked.model))
    request = picked(Request, asked, bundle=bundle, excerpt=asked.html_file is not None)
    if instead:
        (_calibrate if asked.calibrate else _calibrate_gate)(request, asked)
        return
    plan_file = _plan_file(bundle, asked.output) if asked.bisect else None
    reports = [("--output", plan_file, kinds.PLAN), ("--html", asked.html_file, kinds.PAGE)]
    inputs = (asked.model, asked.plan, asked.against, *asked.audio)
    kinds.check_output_files(reports, inputs, asked.overwrite)
    if not _verify(request, plan_file, asked):
        raise SystemExit(FAILED)


def _plan_file(bundle: Bundle, output: Path | None) -> Path:
    """Where the plan goes; one that is there may have been edited by hand, so only a named one is replaced."""
    if output is not None:
        return output
    path = Path(f"{bundle.manifest.name}.plan.json")
    if path.exists():
        raise UsageError(f"{path} exists, and --bisect would write its plan there", "Give --output FILE.")
    return path


def _verify(request: Request, plan_file: Path | None, asked: VerifyOptions) -> bool:
    from mrsep_deploy.commands.output_files import write_page
    from mrsep_deploy.pages.spectrograms import spectrogram_block
    from mrsep_deploy.pages.verify_page import verify_page
    from mrsep_deploy.terminal.progress import console, remark, step_progress
    from mrsep_deploy.verification.job import opened
    from mrsep_deploy.verification.report import about, print_verification, to_plain

    facts = about(request.bundle, options.command_line())
    with opened(request) as job:
        remark(*(line for track in job.tracks for line in track.remarks), quiet=asked.quiet)
        with step_progress(asked.quiet or asked.as_json) as progress:
            found = job.verify(progress)
        passes, result = found.passes, {**to_plain(found), **facts}
        if not asked.as_json and not asked.quiet:
            print_verification(console(), result)
        if plan_file is not None and not found.passes:
            passes, searched = _bisect(job, found, plan_file, asked)
            result.update(searched)
    excerpt = found.excerpt
    pictures = None if excerpt is None else spectrogram_block(excerpt)
    write_page(asked.html_file, lambda: verify_page(result, pictures))
    if asked.as_json:
        click.echo(json.dumps(result, indent=2))
    return passes


def _bisect(
    job: Job, found: Verification, plan_file: Path, asked: VerifyOptions
) -> tuple[bool, dict[str, object]]:
    """Whether it passes with the plan that was found, and what that gives to the result."""
    from mrsep_deploy.precision.plan import write_plan
    from mrsep_deploy.terminal.progress import console, step_progress
    from mrsep_deploy.verification.report import bisection_to_plain, print_bisections, to_plain

    with step_progress(asked.quiet or asked.as_json) as progress:
        searches, after = job.bisect(found, progress)
    write_plan(searches[-1].plan, plan_file)
    limit, result = found.limit.decibels, to_plain(after)
    if not asked.as_json and not asked.quiet:
        print_bisections(console(), searches, limit, result)
        click.echo(f"plan written to {plan_file}")
    shown = [bisection_to_plain(search, limit) for search in searches]
    return after.passes, {"bisection": shown, "plan": str(plan_file), "with_plan": result}


def _calibrate(request: Request, asked: VerifyOptions) -> None:
    from mrsep_deploy.precision.requested import require_onnx

    require_onnx("calibrating")
    from mrsep_deploy.bundle import require_folder
    from mrsep_deploy.precision.plan import default_plan
    from mrsep_deploy.precision.ranges import load, store
    from mrsep_deploy.terminal.progress import print_result, remark, step_progress
    from mrsep_deploy.verification.calibration import measure
    from mrsep_deploy.verification.hazard_report import prediction, print_prediction
    from mrsep_deploy.verification.job import requested_plan
    from mrsep_deploy.verification.tracks import builtin_tracks, read_tracks

    bundle = request.bundle
    plan = requested_plan(request) or default_plan("float16", bundle.manifest.float32)
    tracks = [*builtin_tracks(bundle.manifest), *read_tracks(request.audio, bundle.manifest)]
    remark(*(line for track in tracks for line in track.remarks), quiet=asked.quiet)
    require_folder(bundle)
    with step_progress(asked.quiet or asked.as_json) as progress:
        bundle = store(bundle, measure(bundle, tracks, request.threads, progress))
    calibration = load(bundle)
    assert calibration is not None
    found = prediction(bundle, plan, calibration)

    def show(screen: Console) -> None:
        print_prediction(screen, found)
        click.echo(f"ranges stored in {bundle.path}")

    print_result(asked.as_json, lambda: found, show, asked.quiet)


def _calibrate_gate(request: Request, asked: VerifyOptions) -> None:
    from mrsep_deploy.precision.requested import require_onnx

    require_onnx("calibrating")
    from mrsep_deploy.bundle import require_folder
    from mrsep_deploy.precision.plan import default_plan
    from mrsep_deploy.terminal.progress import print_result, remark, step_progress
    from mrsep_deploy.verification.gate_calibration import calibrate_gate, print_gate, store_gate
    from mrsep_deploy.verification.job import requested_plan
    from mrsep_deploy.verification.tracks import read_tracks

    bundle = request.bundle
    if bundle.manifest.precision != "float32":
        raise UsageError(
            f"{bundle.manifest.name} is of precision {bundle.manifest.precision}, a gate is calibrated against float32",
            "Give the float32 bundle; what is converted or exported from it has its gate.",
        )
    plan = requested_plan(request) or default_plan("float16", bundle.manifest.float32)
    tracks = read_tracks(request.audio, bundle.manifest)
    remark(*(line for track in tracks for line in track.remarks), quiet=asked.quiet)
    require_folder(bundle)
    with step_progress(asked.quiet or asked.as_json) as progress:
        calibration = calibrate_gate(bundle, plan, tracks, asked.limit, request.threads, progress)
    bundle = store_gate(bundle, calibration)
    found = calibration.plain()

    def show(screen: Console) -> None:
        print_gate(screen, found)
        click.echo(f"gate stored in {bundle.path}")

    print_result(asked.as_json, lambda: found, show, asked.quiet)
