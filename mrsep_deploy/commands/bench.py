"""``mrsep-deploy bench``: how fast bundles are, against PyTorch and against what the machine could do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing, options
from mrsep_deploy.commands.options import CommaList, argument, flag, names, option, picked, report_file, takes
from mrsep_deploy.engines import ENGINE_NAMES
from mrsep_deploy.errors import FAILED, PARTIAL
from mrsep_deploy.precision.names import ASKED

if TYPE_CHECKING:
    from mrsep_deploy.bench.results import Result
    from mrsep_deploy.precision.names import AskedPrecision
    from mrsep_deploy.runtime.schedule import Mode

# Spelled out because the module that defines them imports numpy; a test holds them equal.
AGAINST = ("torch", "torch-compile", "torch-cuda", "torch-cuda-compile", "torch-cuda-graph")
PEERS = ("demucs", "demucs-onnx", "unblend", "unblend-bf16")
MODES = ("sequential", "concurrent", "graph")
NOTHING = "none"

Names = tuple[str, ...]


_COUNTS = CommaList(
    "N,...",
    lambda text: int(text) or None if text.isdecimal() else None,
    "{text!r} is no list of whole numbers from 1, such as 1,2",
)


def _opponent(text: str) -> str | None:
    """A name that is known; a peer's may be followed by ``=`` and its virtual environment."""
    name, equals, place = text.partition("=")
    known = name in PEERS and bool(place) if equals else name in (*AGAINST, *PEERS, NOTHING)
    return text if known else None


_OPPONENTS = CommaList(
    "NAME[=VENV],...",
    _opponent,
    f"{{item!r}} is none of {', '.join((*AGAINST, *PEERS, NOTHING))}; =VENV may follow {', '.join(PEERS)}",
)


def _lengths(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...]:
    try:
        lengths = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of seconds, such as 20,180") from error
    if not all(0 < length < float("inf") for length in lengths) or len(set(lengths)) < len(lengths):
        raise click.BadParameter(f"{text!r} has to list different lengths above 0")
    return lengths


@dataclass(frozen=True)
class BenchOptions:
    models: Names = argument("[BUNDLE|NAME|CKPT]...", nargs=-1, shell_complete=completing.models)
    engines: Names | None = option(
        f"Of {', '.join(ENGINE_NAMES)}.  [default: all that work here but torch]",
        "--engine",
        type=names(*ENGINE_NAMES),
    )
    precisions: tuple[AskedPrecision, ...] | None = option(
        f"Of {', '.join(ASKED)}.  [default: each bundle's own]", "--precision", type=names(*ASKED)
    )
    plan: Path | None = options.plan()
    modes: tuple[Mode, ...] = option(
        f"Of {', '.join(MODES)}.", "--mode", default="sequential", type=names(*MODES)
    )
    lanes: tuple[int, ...] = option(
        "Segments side by side in whole songs, each on its share of the threads.", default="1", type=_COUNTS
    )
    batches: tuple[int, ...] = option(
        "Segments in one run; with several, each model is measured with each.",
        "--batch",
        default="1",
        type=_COUNTS,
    )
    against: Names | None = option(
        f"What engines are compared with, the baseline first: of {', '.join(AGAINST)}; of the packages of others, on "
        f"the CPU, {', '.join(PEERS)}; or {NOTHING}. NAME=VENV runs a package out of a virtual environment of its own, "
        "NAME alone out of this one.  [default: torch, and demucs where it is installed and the model is "
        "HTDemucs; on a GPU torch-cuda, torch-cuda-graph]",
        type=_OPPONENTS,
    )
    lengths: tuple[float, ...] = option(
        "Also separate whole songs of so many seconds.", "--length", metavar="S,...", callback=_lengths
    )
    audio: Path | None = option(
        "Music to run on.  [default: synthetic]",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
    )
    limit: float | None = options.limit()
    rounds: int = option(
        "Turns of every contender; p95 needs 20, p99 100.", type=click.IntRange(min=1), default=10
    )
    seconds: float | None = option(
        "Start no round of a race after so long.", type=click.FloatRange(min=0, min_open=True), metavar="S"
    )
    seed: int = option("Of the order in rounds.", type=int, default=0)
    overlap: float | None = option(
        "Of segments in whole songs, as a share.  [default: the model's, 0.25 mostly]",
        type=click.FloatRange(0, 1, max_open=True),
    )
    threads: int = options.threads()
    checkpoint: Path | None = options.checkpoint(
        help="For PyTorch: the checkpoint, if it moved since the export."
    )
    profile: bool = flag(
        "Instead: where the time goes, by stage and operator, for ort and openvino, beside the least that it "
        "could take."
    )
    json_file: Path | None = report_file("Write everything, raw times of all rounds included.", "--json")
    csv_file: Path | None = report_file("Write a line a row.", "--csv")
    markdown_file: Path | None = report_file("Write the tables.", "--markdown")
    html_file: Path | None = options.html()
    overwrite: bool = options.overwrite()
    quiet: bool = options.quiet()


