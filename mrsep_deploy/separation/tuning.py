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
    powers = (2**n for n in range(1, threads.bit_length()))
    return found + [RunPlan(lanes=lanes) for lanes in sorted({*powers, threads} - {1})]


def tune(
    bundle: Bundle, engine: str, options: EngineOptions, report: Callable[[str, int, int], None]
) -> list[Trial]:
    """Let all plans challenge the best so far; the last winner among the trials is the one to keep.

    Args:
        engine: name of an engine on a CPU.
        options: its threads and precision.
        report: called with what happens now, how many steps are done and how many there are.

    Raises:
        EngineError: the bundle does not run at all.
    """

    def opened(plan: RunPlan) -> Separator:
        return Separator(bundle, engine=engine_class(engine)(options), mode=plan.mode, lanes=plan.lanes)

    first, *challengers = candidates(bundle.manifest, options.budget)
    steps = len(challengers) + 1
    with contextlib.ExitStack() as stack:
        report(first.title, 0, steps)
        champion = stack.enter_context(opened(first))
        alone = _raced({"champion": _work(champion, first.lanes)})
        trials = [Trial(first, float(np.median(alone.times["champion"])) / (2 * first.lanes), won=True)]
        for number, plan in enumerate(challengers):
            report(plan.title, number + 1, steps)
            with contextlib.ExitStack() as challenge:
                try:
                    challenger = challenge.enter_context(opened(plan))
                except (EngineError, MemoryError) as error:
                    trials.append(Trial(plan, None, reason=str(error) or "there is not enough memory"))
                    continue
                trials.append(_challenge(champion, best(trials), challenger, plan))
                if trials[-1].won:
                    stack.close()
                    champion = challenger
                    stack.push(challenge.pop_all())
    report("done", steps, steps)
    return trials


def best(trials: Sequence[Trial]) -> RunPlan:
    """The champion at the end."""
    return [trial.plan for trial in trials if trial.won][-1]


def _challenge(champion: Separator, before: RunPlan, challenger: Separator, plan: RunPlan) -> Trial:
    """One challenge of the champion, whose plan is ``before``."""
    lanes = max(plan.lanes, before.lanes)
    found = _raced({"champion": _work(champion, lanes), "challenger": _work(challenger, lanes)})
    if found.failed:
        return Trial(plan, None, reason=str(found.failed["challenger"]))
    ratio = ratio_interval(found.times["champion"], found.times["challenger"])
    seconds = float(np.median(found.times["challenger"])) / (2 * lanes)
    return Trial(plan, seconds, ratio, won=ratio["low"] > 1 and ratio["median"] > WORTH)


def _raced(contenders: Mapping[str, Turn]) -> Race:
    """A race, whole; raises what ended it, or the champion's part in it."""
    found = race(contenders, ROUNDS)
    if found.interrupted:
        raise KeyboardInterrupt
    if "champion" in found.failed:
        raise found.failed["champion"]
    return found


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
