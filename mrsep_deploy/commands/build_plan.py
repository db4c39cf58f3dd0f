"""``mrsep-deploy build`` for engines on a CPU: measure how segments run fastest, and keep what won."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.engines.contract import EngineOptions
    from mrsep_deploy.precision.names import AskedPrecision
    from mrsep_deploy.separation.tuning import Trial
    from mrsep_deploy.terminal.progress import Reporter
    from mrsep_deploy.terminal.tables import Table
    from mrsep_deploy.verification.stage_plan import StagePlan

LIMIT = 40.0
"""Least SNR in dB of every stem beside float32, where none is asked for."""


@dataclass(frozen=True)
class PlanRequest:
    """What was asked for.

    Attributes:
        music: songs to choose stages of lower precision by; none for no choice.
        limit: the SNR in dB that their stems are to keep.
    """

    engine: str
    precision: AskedPrecision | None
    threads: int
    music: tuple[Path, ...]
    limit: float | None
    quiet: bool
    as_json: bool


def measure_plan(given: Bundle, bundle: Bundle, options: EngineOptions, asked: PlanRequest) -> None:
    """Measure, keep, and print.

    Args:
        given: the bundle as it was named.
        bundle: the same in the precision that was asked for.

    Raises:
        EngineUnavailableError: the engine does not work here, or not in that precision.
        UsageError: stages are to be chosen where there is no choice, or none may be of lower precision.
        OutputError: the plan cannot be kept.
    """
    from mrsep_deploy.engines.choice import choose
    from mrsep_deploy.precision.requested import keeping
    from mrsep_deploy.runtime.plan import keep_plan
    from mrsep_deploy.separation.tuning import best, tune
    from mrsep_deploy.terminal.progress import print_result, step_progress

    engine = choose(asked.engine, options).engine
    with step_progress(asked.quiet) as report:
        stages, timed = _chosen(given, engine.emulation, asked, report), bundle
        if stages is not None:
            timed = keeping(given, asked.precision, stages.plan.keep).at_batch(bundle.manifest.batch)
        trials = tune(timed, asked.engine, options, report)
    winner = best(trials)
    if stages is not None:
        winner = replace(winner, keep=stages.plan.keep, snr=stages.snr)
    keep_plan(bundle, engine, winner)

    def show(screen: Console) -> None:
        from mrsep_deploy.terminal.tables import print_table

        if stages is not None:
            print_table(screen, _stage_table(stages))
            screen.print()
        print_table(screen, _table(trials))
        batch = f" --batch {bundle.manifest.batch}" if bundle.manifest.batch > 1 else ""
        lower = f" --precision {asked.precision}" if stages is not None else ""
        screen.print(
            f"\nrun now does it so: {winner.title} (with --engine {asked.engine}{batch}{lower} and as many threads)",
            soft_wrap=True,
        )

    def plain() -> object:
        tried = [_plain(trial) for trial in trials]
        if stages is None:
            return tried
        return {"stages": _plain_stages(stages), "snr_db": stages.snr, "plans": tried}

    print_result(asked.as_json, plain, show, asked.quiet)


def _chosen(given: Bundle, emulation: str, asked: PlanRequest, report: Reporter) -> StagePlan | None:
    """Which stages are to be of lower precision, if songs were given to choose them by."""
    if not asked.music:
        if asked.limit is not None:
            raise click.UsageError("--limit is for --music, the songs whose stems are to keep it")
        return None
    if asked.precision != "bf16" or emulation:
        raise click.UsageError(
            "--music chooses stages in bfloat16, which openvino computes: give --engine openvino --precision bf16"
        )
    if given.manifest.precision != "float32":
        raise UsageError(
            f"{given.manifest.name} holds {given.manifest.precision} graphs, and --music chooses between these and "
            "float32 ones",
            "Give the float32 bundle, or export the checkpoint again.",
        )
    from mrsep_deploy.verification.job import Request
    from mrsep_deploy.verification.stage_plan import choose_stages

    limit = LIMIT if asked.limit is None else asked.limit
    request = Request(
        given,
        asked.engine,
        asked.precision,
        audio=asked.music,
        limit=limit,
        threads=asked.threads,
        bisect=True,
    )
    return choose_stages(request, report)


def _plain(trial: Trial) -> dict[str, object]:
    return {
        "mode": trial.plan.mode,
        "lanes": trial.plan.lanes,
        "seconds": trial.seconds,
        "times_faster": trial.times_faster and dict(trial.times_faster),
        "won": trial.won,
        "reason": trial.reason,
    }


def _plain_stages(stages: StagePlan) -> list[dict[str, object]]:
    return [
        {
            "stage": row.stage,
            "fp32_seconds": row.exact,
            "bf16_seconds": row.low,
            "alone_db": row.alone,
            "precision": "bf16" if row.chosen else "fp32",
        }
        for row in stages.rows
    ]


def _stage_table(stages: StagePlan) -> Table:
    from mrsep_deploy.terminal.tables import Table, decibels, duration

    rows = [
        [
            row.stage,
            duration(row.exact),
            duration(row.low),
            f"{row.exact / row.low:.2f}",
            decibels(row.alone),
            "bf16" if row.chosen else "fp32",
        ]
        for row in stages.rows
    ]
    limit = stages.proof.limit
    proof = f"every error {limit.below_mix:g} dB below the mix or more"
    if stages.snr is not None:
        proof = f"{stages.snr:.1f} dB in the worst stem, {limit.decibels:g} asked for"
    note = f"Alone: SNR of the worst stem if only this stage is in bfloat16. As they run: {proof}."
    return Table(
        "Stages", ("stage", "fp32", "bf16", "times faster", "alone, dB", "runs in"), rows, (0, 5), note=note
    )


def _table(trials: Sequence[Trial]) -> Table:
    from mrsep_deploy.terminal.tables import NOTHING, Table, optional

    rows = []
    for trial in trials:
        faster = NOTHING
        if trial.times_faster is not None:
            faster = "{median:.2f} [{low:.2f}, {high:.2f}]".format_map(trial.times_faster)
        verdict = "could not run: " + trial.reason if trial.reason else "won" if trial.won else "lost"
        shown = verdict if trial.times_faster or trial.reason else ""
        rows.append([trial.plan.title, optional(trial.seconds, "{:.2f} s"), faster, shown])
    columns = ("run plan", "a segment", "times faster than the best before", "")
    return Table("Run plans", columns, rows, (0, 2, 3))
