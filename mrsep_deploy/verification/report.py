"""A verification as plain values for ``--json``, and the tables and lines that the terminal and pages make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.measuring.limits import BELOW_MIX_DB, FLOAT16_DB, ROUNDED_DBFS, SILENT_DBFS
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.terminal.tables import NOTHING, Table, decibels, optional, print_table
from mrsep_deploy.verification.figures import Figures
from mrsep_deploy.verification.results import StemResult, Verification

if TYPE_CHECKING:
    from mrsep_deploy.verification.bisect import Bisection

Plain = Mapping[str, Any]

RENAMED = {"snr": "snr_db", "si_sdr": "si_sdr_db", "level": "level_db"}
COPIED = (
    "model",
    "digest",
    "precision",
    "engine",
    "note",
    "reference",
    "segments",
    "gate",
    "failures",
    "passes",
)

STAGE_NOTE = "Each stage on the reference's inputs: the error is its own. Worst: index in the tensor."
STEM_NOTE = (
    "End to end, dB. Below mix: the mix over the error. Worst: largest error in sample values, and where."
)


def to_plain(found: Verification) -> dict[str, Any]:
    """Returns everything in a verification, numbers unrounded; dB that are infinite (equal, or silent) are None.

    ``passes_by`` of a stem is ``SNR``, ``mix``, ``silence`` or None (:mod:`mrsep_deploy.measuring.limits`), and
    ``margin_db`` how much larger its error may be.
    """
    limits = {
        "snr_db": found.limit.decibels,
        "reason": found.limit.reason,
        "below_mix_db": found.limit.below_mix,
        "silent_mix_dbfs": SILENT_DBFS,
        "error_in_silence_dbfs": ROUNDED_DBFS,
        "sdr_change_db": found.limit.sdr_change,
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
        "below_mix_db": stem.judgement.powers.below_mix,
        "limit_db": stem.judgement.least,
        "margin_db": stem.judgement.margin,
        "pytorch_float32_snr_db": stem.yardstick,
        "sdr_db": stem.sdr,
        "sdr_change_db": stem.sdr_change,
        "passes_by": stem.judgement.passes_by,
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
    """Returns every limit with its reason, and how many segments ran in float32."""
    limits = found["limits"]
    lines = [
        f"Limit {limits['snr_db']:g} dB SNR: {limits['reason']}.",
        f"A stem also passes if its error is {limits['below_mix_db']:g} dB below the mix: {_why_below(limits)}.",
        f"In a mix below {limits['silent_mix_dbfs']:g} dBFS, an error below {limits['error_in_silence_dbfs']:.0f} dBFS "
        "passes: rounding to 16 bits costs as much.",
        "No NaN and no infinity anywhere: nothing downstream recovers from them.",
    ]
    if _has_truth(found):
        change = limits["sdr_change_db"]
        lines.append(
            f"Limit {change:g} dB change in SDR: half of the last digit that separation is reported with."
        )
    if gate := found.get("gate"):
        lines.append(
            f"{gate['in_float32']} of {gate['segments']} segments ran in float32: {found['precision']} loses those "
            f"of burstiness above {gate['burstiness']:g}."
        )
        if gate["in_float32"] == gate["segments"]:
            lines.append(
                f"So the stems prove nothing of {found['precision']}: give --gate off, or other audio."
            )
    return lines


def _why_below(limits: Plain) -> str:
    """Returns the reason of the limit below the mix."""
    if limits["below_mix_db"] == FLOAT16_DB + BELOW_MIX_DB:
        return "16 bits of a song of usual loudness do not hold it"
    return f"{BELOW_MIX_DB:g} dB beyond the limit of its SNR, as for float16, where 16 bits do not hold the error"


def _has_truth(found: Plain) -> bool:
    return any(stem["sdr_db"] is not None for stem in found["stems"])


def snr(figures: Plain) -> float:
    """Returns the SNR in dB; JSON has None for the infinite: exact, or not a number."""
    if figures["snr_db"] is not None:
        return float(figures["snr_db"])
    finite = not (figures["nan"] or figures["inf"])
    return math.inf if finite and figures["worst"] == 0 else -math.inf


def below_mix(stem: Plain) -> float:
    """Returns how far the error lies below the mix in dB; JSON has None for the infinite."""
    known = stem["below_mix_db"]
    unknown = math.inf if snr(stem) == math.inf else -math.inf
    return unknown if known is None else float(known)


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
    columns = ["track", "stem", "level", "SNR", "limit", "below mix", "SI-SDR", "worst", "at", "NaN", "Inf"]
    columns += ["SDR", "change"] if _has_truth(found) else []
    rows = []
    for stem in found["stems"]:
        ratio, si_sdr = _ratios(stem)
        cells = [
            stem["track"],
            stem["source"],
            decibels(-math.inf if stem["level_db"] is None else stem["level_db"]),
            ratio,
            decibels(-math.inf if stem["limit_db"] is None else stem["limit_db"]),
            decibels(below_mix(stem)),
            si_sdr,
            optional(stem["worst"], "{:.1e}"),
            f"{stem['worst_seconds']:.3f} s",
            str(stem["nan"]),
            str(stem["inf"]),
        ]
        if _has_truth(found):
            cells += [optional(stem["sdr_db"], "{:.2f}"), optional(stem["sdr_change_db"], "{:+.4f}")]
        rows.append([*cells, stem["passes_by"] if stem["passes"] else "failed"])
    failed = [number for number, stem in enumerate(found["stems"]) if not stem["passes"]]
    words = (0, 1, len(columns))
    return Table("Stems", [*columns, "passes by"], rows, text_columns=words, note=STEM_NOTE, bad=failed)


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
            "SNR of the worst stem with only these nodes in low precision, against the stem or, where that is louder, "
            f"the mix less {BELOW_MIX_DB:g} dB; {search.measurements} groups of nodes were measured.",
            style="dim",
            soft_wrap=True,
        )
    if not searches[-1].proved:
        screen.print("No plan was found that meets the limit.", style="red")
    screen.print("\nWith that plan", style="bold")
    print_table(screen, stem_table(after))
    _print_verdict(screen, after)
