"""A verification as plain values for ``--json``, and the tables and lines that the terminal and pages make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.measuring.limits import AUDIBLE_DBFS, SDR_CHANGE_DB
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.terminal.tables import NOTHING, Table, decibels, optional, print_table
from mrsep_deploy.verification.figures import Figures
from mrsep_deploy.verification.results import StemResult, Verification

if TYPE_CHECKING:
    from mrsep_deploy.verification.bisect import Bisection

Plain = Mapping[str, Any]

RENAMED = {"snr": "snr_db", "si_sdr": "si_sdr_db", "level": "level_db"}
COPIED = ("model", "digest", "precision", "engine", "note", "reference", "segments", "failures", "passes")

STAGE_NOTE = "Each stage on the reference's inputs: the error is its own. Worst: index in the tensor."
STEM_NOTE = "End to end. Worst: largest error in sample values, and where."


def to_plain(found: Verification) -> dict[str, Any]:
    """Returns everything in a verification, numbers unrounded; dB that are infinite (equal, or silent) are None."""
    limits = {
        "snr_db": found.limit.decibels,
        "reason": found.limit.reason,
        "audible_dbfs": AUDIBLE_DBFS,
        "sdr_change_db": SDR_CHANGE_DB,
    }
    stages = {
        stage.stage: {name: _plain_figures(figures) for name, figures in stage.tensors.items()}
        for stage in found.stages
    }
    copied = {name: getattr(found, name) for name in COPIED}
    stems = [_plain_stem(stem) for stem in found.stems]
    made: dict[str, Any] = plain({**copied, "limits": limits, "stages": stages, "stems": stems})
    return made


def about(bundle: Bundle, command: str) -> dict[str, object]:
    """Returns what belongs to the result beside what was found: the command, the machine, facts of the model."""
    manifest = bundle.manifest
    return {
        "command": command,
        "machine": machine_info(),
        "trained": manifest.model.trained,
        "licence": asdict(manifest.licence),
        "branches": [asdict(branch) for branch in manifest.branches],
        "fusion": [asdict(shares) for shares in manifest.fusion],
    }


def _plain_stem(stem: StemResult) -> dict[str, object]:
    return {
        "track": stem.track,
        "source": stem.source,
        **_plain_figures(stem.figures),
        "worst_seconds": stem.seconds,
        "limit_db": stem.limit,
        "pytorch_float32_snr_db": stem.yardstick,
        "sdr_db": stem.sdr,
        "sdr_change_db": stem.sdr_change,
        "judged": stem.judged,
        "passes": not stem.failures,
    }


def _plain_figures(figures: Figures) -> dict[str, object]:
    return {RENAMED.get(name, name): value for name, value in asdict(figures).items()}


def bisection_to_plain(found: Bisection, limit: float) -> object:
    """Returns everything in a bisection; ``alone_db`` is None where values are not finite."""
    stages, kept = (
        [{"stage": group.stage, "nodes": group.nodes, "alone_db": group.alone(limit)} for group in groups]
        for groups in (found.stages, found.kept)
    )
    return plain(
        {
            "stages": stages,
            "kept": kept,
            "error_over_allowed_before": found.before,
            "error_over_allowed_after": found.after,
            "proved": found.proved,
            "measurements": found.measurements,
        }
    )


def print_verification(screen: Console, found: Plain) -> None:
    """Prints what ran against what, stages, stems, limits with their reasons, verdict."""
    screen.print(
        f"{found['model']} ({found['precision']}) on {found['engine']}", style="bold", soft_wrap=True
    )
    screen.print(f"against {found['reference']}", soft_wrap=True)
    if found["note"]:
        screen.print(found["note"], style="yellow", soft_wrap=True)
    for table in (stage_table(found), stem_table(found)):
        _print_titled(screen, table)
    screen.print()
    for line in limit_lines(found):
        screen.print(line, style="dim", soft_wrap=True)
    _print_verdict(screen, found)


def _print_titled(screen: Console, table: Table) -> None:
    screen.print(f"\n{table.title}", style="bold")
    print_table(screen, table)


def _print_verdict(screen: Console, found: Plain) -> None:
    """Prints that it passed, or every failure on a line of its own."""
    if found["passes"]:
        screen.print("passed", style="bold green")
        return
    for failure in found["failures"]:
        screen.print(failure, style="red", soft_wrap=True)
    screen.print(f"failed: {len(found['failures'])} of the above", style="bold red")


def limit_lines(found: Plain) -> list[str]:
    """Returns every limit with its reason."""
    limits = found["limits"]
    audible = f"{limits['audible_dbfs']:g} dBFS"
    lines = [
        f"Limit {limits['snr_db']:g} dB SNR for every stem above {audible}: {limits['reason']}.",
        f"Stems below {audible} are reported, not judged: what is 60 dB below full scale nobody hears beside the "
        "others.",
        "No NaN and no infinity anywhere: nothing downstream recovers from them.",
    ]
    if _has_truth(found):
        change = limits["sdr_change_db"]
        lines.append(
            f"Limit {change:g} dB change in SDR: half of the last digit that separation is reported with."
        )
    return lines


def _has_truth(found: Plain) -> bool:
    return any(stem["sdr_db"] is not None for stem in found["stems"])


def snr(figures: Plain) -> float:
    """Returns the SNR in dB; JSON has None for the infinite: exact, or not a number."""
    if figures["snr_db"] is not None:
        return float(figures["snr_db"])
    finite = not (figures["nan"] or figures["inf"])
    return math.inf if finite and figures["worst"] == 0 else -math.inf


def worst_output(tensors: Mapping[str, Plain]) -> tuple[str, Plain]:
    """Returns the output of a stage that is farthest from the reference."""
    name = min(tensors, key=lambda name: snr(tensors[name]))
    return name, tensors[name]


def _ratios(found: Plain) -> tuple[str, str]:
    """Returns the cells of SNR and SI-SDR."""
    ratio, si_sdr = snr(found), found["si_sdr_db"]
    unknown = "exact" if ratio == math.inf else NOTHING
    return decibels(ratio), unknown if si_sdr is None else decibels(si_sdr)


def stage_table(found: Plain) -> Table:
    """Returns the worst output of every stage; the counts are those of all its outputs."""
    columns = ("stage", "worst output", "SNR", "SI-SDR", "worst", "at", "NaN", "Inf", "saturated")
    rows = []
    for stage, tensors in found["stages"].items():
        name, worst = worst_output(tensors)
        at = ",".join(map(str, worst["worst_at"]))
        counts = [str(sum(each[what] for each in tensors.values())) for what in ("nan", "inf", "saturated")]
        rows.append([stage, name, *_ratios(worst), optional(worst["worst"], "{:.1e}"), at, *counts])
    return Table("Stages", columns, rows, text_columns=(0, 1, 5), note=STAGE_NOTE)


def stem_table(found: Plain) -> Table:
    """Returns the figures of every stem of every track."""
    columns = ["track", "stem", "level", "SNR", "limit", "SI-SDR", "worst", "at", "NaN", "Inf"]
    columns += ["SDR", "change"] if _has_truth(found) else []
    rows = []
    for stem in found["stems"]:
        ratio, si_sdr = _ratios(stem)
        cells = [
            stem["track"],
            stem["source"],
            decibels(-math.inf if stem["level_db"] is None else stem["level_db"]),
            ratio,
            optional(stem["limit_db"] if stem["judged"] else None, "{:.1f}"),
            si_sdr,
            optional(stem["worst"], "{:.1e}"),
            f"{stem['worst_seconds']:.3f} s",
            str(stem["nan"]),
            str(stem["inf"]),
        ]
        if _has_truth(found):
            cells += [optional(stem["sdr_db"], "{:.2f}"), optional(stem["sdr_change_db"], "{:+.4f}")]
        passed = "" if stem["judged"] else "quiet"
        rows.append([*cells, passed if stem["passes"] else "failed"])
    failed = [number for number, stem in enumerate(found["stems"]) if not stem["passes"]]
    words = (0, 1, len(columns))
    return Table("Stems", [*columns, ""], rows, text_columns=words, note=STEM_NOTE, bad=failed)


def print_bisections(screen: Console, searches: Sequence[Bisection], limit: float, after: Plain) -> None:
    """Prints what each search found, and the verdict with the last one's plan.

    ``limit`` is the least SNR of a stem in dB, ``after`` the verification with that plan, as plain values.
    """
    for search in searches:
        for title, groups in (("Loss by stage", search.stages), ("To be kept in float32", search.kept)):
            rows = []
            for group in groups:
                first, *others = group.nodes
                nodes = f"{first} … {others[-1]} ({len(others) + 1})" if others else first
                rows.append([group.stage, nodes, decibels(group.alone(limit))])
            _print_titled(screen, Table(title, ("stage", "nodes", "alone"), rows, text_columns=(0, 1)))
        screen.print(
            "SNR of the worst stem with only these nodes in low precision; "
            f"{search.measurements} groups of nodes were measured.",
            style="dim",
            soft_wrap=True,
        )
    if not searches[-1].proved:
        screen.print("No plan was found that meets the limit.", style="red")
    screen.print("\nWith that plan", style="bold")
    print_table(screen, stem_table(after))
    _print_verdict(screen, after)
