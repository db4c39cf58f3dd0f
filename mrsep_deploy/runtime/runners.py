"""Runners of all stages: who runs what, with how many threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.engines.contract import Engine, Runner
from mrsep_deploy.errors import EngineError, MrsepError, named_line
from mrsep_deploy.process.machine import release_heap
from mrsep_deploy.runtime.schedule import Mode, Schedule, Step
from mrsep_deploy.transforms.host import host_runner


@dataclass(frozen=True)
class Prepared:
    """A runner and the CPU threads it may use."""

    runner: Runner
    threads: int


def prepare_runners(
    bundle: Bundle,
    engine: Engine,
    schedule: Schedule,
    mode: Mode,
    budget: int,
    stack: contextlib.ExitStack,
    lanes: int = 1,
) -> list[dict[str, Prepared]]:
    """A runner for every stage, by name, for each of several lanes with ``budget`` threads; ``stack`` closes them.

    Raises:
        EngineError: a stage cannot be prepared.
    """
    side_by_side = len({step.stream for step in schedule.steps if step.part == "body" and not step.exclusive})
    share = max(1, budget // max(side_by_side, 1))
    prepared: list[dict[str, Prepared]] = [{} for _ in range(lanes)]
    for step in schedule.steps:
        threads = _threads(step, mode, budget, share)
        for lane, runner in zip(prepared, _runners(bundle, engine, step.stage, threads, lanes), strict=True):
            stack.callback(runner.close)
            lane[step.stage.name] = Prepared(runner, threads)
    for lane in prepared:
        workspace = engine.share_workspaces({name: each.runner for name, each in lane.items()}, schedule)
        if workspace is not None:
            stack.callback(workspace.close)
    release_heap()  # before the buffers and the first run
    return prepared


def _threads(step: Step, mode: Mode, budget: int, share: int) -> int:
    """All where nothing runs beside it; heads and tails run beside other segments' bodies and get one."""
    if mode == "sequential":
        return budget
    if step.part != "body":
        return 1
    return budget if step.exclusive else share


def _runners(bundle: Bundle, engine: Engine, stage: Stage, threads: int, lanes: int) -> Sequence[Runner]:
    if stage.kind == "graph" or engine.graph_transforms:
        return engine.prepare_lanes(bundle, stage, threads, lanes)
    return [host_runner(stage, bundle.manifest.branches, threads) for _ in range(lanes)]


@contextlib.contextmanager
def named(stage: Stage) -> Iterator[None]:
    """Raise what is not this package's own error as one that names the stage."""
    try:
        yield
    except MrsepError:
        raise
    except Exception as error:
        raise EngineError(f"stage {stage.name} failed: {named_line(error)}") from error
