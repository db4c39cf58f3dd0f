"""A verification as a page, from what ``mrsep-deploy verify --json`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mrsep_deploy.evaluation.report import UNTRAINED
from mrsep_deploy.pages.blocks import Key, Mark, Page, Pictures, Plain, Plot, Section, Strip, Text, Verdict
from mrsep_deploy.pages.page import day, fusion_blocks
from mrsep_deploy.pages.scales import Scale
from mrsep_deploy.terminal.tables import decibels
from mrsep_deploy.verification.report import (
    below_mix,
    limit_lines,
    snr,
    stage_table,
    stem_table,
    worst_output,
)

SHOWN = 12
"""Failures that are said at the top; the tables have all."""


def verify_page(result: Plain, pictures: Pictures | None = None) -> Page:
    """The page of one verification, the first one's where a bisection followed, and of spectrograms of a stem."""
    return Page(
        title=f"Verification: {result['model']} ({result['precision']})",
        lead=f"mrsep-deploy verify, {day(result['machine']['date'])}.",
        verdicts=[_verdict(result), *_after(result)],
        warnings=[*_warnings(result)],
        sections=[*_sections(result, pictures)],
        machine=result["machine"],
        facts=[*_facts(result)],
        command=result["command"],
    )


def _sections(result: Plain, pictures: Pictures | None) -> Iterator[Section]:
    yield Section("Stems, end to end", [_stems(result), stem_table(result), Text(limit_lines(result))])
    if pictures is not None:
        yield Section("What the difference looks like", [pictures])
    if result["stages"]:
        yield Section("Stages by themselves", [_stages(result), stage_table(result)])
    if result["fusion"]:
        yield Section("Fusion weights", fusion_blocks(result["fusion"], result["branches"]))


def _warnings(result: Plain) -> Iterator[str]:
    if result["note"]:
        yield str(result["note"])
    if not result["trained"]:
        yield UNTRAINED


def _verdict(result: Plain) -> Verdict:
    subject = f"{result['precision']} on {result['engine']} against {result['reference']}"
    if not result["passes"]:
        failures = result["failures"]
        more = [f"... and {len(failures) - SHOWN} more."] if len(failures) > SHOWN else []
        said = f"Failed: {len(failures)} figures are outside their limits."
        return Verdict(subject, said, "bad", [*failures[:SHOWN], *more])
    stems = result["stems"]
    finite = [stem for stem in stems if stem["margin_db"] is not None]
    if not finite:
        return Verdict(subject, "Passed: every stem is exactly that of the reference.", "good")
    closest = min(finite, key=lambda stem: float(stem["margin_db"]))
    said = f"Passed: the error of the stem closest to its limit may be {closest['margin_db']:.1f} dB larger."
    details = [f"That is {_both_ways(closest, result)}.", _passed_by(stems)]
    by_snr = [stem for stem in stems if stem["passes_by"] == "SNR"]
    changes = [stem["sdr_change_db"] for stem in by_snr if stem["sdr_change_db"] is not None]
    if changes:
        details.append(f"Against the true stems the SDR changes by {max(changes, key=abs):+.4f} dB at most.")
    return Verdict(subject, said, "good", details)


def _both_ways(stem: Plain, result: Plain) -> str:
    """The errors of a stem with both limits."""
    limit = -math.inf if stem["limit_db"] is None else stem["limit_db"]
    return (
        f"{stem['source']} of {stem['track']}: SNR {_snr(stem)}, limit {decibels(limit)} dB; its error is "
        f"{decibels(below_mix(stem))} dB below the mix, limit {result['limits']['below_mix_db']:.1f} dB"
    )


def _passed_by(stems: Sequence[Plain]) -> str:
    """How many stems pass by what."""
    counts = [sum(stem["passes_by"] == way for stem in stems) for way in ("SNR", "mix", "silence")]
    said = zip(counts, ("by their SNR", "by the mix", "in silence"), strict=True)
    return f"Stems that pass {', '.join(f'{how}: {count}' for count, how in said if count)}, of {len(stems)}."


