"""``mrsep-deploy bench``: how fast bundles are, against PyTorch and against what the machine could do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing
from mrsep_deploy.commands.html_option import (
    command_line,
    given_files,
    html_option,
    overwrite_option,
    write_page,
)
from mrsep_deploy.commands.precision_options import least_snr, plan_for_mixed
from mrsep_deploy.engines import ENGINE_NAMES
from mrsep_deploy.errors import FAILED, PARTIAL
from mrsep_deploy.precision.names import ASKED

if TYPE_CHECKING:
    from mrsep_deploy.bench.results import Result

# Spelled out because the module that defines them imports numpy; a test holds them equal.
AGAINST = ("torch", "torch-compile", "torch-cuda", "torch-cuda-compile", "torch-cuda-graph", "demucs")
MODES = ("sequential", "concurrent", "graph")
NOTHING = "none"

Names = tuple[str, ...]


def _names(known: Names) -> Callable[[click.Context, click.Parameter, str | None], Names | None]:
    def parse(_ctx: click.Context, _option: click.Parameter, text: str | None) -> Names | None:
        if text is None:
            return None
        names = tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _lengths(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...]:
    try:
        lengths = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of seconds, such as 20,180") from error
    if not all(0 < length < float("inf") for length in lengths) or len(set(lengths)) < len(lengths):
        raise click.BadParameter(f"{text!r} has to list different lengths above 0")
    return lengths


def _counts(_ctx: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    counts = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if not all(counts):
        raise click.BadParameter(f"{text!r} is no list of whole numbers from 1, such as 1,2")
    return counts


@click.command(
    "bench",
    epilog="""\b
Examples:
  mrsep-deploy bench htdemucs
  mrsep-deploy bench htdemucs --engine ort,openvino --mode sequential,concurrent --length 20 --json bench.json
  mrsep-deploy bench ckpt.th --audio song.flac --rounds 100 --csv bench.csv --html bench.html
  mrsep-deploy bench ckpt.th --batch 1,2,4 --length 20,180
  mrsep-deploy bench htdemucs --profile
