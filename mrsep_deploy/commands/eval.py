"""``mrsep-deploy eval``: how well a model separates tracks whose stems are known."""

from __future__ import annotations

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
from mrsep_deploy.engines import AUTO, ENGINE_NAMES
from mrsep_deploy.errors import PARTIAL

if TYPE_CHECKING:
    from mrsep_deploy.evaluation.dataset import Subset
    from mrsep_deploy.evaluation.evaluate import Evaluation

# Spelled out because the module that defines them imports numpy; a test holds them equal.
METRICS = ("museval", "mdx")
JSON_NAME, MARKDOWN_NAME = "results.json", "results.md"


def _parse_engines(_ctx: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    known = (AUTO, *ENGINE_NAMES)
    for name in names:
        if name not in known:
            raise click.BadParameter(f"there is no engine {name!r}; choose from {', '.join(known)}")
    return names


@click.command(
    "eval",
    epilog="""\b
Examples:
  mrsep-deploy eval musdb18hq
  mrsep-deploy eval musdb18hq -n htdemucs --engine torch,ort,openvino -o results
  mrsep-deploy eval tracks --metric mdx --html report.html
""",
)
@click.argument("dataset", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completing.folders)
@click.option(
    "-n",
    "--model",
    metavar="NAME|PATH",
    shell_complete=completing.models,
    help="Registered name or bundle.  [default: the model that run takes]",
)
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), shell_complete=completing.folders,
              help="Results go there: results.json, results.md, tracks.  [default: evaluated/MODEL]")  # fmt: skip
@click.option("--engine", "engines", metavar="NAME,...", default=AUTO, show_default=True, callback=_parse_engines,
              help=f"One engine or several, side by side: {', '.join(ENGINE_NAMES)}. Differences are to the "
              "first.")  # fmt: skip
@click.option("--metric", "metrics", type=click.Choice(METRICS), multiple=True,
              help="museval: BSS Eval v4. mdx: as in MDX 2021. May be repeated.  [default: both]")  # fmt: skip
@click.option("--subset", type=click.Choice(["test", "train", "all"]),
              help="Of a DIR with the folders train and test.  [default: test]")  # fmt: skip
@click.option(
    "--overlap", type=float, help="Share of a segment that overlaps.  [default: the model's, 0.25 mostly]"
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 for all.  [default: 0]"
)
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="For the engine torch: the checkpoint, if it moved since the export.")  # fmt: skip
@html_option
@overwrite_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, numbers unrounded.")
def eval(
    dataset: Path,
    model: str | None,
    out: Path | None,
    engines: tuple[str, ...],
    metrics: tuple[str, ...],
    subset: Subset | None,
    overlap: float | None,
    threads: int,
    checkpoint: Path | None,
    html_file: Path | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure the SDR of a model on tracks with known stems.

    DIR is MUSDB18-HQ, or holds TRACK/{mixture,drums,bass,other,vocals}.wav (or .flac), or TRACK.stem.mp4 (needs
    the extra mrsep-deploy[av]). A missing mixture is the sum of the stems; so is that of a .stem.mp4, always,
    because its own stream is coded by itself. A run that was interrupted goes on where it stopped: a track is
    done again only if its files, the model or the engine changed. museval needs the extra mrsep-deploy[eval].
    """
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.commands import output_files as kinds
    from mrsep_deploy.evaluation.dataset import find_tracks
    from mrsep_deploy.evaluation.evaluate import Request, evaluate
    from mrsep_deploy.files.parts import make_folder
    from mrsep_deploy.terminal.progress import step_progress

    tracks = find_tracks(dataset, subset)
    bundle = Bundle.open(resolve(model))
    request = Request(
        bundle=bundle,
        tracks=tracks,
        engines=engines,
        metrics=metrics or METRICS,
        out=out or Path("evaluated") / bundle.manifest.name,
        overlap=overlap,
        threads=threads,
        checkpoint=checkpoint,
    )
    folder = make_folder(request.out)
    files = kinds.wanted(
        ("results", folder / JSON_NAME, kinds.EVAL_JSON),
        ("results", folder / MARKDOWN_NAME, kinds.EVAL_MARKDOWN),
        ("--html", html_file, kinds.PAGE),
    )
    kinds.check_output_files(files, given_files(dataset, model, checkpoint), overwrite)
    with step_progress(quiet or as_json) as progress:
        found = evaluate(request, progress)
    _write(found, dataset, html_file, quiet, as_json)
    if not quiet:
        say_remarks(found.remarks)
    say_remarks(f"{name}: {reason}" for name, reason in found.failed.items())
    if found.failed:
        raise SystemExit(PARTIAL)


def _write(found: Evaluation, dataset: Path, html_file: Path | None, quiet: bool, as_json: bool) -> None:
    from mrsep_deploy.evaluation.report import print_evaluation, to_markdown, to_plain
    from mrsep_deploy.files.parts import write_file
    from mrsep_deploy.files.strict_json import dumped
    from mrsep_deploy.pages.eval_page import eval_page
    from mrsep_deploy.terminal.progress import console

    folder, place = found.request.out, dataset.absolute()
    plain = to_plain(found, place, command_line())
    text = dumped(plain)
    write_file(folder / JSON_NAME, f"{text}\n".encode())
    write_file(folder / MARKDOWN_NAME, to_markdown(plain).encode())
    write_page(html_file, lambda: eval_page(plain))
    if as_json:
        click.echo(text)
    elif not quiet:
        print_evaluation(console(), plain)
        click.echo(f"written to {folder}/{JSON_NAME} and {folder}/{MARKDOWN_NAME}")