def _after(result: Plain) -> Iterator[Verdict]:
    """What a bisection came to."""
    if "with_plan" in result:
        plan = result["with_plan"]
        nodes = sum(len(group["nodes"]) for group in result["bisection"][-1]["kept"])
        said = f"With {nodes} more nodes in float32 it {'passes' if plan['passes'] else 'still fails'}."
        yield Verdict(
            "After the bisection", said, "good" if plan["passes"] else "bad", plan["failures"][:SHOWN]
        )


def _snr(figures: Plain) -> str:
    """SNR in dB; where there is none, whether that is good or bad."""
    value = snr(figures)
    if math.isinf(value):
        return "no number" if figures["nan"] or figures["inf"] else decibels(value)
    return f"{value:.1f} dB"


def _counts(stem: Plain) -> bool:
    """Whether the SNR of a stem counts: it passes by that, or fails."""
    return stem["passes_by"] in ("SNR", None)


def _stems(result: Plain) -> Plot:
    stems = result["stems"]
    limits = [stem["limit_db"] for stem in stems if _counts(stem)]
    yardsticks = [stem["pytorch_float32_snr_db"] for stem in stems]
    measured = [stem["snr_db"] for stem in stems]
    scale = Scale.over([v for v in (*measured, *limits, *yardsticks) if v is not None])
    strips = []
    for stem in stems:
        marks, said = [], _both_ways(stem, result)
        if _counts(stem) and stem["limit_db"] is not None:
            marks.append(Mark("limit", scale.at(stem["limit_db"]), colour=6))
        if stem["pytorch_float32_snr_db"] is not None:
            marks.append(Mark("limit", scale.at(stem["pytorch_float32_snr_db"]), colour=-1))
            said += f", PyTorch's own float32 {stem['pytorch_float32_snr_db']:.1f} dB"
        colour = 6 if not stem["passes"] else 0 if _counts(stem) else -1
        marks.append(Mark("dot", scale.at(snr(stem)), colour=colour))
        note = "failed" if not stem["passes"] else "" if _counts(stem) else f"by {stem['passes_by']}"
        strips.append(Strip(stem["source"], marks, _snr(stem), said, note, group=stem["track"]))
    keys = [Key("dot", "the engine", 0), Key("dot", "the engine, below its limit", 6)]
    keys += [Key("dot", "passes by the mix, or in silence", -1), Key("limit", "limit", 6)]
    if any(value is not None for value in yardsticks):
        keys.append(Key("limit", "PyTorch's own float32", -1))
    return Plot(
        "SNR of every stem", f"Against {result['reference']}; more is better, exact stands at the right edge.",
        scale.ticks(lambda value: f"{value:g} dB"), strips, keys,
    )  # fmt: skip


def _stages(result: Plain) -> Plot:
    worst = {stage: worst_output(tensors) for stage, tensors in result["stages"].items()}
    scale = Scale.over([figures["snr_db"] for _, figures in worst.values() if figures["snr_db"] is not None])
    strips = [
        Strip(
            stage, [Mark("dot", scale.at(snr(figures)), colour=0)], _snr(figures),
            f"{stage}: {_snr(figures)}, of the output {name}",
        )
        for stage, (name, figures) in worst.items()
    ]  # fmt: skip
    note = (
        "Each stage on exactly what the reference gives it, so that the error is its own; of its outputs the worst. "
        "More is better."
    )
    keys = [Key("dot", "the worst output of a stage")]
    return Plot("SNR of every stage", note, scale.ticks(lambda value: f"{value:g} dB"), strips, keys)


def _facts(result: Plain) -> Iterator[tuple[str, str]]:
    yield "engine", str(result["engine"])
    yield "reference", str(result["reference"])
    yield "bundle", f"{result['model']}, {result['precision']}, {result['digest'][:12]}"
    yield "segments", f"{result['segments']} batches, end to end"