@click.command(
    "bench",
    epilog="""\b
Examples:
  mrsep-deploy bench htdemucs
  mrsep-deploy bench htdemucs --engine ort,openvino --mode sequential,concurrent --length 20 --json bench.json
  mrsep-deploy bench ckpt.th --audio song.flac --rounds 100 --csv bench.csv --html bench.html
  mrsep-deploy bench htdemucs --batch 1,2,4 --length 20,180
  mrsep-deploy bench htdemucs --against demucs=venvs/demucs,unblend=venvs/unblend,unblend-bf16=venvs/unblend
  mrsep-deploy bench htdemucs --profile
\b
Exit codes: 0 done, 1 no row was measured with right stems, 2 wrong usage, 3 some rows failed.
""",
)
@takes(BenchOptions)
def bench(asked: BenchOptions) -> None:
    """Measure how fast models run on each engine.

    Every contender is a process of its own, and they take turns: a slow moment of the machine meets all of
    them. Stems are compared with PyTorch's in float64 before and after; a row with wrong stems is failed, keeps its
    time, and is compared with nobody. Ratios are of times in the same round. Without a model: the one that run
    takes. Ctrl-C keeps what is there.
    """
    if asked.against is not None and NOTHING in asked.against and len(asked.against) > 1:
        raise click.UsageError(f"--against {NOTHING} and other names exclude each other.")
    from mrsep_deploy.commands import output_files as kinds

    reports = [
        ("--json", asked.json_file, kinds.BENCH_JSON),
        ("--csv", asked.csv_file, kinds.BENCH_CSV),
        ("--markdown", asked.markdown_file, kinds.BENCH_MARKDOWN),
        ("--html", asked.html_file, kinds.PAGE),
    ]
    kinds.check_output_files(reports, (*asked.models, asked.audio, asked.checkpoint), asked.overwrite)
    from mrsep_deploy.bench.report import print_result, to_csv, to_json, to_markdown
    from mrsep_deploy.files.parts import write_file
    from mrsep_deploy.pages.bench_page import bench_page
    from mrsep_deploy.terminal.progress import console

    result = _measured(asked)
    result.command = options.command_line()
    makers = ((asked.json_file, to_json), (asked.csv_file, to_csv), (asked.markdown_file, to_markdown))
    for path, make in makers:
        if path is not None:
            write_file(path, make(result).encode())
    kinds.write_page(asked.html_file, lambda: bench_page(result.plain()))
    if not asked.quiet:
        print_result(console(), result)
    if result.interrupted:
        raise KeyboardInterrupt
    statuses = [row.status for row in result.rows] + [str(found["status"]) for found in result.profiles]
    if statuses and "ok" not in statuses:
        raise SystemExit(FAILED)
    if "failed" in statuses or "unavailable" in statuses:
        raise SystemExit(PARTIAL)


def _measured(asked: BenchOptions) -> Result:
    import tempfile

    from mrsep_deploy.bench.benchmark import Settings, benchmark
    from mrsep_deploy.bench.plan import Request, plan
    from mrsep_deploy.bench.profile import profile
    from mrsep_deploy.terminal.progress import step_progress

    if asked.profile:
        asked = replace(
            asked, engines=_profiled(asked.engines), against=(NOTHING,), modes=("sequential",), lanes=(1,)
        )
    request = picked(
        Request,
        asked,
        engines=asked.engines or (),
        precisions=asked.precisions or (),
        against=() if asked.against == (NOTHING,) else asked.against,
    )
    settings = picked(Settings, asked)
    measure = profile if asked.profile else benchmark
    with (
        tempfile.TemporaryDirectory(prefix="mrsep-deploy-bench-") as folder,
        step_progress(asked.quiet) as progress,
    ):
        entries = plan(request, Path(folder), lambda what: progress(what, 0, 1))
        return measure(entries, settings, progress)


def _profiled(engines: Names | None) -> Names:
    """Engines to profile: those that were named, or those that work here."""
    from mrsep_deploy.bench.plan import working_engines
    from mrsep_deploy.bench.profile import PROFILERS
    from mrsep_deploy.errors import UsageError

    other = [name for name in engines or () if name not in PROFILERS]
    if other:
        known = " and ".join(PROFILERS)
        raise UsageError(
            f"engine {other[0]} cannot be profiled, only {known}",
            f"Give --engine {','.join(PROFILERS)}.",
        )
    return engines or tuple(name for name in working_engines() if name in PROFILERS)
