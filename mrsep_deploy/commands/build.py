"""``mrsep-deploy build``: a bundle's engines, ahead of time."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing, options
from mrsep_deploy.commands.options import argument, flag, option, picked, takes
from mrsep_deploy.engines import ENGINE_NAMES, engine_class
from mrsep_deploy.errors import UsageError
from mrsep_deploy.process.interrupts import breakable, protected

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.engines.cache import CachedEngine
    from mrsep_deploy.engines.contract import BuildingEngine
    from mrsep_deploy.precision.names import AskedPrecision

Report = Callable[[str, str], None]
"""Called with a stage and what has become of it."""


def _targets(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
    """``sm_86,sm_89`` -> ``("sm_86", "sm_89")``."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if re.fullmatch(r"sm_\d{2,3}", name) is None:
            raise click.BadParameter(f"{name!r} is not of the form sm_86")
    return tuple(names)


@dataclass(frozen=True)
class Asked:
    model: str | None = argument("[NAME|BUNDLE]", required=False, shell_complete=completing.models)
    engine: str = option("What to build for.", type=click.Choice(ENGINE_NAMES), required=True)
    precision: AskedPrecision | None = options.precision()
    plan: Path | None = options.plan()
    gate: float | None = options.gate()
    music: tuple[Path, ...] = option(
        "openvino with --precision bf16: a song, or a folder with true stems, to choose the stages in bfloat16 by; "
        "may be given more than once.",
        multiple=True,
        type=click.Path(path_type=Path, exists=True),
        metavar="FILE|DIR",
    )
    limit: float | None = option(
        "With --music: least SNR of every stem beside float32.  [default: 40]",
        type=click.FloatRange(0, 200),
        metavar="DB",
    )
    batch: int | None = options.batch()
    targets: tuple[str, ...] = option(
        "trt-rtx: GPUs to build for, as sm_86,sm_89.  [default: the one here]",
        "--target",
        metavar="SM,...",
        callback=_targets,
    )
    optimization_level: int | None = option(
        "More looks longer for faster kernels.  [default: the library's]", type=click.IntRange(0, 5)
    )
    workspace: int | None = option(
        "Scratch memory a layer may use.  [default: all there is]", type=click.IntRange(1), metavar="MB"
    )
    jobs: int = option(
        "Stages to build at the same time.", type=click.IntRange(1, 64), default=1, metavar="N"
    )
    device: str | None = option(
        "GPU to build on and for: cuda or cuda:N.  [default: the first]", "-d", metavar="cuda|cuda:N"
    )
    threads: int = options.threads(
        help="ort, openvino: CPU threads that run will be given; 0 for all.  [default: 0]", metavar="N"
    )
    output: Path | None = option(
        "Folder for the engines.  [default: the engine cache]",
        "-o",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
    )
    quiet: bool = options.quiet()
    as_json: bool = flag("Print the result as JSON.", "--json")


@click.command(
    "build",
    epilog="""\b
Examples:
  mrsep-deploy build htdemucs --engine trt
  mrsep-deploy build htdemucs --engine trt --device cuda:1
  mrsep-deploy build htdemucs --engine openvino --threads 4
  mrsep-deploy build htdemucs --engine openvino --precision bf16 --music song.flac
  mrsep-deploy build htdemucs --engine trt-rtx --target sm_86,sm_89 --jobs 2
  mrsep-deploy build bundles/model --engine trt-rtx --target sm_120 --output engines
""",
)
@takes(Asked)
def build(asked: Asked) -> None:
    """Build a bundle's engines ahead of time.

    Running builds what is missing, too; this does it before the first song, or on another machine. Engines
    are kept in the engine cache, where run finds the one built last. For lower precision those in float32 are built,
    too, which some segments run on, unless --gate is off. Files in DIR can be copied into the
    cache of the machine that runs them: mrsep-deploy cache list says where it is.

    For ort and openvino a short measurement finds what is fastest here, branches or segments side by side
    or nothing of it, and run does it so from then on, unless it is given --mode or --lanes. With --music, stages
    are timed in bfloat16 and in float32, and run --precision bf16 takes the fastest choice that is proved
    to keep every stem of these songs at --limit.
    """
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.commands.build_plan import PlanRequest, measure_plan
    from mrsep_deploy.engines.choice import parse_device, require_runs_on
    from mrsep_deploy.engines.contract import BuildingEngine, EngineOptions
    from mrsep_deploy.precision.names import arithmetic
    from mrsep_deploy.precision.requested import in_precision

    kind = engine_class(asked.engine)
    runs_on, index = parse_device(asked.device)
    require_runs_on(asked.engine, runs_on)
    if kind.measured:
        given = {
            "--target": asked.targets,
            "--optimization-level": asked.optimization_level,
            "--workspace": asked.workspace,
            "--output": asked.output,
        }
        for name, value in given.items():
            if value not in (None, ()):
                raise click.UsageError(
                    f"{name} is for TensorRT; {asked.engine} runs a bundle's graphs on the CPU"
                )
    elif asked.threads:
        raise click.UsageError("--threads is for ort and openvino, which run on a CPU")
    elif not issubclass(kind, BuildingEngine):
        click.echo(f"Engine {asked.engine} has no build step: it takes a bundle's graphs as they are.")
        return
    named = Bundle.open(resolve(asked.model))
    bundle = in_precision(named, asked.precision, asked.plan)
    if asked.batch is not None:
        bundle = bundle.at_batch(asked.batch)
    how = EngineOptions(asked.threads, precision=arithmetic(bundle.manifest), device=index)
    if issubclass(kind, BuildingEngine):
        _build_and_tell(bundle, kind(how), asked)
    else:
        measure_plan(named, bundle, how, picked(PlanRequest, asked))


