"""Measuring which run plan is fastest here: a champion, and challengers one after the other.

Two at a time are in memory and take turns, so a slow moment of the machine meets both. A challenger wins when
it is faster beyond doubt and by enough to be worth its memory.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.engines import engine_class
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import EngineError
from mrsep_deploy.measuring.rounds import Race, Turn, clocked, race
from mrsep_deploy.measuring.statistics import ratio_interval
from mrsep_deploy.runtime.plan import RunPlan
from mrsep_deploy.runtime.scheduler import Ticket
from mrsep_deploy.separation.separator import Separator

ROUNDS = 5
WORTH = 1.02
"""How many times faster a challenger has to be at least: it holds more memory than one segment at a time."""

Report = Callable[[str, int, int], None]
"""Called with what happens now, how many steps are done and how many there are."""


@dataclass(frozen=True)
class Trial:
    """One challenge.

    Attributes:
        plan: the challenger; the first trial is the champion's own.
        seconds: of a segment, median; None where it could not run.
        times_faster: than the champion of that moment, ``median``, ``low`` and ``high``; None for the first.
        won: whether it is the champion now.
        reason: why it could not run.
    """

    plan: RunPlan
    seconds: float | None
    times_faster: Mapping[str, float] | None = None
    won: bool = False
    reason: str = ""


def candidates(manifest: Manifest, threads: int) -> list[RunPlan]:
    """Plans to try: one segment at a time first, then branches side by side, then more and more segments."""
    found = [RunPlan()]
    if threads > 1 and len(manifest.branches) > 1:
        found.append(RunPlan("concurrent"))
    lanes = 2
    while lanes < threads:
        found.append(RunPlan(lanes=lanes))
        lanes *= 2
    if threads > 1:
        found.append(RunPlan(lanes=threads))
    return found


def tune(bundle: Bundle, engine: str, options: EngineOptions, report: Report) -> list[Trial]:
    """Let all plans challenge the best so far; the last winner among the trials is the one to keep.

    Args:
        bundle: what to run.
        engine: name of an engine on a CPU.
        options: its threads and precision.
        report: called with what happens.

    Raises:
        EngineError: the bundle does not run at all.
    """
    first, *challengers = candidates(bundle.manifest, options.budget)
    steps = len(challengers) + 1
    with contextlib.ExitStack() as stack:
        report(first.title, 0, steps)
        champion = stack.enter_context(_opened(bundle, engine, options, first))
        alone = race({first.title: _work(champion, first.lanes)}, ROUNDS)
        _require(alone, first.title)
        trials = [Trial(first, float(np.median(alone.times[first.title])) / (2 * first.lanes), won=True)]
        for number, plan in enumerate(challengers):
            report(plan.title, number + 1, steps)
            trial, opened = _challenge(bundle, engine, options, champion, trials, plan)
            trials.append(trial)
            if opened is not None:
                stack.close()
                champion = stack.enter_context(opened)
    report("done", steps, steps)
    return trials


def best(trials: Sequence[Trial]) -> RunPlan:
    """The champion at the end."""
    return [trial.plan for trial in trials if trial.won][-1]


def _challenge(
    bundle: Bundle,
    engine: str,
    options: EngineOptions,
    champion: Separator,
    trials: Sequence[Trial],
    plan: RunPlan,
) -> tuple[Trial, Separator | None]:
    """One challenge, and the challenger where it has won; otherwise it is closed."""
    with contextlib.ExitStack() as stack:
        try:
            challenger = stack.enter_context(_opened(bundle, engine, options, plan))
        except (EngineError, MemoryError) as error:
            return Trial(plan, None, reason=str(error) or "there is not enough memory"), None
        lanes = max(plan.lanes, best(trials).lanes)
        found = race({"champion": _work(champion, lanes), "challenger": _work(challenger, lanes)}, ROUNDS)
        _require(found, "champion")
        if found.failed:
            return Trial(plan, None, reason=str(found.failed["challenger"])), None
        ratio = ratio_interval(found.times["champion"], found.times["challenger"])
        seconds = float(np.median(found.times["challenger"])) / (2 * lanes)
        won = ratio["low"] > 1 and ratio["median"] > WORTH
        if won:
            stack.pop_all()
        return Trial(plan, seconds, ratio, won), challenger if won else None


def _opened(bundle: Bundle, engine: str, options: EngineOptions, plan: RunPlan) -> Separator:
    made = engine_class(engine)(options)
    return Separator(bundle, engine=made, mode=plan.mode, lanes=plan.lanes)


def _work(separator: Separator, lanes: int) -> Turn:
    """Two segments a lane, as many under way as may be."""
    scheduler, manifest = separator.scheduler, separator.manifest
    model = manifest.model
    random = np.random.default_rng(0)
    mix = random.standard_normal((manifest.batch, model.audio_channels, model.segment_samples), np.float32)

    def run(_turn: int) -> None:
        pending: deque[Ticket] = deque()
        for _ in range(2 * lanes):
            if len(pending) == scheduler.capacity:
                scheduler.result(pending.popleft())
            pending.append(scheduler.submit(mix))
        while pending:
            scheduler.result(pending.popleft())

    return clocked(run)


def _require(found: Race, name: str) -> None:
    """Raise what ended a race, or one contender's part in it."""
    if found.interrupted:
        raise KeyboardInterrupt
    if name in found.failed:
        raise found.failed[name]
