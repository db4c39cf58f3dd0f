"""Starts an engine on a bundle: all it builds first, then all it loads; where that fails, the next one of ``auto``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines import AUTO
from mrsep_deploy.engines.choice import Choice
from mrsep_deploy.engines.contract import Engine, Report
from mrsep_deploy.errors import DeviceLostError, EngineError
from mrsep_deploy.runtime.plan import RunPlan, run_plan
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.runtime.scheduler import Scheduler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """An engine at work; ``reason`` is why it is this one, empty where it was named, and ``bundle`` what it runs."""

    engine: Engine
    reason: str
    plan: RunPlan
    bundle: Bundle
    scheduler: Scheduler


def start(
    candidates: Iterable[Choice],
    bundle: Bundle,
    twin: Bundle | None,
    mode: Mode | None,
    lanes: int,
    trace: bool,
    report: Report | None,
    kept: Callable[[Mapping[str, tuple[str, ...]]], Bundle] | None = None,
) -> Started:
    """Start the first engine that builds and loads everything; those before it are closed, and said.

    Args:
        candidates: one that was named, or those that ``auto`` takes.
        twin: what runs segments in float32 beside a bundle of lower precision, if any does: it is built too.
        report: see ``Engine.get_ready``.
        kept: makes the bundle that keeps more in float32, where a run plan says so.

    Raises:
        EngineError: of the last one, which does not start either; of any, that the GPU is lost.
        UsageError: the mode or the number of lanes does not go with the engine.
    """
    waiting = iter(candidates)
    chosen = next(waiting)
    while True:
        engine = chosen.engine
        try:
            plan, runs = run_plan(bundle, engine, mode, lanes), bundle
            if plan.keep and kept is not None:
                runs = kept(plan.keep).at_batch(bundle.manifest.batch)
            _get_ready(engine, runs, twin, report)
            scheduler = Scheduler(runs, engine, plan.mode, plan.lanes, trace)
            return Started(engine, chosen.reason, plan, runs, scheduler)
        except BaseException as error:
            engine.close()
            may_pass = isinstance(error, EngineError) and not isinstance(error, DeviceLostError)
            following = next(waiting, None) if may_pass else None
            if following is None:
                raise
            log.warning("%s passes over engine %s, which does not start: %s", AUTO, engine.name, error)
            chosen = following


def _get_ready(engine: Engine, bundle: Bundle, twin: Bundle | None, report: Report | None) -> None:
    needed = [(bundle, engine)]
    if twin is not None:
        needed.append((twin, engine.at_precision("fp32")))
    for each, at in needed:
        at.get_ready(each, [stage for stage in each.manifest.stages if at.takes(stage)], report)