\b
Exit codes: 0 done, 1 no row was measured with right stems, 2 wrong usage, 3 some rows failed.
""",
)
@click.argument("models", nargs=-1, metavar="[BUNDLE|NAME|CKPT]...", shell_complete=completing.models)
@click.option("--engine", "engines", metavar="NAME,...", callback=_names(ENGINE_NAMES),
              help=f"Of {', '.join(ENGINE_NAMES)}.  [default: all that work here but torch]")  # fmt: skip
@click.option("--precision", "precisions", metavar="NAME,...", callback=_names(ASKED),
              help=f"Of {', '.join(ASKED)}.  [default: each bundle's own]")  # fmt: skip
@plan_for_mixed
@click.option("--mode", "modes", metavar="NAME,...", callback=_names(MODES), default="sequential", show_default=True,
              help=f"Of {', '.join(MODES)}.")  # fmt: skip
@click.option("--lanes", metavar="N,...", callback=_counts, default="1", show_default=True,
              help="Segments side by side in whole songs, each on its share of the threads.")  # fmt: skip
@click.option("--batch", "batches", metavar="N,...", default="1", show_default=True, callback=_counts,
              help="Segments at once, for checkpoints; a bundle has the batch it was exported with.")  # fmt: skip
@click.option("--against", metavar="NAME,...", callback=_names((*AGAINST, NOTHING)),
              help=f"What engines are compared with, the baseline first: of {', '.join(AGAINST)}; or {NOTHING}.  "
              "[default: torch, and demucs where it is installed and the model is HTDemucs; on a GPU "
              "torch-cuda, torch-cuda-graph]")  # fmt: skip
@click.option("--length", "lengths", metavar="S,...", callback=_lengths,
              help="Also separate whole songs of so many seconds.")  # fmt: skip
@click.option("--audio", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Music to run on.  [default: synthetic]")  # fmt: skip
@least_snr
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True,
              help="Turns of every contender; p95 needs 20, p99 100.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), metavar="S",
              help="Start no round of a race after so long.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order in rounds.")
@click.option("--overlap", type=click.FloatRange(0, 1, max_open=True),
              help="Of segments in whole songs, as a share.  [default: the model's, 0.25 mostly]")  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 for all.  [default: 0]"
)
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="For PyTorch: the checkpoint, if it moved since the export.")  # fmt: skip
@click.option("--profile", is_flag=True,
              help="Instead: where the time goes, by stage and operator, for ort and openvino, beside the least that "
              "it could take.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write everything, raw times of all rounds included.")  # fmt: skip
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write a line a row.")  # fmt: skip
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the tables.")  # fmt: skip
@html_option
@overwrite_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def bench(
    models: tuple[str, ...],
    engines: Names | None,
    precisions: Names | None,
    plan: Path | None,
    modes: Names,
    lanes: tuple[int, ...],
    batches: tuple[int, ...],
    against: Names | None,
    lengths: tuple[float, ...],
    audio: Path | None,
    limit: float | None,
    rounds: int,
    seconds: float | None,
    seed: int,
    overlap: float | None,
    threads: int,
    checkpoint: Path | None,
    profile: bool,
    json_file: Path | None,
    csv_file: Path | None,
    markdown_file: Path | None,
    html_file: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Measure how fast models run on each engine.

    Every contender is a process of its own, and they take turns: a slow moment of the machine meets all of
    them. Stems are compared with PyTorch's in float64 before and after; a row with wrong stems is failed, keeps its
    time, and is compared with nobody. Ratios are of times in the same round. Without a model: the one that run
    takes. Ctrl-C keeps what is there.
    """
    if against is not None and NOTHING in against and len(against) > 1:
        raise click.UsageError(f"--against {NOTHING} and other names exclude each other.")
    from mrsep_deploy.commands import output_files as kinds

    files = kinds.wanted(
        ("--json", json_file, kinds.BENCH_JSON),
        ("--csv", csv_file, kinds.BENCH_CSV),
        ("--markdown", markdown_file, kinds.BENCH_MARKDOWN),
        ("--html", html_file, kinds.PAGE),
    )
    kinds.check_output_files(files, given_files(*models, audio, checkpoint), overwrite)
    import tempfile

    from mrsep_deploy.bench.benchmark import Settings, benchmark
    from mrsep_deploy.bench.plan import Request
    from mrsep_deploy.bench.plan import plan as list_entries
    from mrsep_deploy.bench.report import print_result, to_csv, to_json, to_markdown
    from mrsep_deploy.files.parts import write_file
    from mrsep_deploy.pages.bench_page import bench_page
    from mrsep_deploy.terminal.progress import console, step_progress

    if profile:
        engines, against, modes, lanes = _profiled(engines), (NOTHING,), ("sequential",), (1,)
    request = Request(
        models=models,
        batches=batches,
        engines=engines or (),
        precisions=precisions or (),  # type: ignore[arg-type]  # the callbacks have checked them
        modes=modes,  # type: ignore[arg-type]
        lanes=lanes,
        against=() if against == (NOTHING,) else against,
        threads=threads,
        overlap=overlap,
        checkpoint=checkpoint,
        plan=plan,
    )
    settings = Settings(rounds, seconds, seed=seed, audio=audio, lengths=lengths, limit=limit)
    with (
        tempfile.TemporaryDirectory(prefix="mrsep-deploy-bench-") as folder,
        step_progress(quiet) as progress,
    ):
        entries = list_entries(request, Path(folder), lambda what: progress(what, 0, 1))
        if profile:
            from mrsep_deploy.bench.profile import profile as profile_all

            result = profile_all(entries, settings, progress)
        else:
            result = benchmark(entries, settings, progress)
    result.command = command_line()
    for path, make in ((json_file, to_json), (csv_file, to_csv), (markdown_file, to_markdown)):
        if path is not None:
            write_file(path, make(result).encode())
    write_page(html_file, lambda: bench_page(result.plain()))
    if not quiet:
        print_result(console(), result)
    if result.interrupted:
        raise KeyboardInterrupt
    _exit(result)


def _profiled(engines: Names | None) -> Names:
    """Engines to profile: those that were named, or those that work here.

    Raises:
        UsageError: one was named that keeps no profile.
    """
    from mrsep_deploy.bench.plan import working_engines
    from mrsep_deploy.bench.profiling import Profilers
    from mrsep_deploy.errors import UsageError

    other = [name for name in engines or () if name not in Profilers.makers]
    if other:
        known = " and ".join(Profilers.makers)
        raise UsageError(
            f"engine {other[0]} cannot be profiled, only {known}",
            f"Give --engine {','.join(Profilers.makers)}.",
        )
    return engines or tuple(name for name in working_engines() if name in Profilers.makers)


def _exit(result: Result) -> None:
    """Code by how many of the contenders that work here went through."""
    statuses = [row.status for row in result.rows] + [str(found["status"]) for found in result.profiles]
    if statuses and "ok" not in statuses:
        raise SystemExit(FAILED)
    if "failed" in statuses or "unavailable" in statuses:
        raise SystemExit(PARTIAL)
