"""``mrsep-deploy build``: a bundle's engines, ahead of time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands import completing
from mrsep_deploy.commands.precision_options import converted_precision, plan_for_mixed
from mrsep_deploy.engines import ENGINE_NAMES, engine_class

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.manifest import Stage
    from mrsep_deploy.engines.cache import CachedEngine
    from mrsep_deploy.engines.contract import BuildingEngine, BuildOptions
    from mrsep_deploy.precision.names import AskedPrecision

Report = Callable[[str, str], None]
"""Called with a stage and what has become of it."""

_TARGET = re.compile(r"sm_\d{2,3}")


def _targets(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
    """``sm_86,sm_89`` -> ``("sm_86", "sm_89")``."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if _TARGET.fullmatch(name) is None:
            raise click.BadParameter(f"{name!r} is not of the form sm_86")
    return tuple(names)


@click.command(
    "build",
    epilog="""\b
Examples:
  mrsep-deploy build htdemucs --engine trt
  mrsep-deploy build htdemucs --engine openvino --threads 4
  mrsep-deploy build htdemucs --engine trt-rtx --target sm_86,sm_89 --jobs 2
  mrsep-deploy build bundles/model --engine trt-rtx --target sm_120 --output engines
""",
)
@click.argument("model", metavar="[NAME|BUNDLE]", required=False, shell_complete=completing.models)
@click.option("--engine", "name", type=click.Choice(ENGINE_NAMES), required=True, help="What to build for.")
@converted_precision
@plan_for_mixed
@click.option(
    "--batch", metavar="N", type=click.IntRange(1), help="Must be the bundle's own: its graphs are static."
)
@click.option("--target", "targets", metavar="SM,...", callback=_targets,
              help="trt-rtx: GPUs to build for, as sm_86,sm_89.  [default: the one here]")  # fmt: skip
@click.option("--optimization-level", "level", type=click.IntRange(0, 5),
              help="More looks longer for faster kernels.  [default: the library's]")  # fmt: skip
@click.option("--workspace", metavar="MB", type=click.IntRange(1),
              help="Scratch memory a layer may use.  [default: all there is]")  # fmt: skip
@click.option("--jobs", metavar="N", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Stages to build at the same time.")  # fmt: skip
@click.option("--threads", metavar="N", type=click.IntRange(min=0), default=0,
              help="ort, openvino: CPU threads that run will be given; 0 for all.  [default: 0]")  # fmt: skip
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for the engines.  [default: the engine cache]")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build(
    model: str | None,
    name: str,
    precision: AskedPrecision | None,
    plan: Path | None,
    batch: int | None,
    targets: tuple[str, ...],
    level: int | None,
    workspace: int | None,
    jobs: int,
    threads: int,
    output: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build a bundle's engines ahead of time.

    Running builds what is missing, too; this does it before the first song, or on another machine. Engines
    are kept in the engine cache, where run finds the one built last. Files in DIR can be copied into the
    cache of the machine that runs them: mrsep-deploy cache list says where it is.

    For ort and openvino a short measurement finds what is fastest here, branches or segments side by side
    or nothing of it, and run does it so from then on, unless it is given --mode or --lanes.
    """
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.commands.build_plan import measure_plan, refuse_gpu_options
    from mrsep_deploy.engines.contract import BuildingEngine, BuildOptions, EngineOptions
    from mrsep_deploy.precision.costs import costs_to_json, read_costs
    from mrsep_deploy.precision.names import arithmetic
    from mrsep_deploy.precision.requested import in_precision

    kind = engine_class(name)
    if kind.measured:
        refuse_gpu_options(name, targets, level, workspace, output)
        bundle = in_precision(Bundle.open(resolve(model)), precision, plan)
        measure_plan(
            bundle, name, EngineOptions(threads, precision=arithmetic(bundle.manifest)), quiet, as_json
        )
        return
    if threads:
        raise click.UsageError("--threads is for ort and openvino, which run on a CPU")
    if not issubclass(kind, BuildingEngine):
        click.echo(f"Engine {name} has no build step: it takes a bundle's graphs as they are.")
        return
    bundle = in_precision(Bundle.open(resolve(model)), precision, plan)
    engine = kind(EngineOptions(precision=arithmetic(bundle.manifest)))
    _check(bundle, engine, name, batch, jobs)
    options = BuildOptions(targets, level, workspace and workspace * 10**6)
    built = _build(engine, bundle, options, jobs, output, quiet)
    if as_json:
        costs = costs_to_json(read_costs(bundle.manifest))
        click.echo(
            json.dumps(
                [{**_plain(name, each), "cost": costs.get(name)} for name, each in built.items()], indent=2
            )
        )
    elif not quiet:
        from mrsep_deploy.terminal.progress import console

        _print(console(), built, engine.cache.folder, bundle)


def _check(bundle: Bundle, engine: BuildingEngine, name: str, batch: int | None, jobs: int) -> None:
    from mrsep_deploy.errors import UsageError

    found = bundle.manifest.batch
    if batch not in (None, found):
        raise UsageError(
            f"{bundle.manifest.name} has static graphs of batch {found}, found --batch {batch}",
            f"Export it again: mrsep-deploy export CHECKPOINT --batch {batch}",
        )
    if jobs > 1 and not engine.parallel_builds:
        raise UsageError(f"{name} builds one stage at a time, found --jobs {jobs}", "Leave out --jobs.")


def _build(
    engine: BuildingEngine, bundle: Bundle, options: BuildOptions, jobs: int, output: Path | None, quiet: bool
) -> dict[str, CachedEngine]:
    """The engines of every stage that has a graph, by its name, ``jobs`` at a time; the first error ends it."""
    from concurrent.futures import ThreadPoolExecutor

    from mrsep_deploy.engines.cache import EngineCache

    if output is not None:
        engine.cache = EngineCache(output.absolute(), must_keep=True)
    stages = [stage for stage in bundle.manifest.stages if stage.file is not None]
    without = [stage.name for stage in bundle.manifest.stages if stage.file is None]
    if without and not quiet:
        click.echo(
            f"{bundle.manifest.name} has no graphs for {', '.join(without)}: these engines can be built, but "
            "to run them the checkpoint has to be exported again",
            err=True,
        )

    def one(stage: Stage) -> CachedEngine:
        report(stage.name, "building")
        done = engine.build(bundle, stage, options)
        report(stage.name, "cached" if done.from_cache else f"built in {done.seconds:.1f} s")
        return done

    with _bars([stage.name for stage in stages], quiet) as report, ThreadPoolExecutor(jobs) as pool:
        if jobs == 1:
            return {stage.name: one(stage) for stage in stages}
        futures = {stage.name: pool.submit(one, stage) for stage in stages}
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _bars(names: list[str], quiet: bool) -> Iterator[Report]:
    """A bar for every stage; a line for every finished one where stderr is no terminal."""
    from mrsep_deploy.terminal.progress import error_console

    screen = error_console()
    if quiet:
        yield lambda _name, _what: None
    elif screen.is_terminal:
        with _moving_bars(names, screen) as report:
            yield report
    else:
        yield (
            lambda name, what: None if what == "building" else screen.print(f"{name} {what}", soft_wrap=True)
        )


@contextmanager
def _moving_bars(names: list[str], screen: Console) -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    text = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[what]")]
    with Progress(
        text[0], BarColumn(24), TimeElapsedColumn(), text[1], console=screen, transient=True
    ) as bars:
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