def _build_and_tell(bundle: Bundle, engine: BuildingEngine, asked: Asked) -> None:
    from mrsep_deploy.files.strict_json import plain
    from mrsep_deploy.precision.costs import read_costs
    from mrsep_deploy.terminal.progress import print_result

    if asked.jobs > 1 and not engine.parallel_builds:
        raise UsageError(
            f"{asked.engine} builds one stage at a time, found --jobs {asked.jobs}", "Leave out --jobs."
        )
    built = _build(engine, bundle, asked)
    costs = read_costs(bundle.manifest)
    print_result(
        asked.as_json,
        lambda: plain([{**_plain(stage, each), "cost": costs.get(stage)} for stage, each in built.items()]),
        lambda screen: _print(screen, built, engine.cache.folder, bundle),
        asked.quiet,
    )


def _build(engine: BuildingEngine, bundle: Bundle, asked: Asked) -> dict[str, CachedEngine]:
    """The engines of every graph and its twin in float32, by name, ``jobs`` at a time; the first error ends it."""
    from concurrent.futures import ThreadPoolExecutor

    from mrsep_deploy.engines.cache import EngineCache
    from mrsep_deploy.engines.contract import BuildOptions

    how = picked(BuildOptions, asked, workspace=asked.workspace and asked.workspace * 10**6)
    if asked.output is not None:
        engine.cache = EngineCache(asked.output.absolute(), must_keep=True)
    stages = [stage for stage in bundle.manifest.stages if stage.file is not None]
    without = [stage.name for stage in bundle.manifest.stages if stage.file is None]
    if without and not asked.quiet:
        click.echo(
            f"{bundle.manifest.name} has no graphs for {', '.join(without)}: these engines can be built, but "
            "to run them the checkpoint has to be exported again",
            err=True,
        )

    work = {stage.name: functools.partial(engine.build, bundle, stage, how) for stage in stages}
    twin = bundle.twin if asked.gate != math.inf else None
    if twin is not None:
        exact = engine.at_precision("fp32")
        for stage in twin.manifest.graph_stages:
            work[f"{stage.name} in float32"] = functools.partial(exact.build, twin, stage, how)

    def one(name: str) -> CachedEngine:
        report(name, "building")
        done = work[name]()
        report(name, "cached" if done.from_cache else f"built in {done.seconds:.1f} s")
        return done

    bars = _bars(list(work), asked.quiet)
    if asked.jobs == 1:
        with bars as report:
            return {name: one(name) for name in work}
    # An interrupt that fell into the start of the pool's threads would be waited for without end.
    with bars as report, protected(), ThreadPoolExecutor(asked.jobs) as pool:
        futures = {name: pool.submit(one, name) for name in work}
        try:
            with breakable():
                return {name: future.result() for name, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _bars(names: list[str], quiet: bool) -> Iterator[Report]:
    """A bar for every stage; a line for every finished one where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from mrsep_deploy.terminal.progress import console

    screen = console(sys.stderr)
    if quiet:
        yield lambda _name, _what: None
        return
    if not screen.is_terminal:
        yield (
            lambda name, what: None if what == "building" else screen.print(f"{name} {what}", soft_wrap=True)
        )
        return
    text = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[what]")]
    columns = (text[0], BarColumn(24), TimeElapsedColumn(), text[1])
    with Progress(*columns, console=screen, transient=True) as bars:
        # not a step of a build is known beforehand: its bar only moves until it is full
        tasks = {name: bars.add_task(name, start=False, total=None, what="") for name in names}

        def report(name: str, what: str) -> None:
            if what == "building":
                bars.start_task(tasks[name])
                bars.update(tasks[name], what=what)
            else:
                bars.update(tasks[name], what=what, total=1, completed=1)

        yield report


def _types(built: CachedEngine, kind: str) -> dict[str, str | int]:
    found = built.details.get(kind)
    return found if isinstance(found, dict) else {}


def _plain(stage: str, built: CachedEngine) -> dict[str, object]:
    return {
        "stage": stage,
        "key": built.key.name,
        "bytes": len(built.data),
        "seconds": round(built.seconds, 3),
        "from_cache": built.from_cache,
        "tensors": _types(built, "tensors"),
        "layers": _types(built, "layers"),
    }


def _print(screen: Console, built: Mapping[str, CachedEngine], folder: Path, bundle: Bundle) -> None:
    from mrsep_deploy.precision.costs import print_costs, read_costs
    from mrsep_deploy.terminal.tables import file_size, table

    made = table("stage", "build", "", "engine", "in and out", "layers", "key", right=("build", "engine"))
    for stage, each in built.items():
        layers = ", ".join(f"{count} {dtype}" for dtype, count in sorted(_types(each, "layers").items()))
        tensors = ", ".join(sorted(set(map(str, _types(each, "tensors").values()))))
        cached = "cached" if each.from_cache else ""
        size = file_size(len(each.data))
        made.add_row(stage, f"{each.seconds:.1f} s", cached, size, tensors, layers, each.key.name)
    screen.print(made)
    print_costs(screen, read_costs(bundle.manifest), bundle.manifest.precision)
    screen.print(f"\nkept in {folder}", soft_wrap=True)
