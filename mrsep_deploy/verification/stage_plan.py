"""Chooses which stages compute in lower precision on this processor: the fastest choice whose stems keep a limit.

Each stage is timed in either precision, the two in turns, and what it costs the stems alone in lower precision is
measured as for a bisection. Errors of different stages are independent, so their energies add up. The fastest choice
whose sum is allowed is proved on all of the songs; where it fails, less is allowed for the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mrsep_deploy.errors import UsageError
from mrsep_deploy.measuring.rounds import clocked, race
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.verification.bisect import MARGIN, PROOFS, Group, stage_costs
from mrsep_deploy.verification.chain import Array, Chain
from mrsep_deploy.verification.job import Job, Request, opened
from mrsep_deploy.verification.results import Verification
from mrsep_deploy.verification.tracks import Progress, silent

ROUNDS = 7
"""Of timing; the median is taken."""
MOST = 16
"""Stages among which every choice is looked at; more stay in float32, those that would gain least."""
WHOLE = ("*",)
"""In a plan's ``keep``, all nodes of a stage."""


@dataclass(frozen=True)
class StageRow:
    """One stage.

    Attributes:
        exact, low: seconds of a segment in float32 and in lower precision, medians.
        alone: SNR in dB of the worst stem, about, if only this stage is of lower precision.
        chosen: it computes in lower precision.
    """

    stage: str
    exact: float
    low: float
    alone: float
    chosen: bool = False


@dataclass(frozen=True)
class StagePlan:
    """What was chosen, and the verification that proves it."""

    plan: PrecisionPlan
    rows: Sequence[StageRow]
    proof: Verification

    @property
    def snr(self) -> float | None:
        """In dB, of the worst stem that counts; None where all pass by the mix."""
        return min((stem.figures.snr for stem in self.proof.stems if stem.counts), default=None)


def choose_stages(request: Request, progress: Progress = silent) -> StagePlan:
    """Chooses, and proves the choice.

    Args:
        request: for a float32 bundle, a precision below float32, songs and a limit.
        progress: called with what happens now, how many steps are done and how many there are.

    Raises:
        UsageError: no stage may be of lower precision.
        MrsepError: the engine does not compute in it, or a song cannot be read.
    """
    with opened(request) as job:
        assert job.plan is not None
        found = job.verify(progress)
        groups = stage_costs(request.bundle, job.engine, job.plan, found.probes, progress)
        costs = {group.stage: group for group in groups}
        times = _times(job, found.probes[0].batch.mix, progress)
        rows = [
            StageRow(name, *times[name], cost.alone(found.limit.decibels)) for name, cost in costs.items()
        ]
        target = MARGIN
        for _ in range(PROOFS):
            chosen = _fastest(rows, [costs[row.stage] for row in rows], target)
            if not chosen:
                break
            keep = {
                stage.name: WHOLE
                for stage in request.bundle.manifest.graph_stages
                if stage.name not in chosen
            }
            plan = replace(job.plan, keep=keep)
            proof = found if not keep else job.verify(progress, plan)
            if proof.passes:
                return StagePlan(plan, [replace(row, chosen=row.stage in chosen) for row in rows], proof)
            target /= 4
        best = max((row.alone for row in rows), default=0.0)
        raise UsageError(
            f"no stage of {found.model} gains time in {job.plan.precision} and keeps every stem at "
            f"{found.limit.decibels:g} dB; the one that costs least leaves {best:.0f} dB",
            "Leave out --precision, or give a lower --limit.",
        )


def _times(job: Job, mix: Array, progress: Progress) -> dict[str, tuple[float, float]]:
    """Seconds of every stage in float32 and in lower precision, medians."""
    found: dict[str, tuple[float, float]] = {}
    with contextlib.ExitStack() as stack:
        exact = stack.enter_context(Chain(job.request.bundle, job.engine.at_precision("fp32")))
        low = stack.enter_context(Chain(job.candidate(stack), job.engine))
        tensors = exact.run(mix)
        stages = job.request.bundle.manifest.graph_stages
        for number, stage in enumerate(stages):
            progress(f"timing {stage.name}", number, len(stages))
            found[stage.name] = _raced(stage.name, exact, low, tensors)
    return found


def _raced(stage: str, exact: Chain, low: Chain, tensors: Mapping[str, Array]) -> tuple[float, float]:
    turns = {
        "exact": clocked(lambda _round: exact.stage(stage, tensors)),
        "low": clocked(lambda _round: low.stage(stage, tensors)),
    }
    found = race(turns, ROUNDS)
    if found.interrupted:
        raise KeyboardInterrupt
    for error in found.failed.values():
        raise error
    return float(np.median(found.times["exact"])), float(np.median(found.times["low"]))


def _fastest(rows: Sequence[StageRow], costs: Sequence[Group], target: float) -> frozenset[str]:
    """The stages of lower precision in the fastest choice whose error is predicted at ``target`` or below.

    Args:
        costs: of each of the rows.
        target: error energy over what is allowed, on every probe.
    """
    able = sorted(range(len(rows)), key=lambda n: rows[n].low - rows[n].exact)[:MOST]
    able = [n for n in able if rows[n].low < rows[n].exact and np.isfinite(costs[n].excess).all()]
    if not able:
        return frozenset()
    # one choice a row, one stage a column
    choices = np.arange(2 ** len(able))[:, np.newaxis] >> np.arange(len(able)) & 1
    errors = choices @ np.array([costs[n].excess for n in able])
    gains = choices @ np.array([rows[n].exact - rows[n].low for n in able])
    best = int(np.argmax(np.where(errors.max(axis=1) <= target, gains, -1.0)))
    return frozenset(rows[n].stage for n, taken in zip(able, choices[best], strict=True) if taken)
