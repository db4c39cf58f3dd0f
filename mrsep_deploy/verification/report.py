"""A verification as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mrsep_deploy.measuring.limits import AUDIBLE_DBFS, SDR_CHANGE_DB
from mrsep_deploy.terminal.tables import table
from mrsep_deploy.verification.figures import Figures
from mrsep_deploy.verification.plain import alone
from mrsep_deploy.verification.results import StageResult, StemResult, Verification

if TYPE_CHECKING:
    from mrsep_deploy.verification.bisect import Bisection, Group

STAGE_NOTE = "Each stage on the reference's inputs: the error is its own. Worst: index in the tensor."
STEM_NOTE = "End to end. Worst: largest error in sample values, and where."


def print_verification(screen: Console, found: Verification) -> None:
    """Everything: what ran against what, stages, stems, limits with their reasons, verdict."""
    screen.print(f"{found.model} ({found.precision}) on {found.engine}", style="bold", soft_wrap=True)
    screen.print(f"against {found.reference}", soft_wrap=True)
    if found.note:
        screen.print(found.note, style="yellow", soft_wrap=True)
    screen.print("\nStages", style="bold")
    screen.print(stage_table(found.stages))
    screen.print(STAGE_NOTE, style="dim", soft_wrap=True)
    screen.print("\nStems", style="bold")
    screen.print(stem_table(found.stems))
    screen.print(STEM_NOTE, style="dim", soft_wrap=True)
    screen.print()
    for line in limit_lines(found):
        screen.print(line, style="dim", soft_wrap=True)
    print_verdict(screen, found)


def print_verdict(screen: Console, found: Verification) -> None:
    """Pass, or every failure on a line of its own."""
    if found.passes:
        screen.print("passed", style="bold green")
        return
    for failure in found.failures:
        screen.print(failure, style="red", soft_wrap=True)
    screen.print(f"failed: {len(found.failures)} of the above", style="bold red")


def limit_lines(found: Verification) -> list[str]:
    """Every limit with its reason."""
    lines = [
        f"Limit {found.limit.decibels:g} dB SNR for every stem above {AUDIBLE_DBFS:g} dBFS: {found.limit.reason}.",
        f"Stems below {AUDIBLE_DBFS:g} dBFS are reported, not judged: what is 60 dB below full scale nobody hears "
        "beside the others.",
        "No NaN and no infinity anywhere: nothing downstream recovers from them.",
    ]
    if any(stem.sdr is not None for stem in found.stems):
        lines.append(
            f"Limit {SDR_CHANGE_DB:g} dB change in SDR: half of the last digit that separation is reported with."
        )
    return lines


def stage_table(stages: Sequence[StageResult]) -> Table:
    """The worst output of every stage; the counts are those of all its outputs."""
    columns = ("stage", "worst output", "SNR", "SI-SDR", "worst", "at", "NaN", "Inf", "saturated")
    made = table(*columns, right=(*columns[2:5], *columns[6:]))
    for result in stages:
        name, worst = result.worst
        at = ",".join(map(str, worst.worst_at))
        made.add_row(result.stage, name, *_pair(worst), f"{worst.worst:.1e}", at, *_counts(result))
    return made


def _counts(result: StageResult) -> tuple[str, ...]:
    outputs = result.tensors.values()
    return tuple(str(sum(getattr(each, what) for each in outputs)) for what in ("nan", "inf", "saturated"))


def stem_table(stems: Sequence[StemResult]) -> Table:
    """Every stem of every track."""
    columns = ["track", "stem", "level", "SNR", "limit", "SI-SDR", "worst", "at", "NaN", "Inf"]
    with_truth = any(stem.sdr is not None for stem in stems)
    columns += ["SDR", "change"] if with_truth else []
    made = table(*columns, "", right=columns[2:])
    previous = ""
    for stem in stems:
        figures = stem.figures
        cells = [
            stem.track if stem.track != previous else "",
            stem.source,
            signed(figures.level),
            *_pair(figures, f"{stem.limit:.1f}" if stem.judged else "–"),
            f"{figures.worst:.1e}",
            f"{stem.seconds:.3f} s",
            str(figures.nan),
            str(figures.inf),
        ]
        if with_truth:
            cells += ["–", "–"] if stem.sdr is None else [f"{stem.sdr:.2f}", f"{stem.sdr_change:+.4f}"]
        made.add_row(*cells, _verdict(stem), style="red" if stem.failures else None)
        previous = stem.track
    return made


def _verdict(stem: StemResult) -> str:
    return "failed" if stem.failures else "" if stem.judged else "quiet"


def _pair(figures: Figures, between: str | None = None) -> tuple[str, ...]:
    """SNR and SI-SDR, the limit between them where there is one."""
    middle = () if between is None else (between,)
    return (signed(figures.snr), *middle, signed(figures.si_sdr))


def signed(decibels: float) -> str:
    """A level or a ratio to a tenth of a dB: ``-13.4``, ``exact``, or ``-∞``."""
    if math.isinf(decibels):
        return "exact" if decibels > 0 else "-∞"
    return f"{decibels:.1f}"


def print_bisections(
    screen: Console, searches: Sequence[Bisection], before: Verification, after: Verification
) -> None:
    """What each search found, and the verdict with the last one's plan."""
    for search in searches:
        screen.print("\nLoss by stage", style="bold")
        screen.print(group_table(search.stages, before.limit.decibels))
        screen.print("\nTo be kept in float32", style="bold")
        screen.print(group_table(search.kept, before.limit.decibels))
        screen.print(
            "SNR of the worst stem with only these nodes in low precision; "
            f"{search.measurements} groups of nodes were measured.",
            style="dim",
            soft_wrap=True,
        )
    if not searches[-1].proved:
        screen.print("No plan was found that meets the limit.", style="red")
    screen.print("\nWith that plan", style="bold")
    screen.print(stem_table(after.stems))
    print_verdict(screen, after)


def group_table(groups: Sequence[Group], limit: float) -> Table:
    """Groups of nodes, and the SNR in dB that each alone would leave."""
    made = table("stage", "nodes", "alone", right=("alone",))
    for group in groups:
        first, last, count = group.nodes[0], group.nodes[-1], len(group.nodes)
        nodes = first if count == 1 else f"{first} … {last} ({count})"
        made.add_row(group.stage, nodes, signed(alone(group, limit)))
    return made
