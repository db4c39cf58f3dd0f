"""``mrsep-deploy eval``: how well a model separates tracks whose stems are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing, options
from mrsep_deploy.commands.options import argument, flag, names, option, picked, takes
from mrsep_deploy.engines import AUTO, ENGINE_NAMES
from mrsep_deploy.errors import PARTIAL

if TYPE_CHECKING:
    from mrsep_deploy.evaluation.evaluate import Evaluation
    from mrsep_deploy.verification.multitrack import Subset

METRICS = ("museval", "mdx")
JSON_NAME, MARKDOWN_NAME = "results.json", "results.md"


@dataclass(frozen=True)
class EvalOptions:
    dataset: Path = argument("DIR", type=options.PATH, shell_complete=completing.folders)
    model: str | None = options.model_name(
        "Registered name or bundle.  [default: the model that run takes]", "-n"
    )
    out: Path | None = options.folder(
        "Results go there: results.json, results.md, tracks.  [default: evaluated/MODEL]", "-o"
    )
    engines: tuple[str, ...] = option(
        f"One engine or several, side by side: {', '.join(ENGINE_NAMES)}. Differences are to the first.",
        "--engine",
        type=names(AUTO, *ENGINE_NAMES, problem="there is no engine {item!r}; choose from {known}"),
        default=AUTO,
    )
    metrics: tuple[str, ...] = option(
        "museval: BSS Eval v4. mdx: as in MDX 2021. May be repeated.  [default: both]",
        "--metric",
        type=click.Choice(METRICS),
        multiple=True,
    )
    subset: Subset | None = option(
        "Of a DIR with the folders train and test.  [default: test]",
        type=click.Choice(["test", "train", "all"]),
    )
    overlap: float | None = options.overlap()
    threads: int = options.threads()
    checkpoint: Path | None = options.checkpoint(
        help="For the engine torch: the checkpoint, if it moved since the export."
    )
    html_file: Path | None = options.html()
    overwrite: bool = options.overwrite()
    quiet: bool = options.quiet()
    as_json: bool = flag("Print everything as JSON, numbers unrounded.", "--json")


@click.command(
    "eval",
    epilog="""\b
Examples:
  mrsep-deploy eval musdb18hq
  mrsep-deploy eval musdb18hq -n htdemucs --engine torch,ort,openvino -o results
  mrsep-deploy eval tracks --metric mdx --html report.html
""",
)
@takes(EvalOptions)
def eval(asked: EvalOptions) -> None:
    """Measure the SDR of a model on tracks with known stems.

    DIR is MUSDB18-HQ, or holds TRACK/{mixture,drums,bass,other,vocals}.wav (or .flac), or TRACK.stem.mp4 (needs
    the extra mrsep-deploy[av]). A missing mixture is the sum of the stems; so is that of a .stem.mp4, always,
    because its own stream is coded by itself. A run that was interrupted goes on where it stopped: a track is
    done again only if its files, the model or the engine changed. museval needs the extra mrsep-deploy[eval].
    """
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.commands import output_files as kinds
    from mrsep_deploy.evaluation.evaluate import Request, evaluate
    from mrsep_deploy.files.parts import make_folder
    from mrsep_deploy.terminal.progress import remark, step_progress
    from mrsep_deploy.verification.multitrack import find_tracks

    tracks = find_tracks(asked.dataset, asked.subset)
    bundle = Bundle.open(resolve(asked.model))
    folder = make_folder(asked.out or Path("evaluated") / bundle.manifest.name)
    request = picked(
        Request, asked, bundle=bundle, tracks=tracks, metrics=asked.metrics or METRICS, out=folder
    )
    reports = [
        ("results", folder / JSON_NAME, kinds.EVAL_JSON),
        ("results", folder / MARKDOWN_NAME, kinds.EVAL_MARKDOWN),
        ("--html", asked.html_file, kinds.PAGE),
    ]
    kinds.check_output_files(reports, (asked.dataset, asked.model, asked.checkpoint), asked.overwrite)
    with step_progress(asked.quiet or asked.as_json) as progress:
        found = evaluate(request, progress)
    _write(found, asked)
    remark(*found.remarks, quiet=asked.quiet)
    remark(*(f"{name}: {reason}" for name, reason in found.failed.items()))
    if found.failed:
        raise SystemExit(PARTIAL)


def _write(found: Evaluation, asked: EvalOptions) -> None:
    from mrsep_deploy.commands.output_files import write_page
    from mrsep_deploy.evaluation.report import print_evaluation, to_markdown, to_plain
    from mrsep_deploy.files.parts import write_file
    from mrsep_deploy.files.strict_json import dumped
    from mrsep_deploy.pages.eval_page import eval_page
    from mrsep_deploy.terminal.progress import console

    folder = found.request.out
    plain = to_plain(found, asked.dataset.absolute(), options.command_line())
    text = dumped(plain)
    write_file(folder / JSON_NAME, f"{text}\n".encode())
    write_file(folder / MARKDOWN_NAME, to_markdown(plain).encode())
    write_page(asked.html_file, lambda: eval_page(plain))
    if asked.as_json:
        click.echo(text)
    elif not asked.quiet:
        print_evaluation(console(), plain)
        click.echo(f"written to {folder}/{JSON_NAME} and {folder}/{MARKDOWN_NAME}")
