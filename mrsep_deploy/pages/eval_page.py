"""An evaluation as a page, from what ``mrsep-deploy eval`` writes into ``results.json``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from mrsep_deploy.evaluation.report import (
    TITLES,
    UNTRAINED,
    difference_lines,
    sdr,
    summary_table,
    track_table,
)
from mrsep_deploy.evaluation.scores import ALL
from mrsep_deploy.pages.blocks import Block, Key, Mark, Page, Plain, Plot, Section, Strip, Verdict
from mrsep_deploy.pages.page import day, licence_facts
from mrsep_deploy.pages.scales import Scale
from mrsep_deploy.verification.multitrack import SUM

VISIBLE = 0.01
"""dB; less than this is no difference in a figure that is reported with two digits."""
COLOURS = 7


def eval_page(result: Plain) -> Page:
    """The page of one evaluation."""
    tracks = next(iter(result["tracks"].values()))
    minutes = sum(track["seconds"] for track in tracks) / 60
    word = "track" if len(tracks) == 1 else "tracks"
    return Page(
        title=f"Quality: {result['model']['name']} on {result['dataset']}",
        lead=f"mrsep-deploy eval, {day(result['date'])}. {len(tracks)} {word}, {minutes:.1f} minutes.",
        verdicts=[_verdict(result, metric) for metric in result["metrics"]],
        warnings=[*_warnings(result)],
        sections=[*(_section(result, metric) for metric in result["metrics"]), _time(result)],
        machine=result["machine"],
        facts=[*_facts(result)],
        command=result["command"],
    )


def _verdict(result: Plain, metric: str) -> Verdict:
    summary = result["summary"][metric]
    known = {engine: values[ALL] for engine, values in summary.items() if values[ALL] is not None}
    subject = TITLES[metric]
    if not known:
        return Verdict(subject, "No source has a score.", "bad")
    best = max(known, key=lambda engine: known[engine])
    if len(summary) == 1:
        return Verdict(subject, f"{best}: {known[best]:.2f} dB, the mean of the sources.", "plain")
    details = [*difference_lines(result, metric)]
    apart = [found["largest"] for found in result["differences"][metric].values()]
    within = all(largest is not None and abs(largest) < VISIBLE for largest in apart)
    lead = max(known.values()) - min(known.values())
    if within:
        said = (
            f"No engine wins: all give {known[best]:.2f} dB, and no source of any track differs by as much as "
            f"{VISIBLE:g} dB."
        )
        return Verdict(subject, said, "good", details)
    said = f"{best} has the highest SDR, {known[best]:.2f} dB, {lead:.2g} dB above the lowest."
    return Verdict(subject, said, "plain", details)


def _warnings(result: Plain) -> Iterator[str]:
    if not result["model"]["trained"]:
        yield UNTRAINED
    if result["failed"]:
        yield f"{len(result['failed'])} failed and are left out: {', '.join(result['failed'])}."


def _section(result: Plain, metric: str) -> Section:
    scores = result["tracks"]
    many = len(next(iter(scores.values()))) > 1
    blocks: list[Block] = [_sources(result, metric), summary_table(result, metric)]
    return Section(TITLES[metric], [*blocks, track_table(result, metric)] if many else blocks)


def _sources(result: Plain, metric: str) -> Plot:
    """Engines side by side for every source, with every track as a small dot."""
    summary, colours = result["summary"][metric], _colours(result)
    known = {
        (source, engine): [value for track in tracks if (value := sdr(track, metric, source)) is not None]
        for source in result["model"]["sources"]
        for engine, tracks in result["tracks"].items()
    }
    means = [value for values in summary.values() for value in values.values() if value is not None]
    scale = Scale.over([*itertools.chain(*known.values()), *means])
    strips = []
    for source in (*result["model"]["sources"], ALL):
        group = "mean of the sources" if source == ALL else source
        for engine, values in summary.items():
            value, tracks = values[source], known.get((source, engine), [])
            marks = [] if value is None else [scale.bar(value, colours[engine])]
            marks += [Mark("round", scale.at(each)) for each in tracks] if len(tracks) > 1 else []
            said = "no score" if value is None else f"{value:.2f} dB"
            strips.append(Strip(engine, marks, said, f"{group}, {engine}: {said}", group=group))
    keys = [Key("bar", engine, colour) for engine, colour in colours.items()]
    many = len(next(iter(result["tracks"].values()))) > 1
    return Plot(
        "SDR by source", "More is better.", scale.ticks(lambda value: f"{value:g} dB"), strips,
        [*keys, *([Key("round", "a track")] if many else [])],
    )  # fmt: skip


def _colours(result: Plain) -> dict[str, int]:
    return {engine: number % COLOURS for number, engine in enumerate(result["engines"])}


def _time(result: Plain) -> Section:
    rates = {}
    for engine, tracks in result["tracks"].items():
        elapsed = max(sum(track["elapsed_seconds"] for track in tracks), 1e-9)
        rates[engine] = sum(track["seconds"] for track in tracks) / elapsed
    scale, colours = Scale.over(rates.values()), _colours(result)
    strips = [
        Strip(
            engine, [scale.bar(rate, colours[engine])], f"{rate:.2f} ×",
            f"{engine}: {rate:.2f} times real time",
        )
        for engine, rate in rates.items()
    ]  # fmt: skip
    note = (
        "Seconds of music per second of separation, over all tracks. One engine after the other, and not undisturbed: "
        "mrsep-deploy bench measures speed."
    )
    keys = [Key("bar", engine, colours[engine]) for engine in rates]
    return Section("Time", [Plot("Times real time", note, scale.ticks(), strips, keys)])


def _facts(result: Plain) -> Iterator[tuple[str, str]]:
    for engine, facts in result["engines"].items():
        yield engine, f"{facts['version']}, {facts['device']}"
    model = result["model"]
    yield "model", f"{model['family']}, {', '.join(model['sources'])}, bundle {model['digest'][:12]}"
    yield from licence_facts(model)
    yield "overlap of segments", f"{result['overlap']:.0%}"
    tracks = next(iter(result["tracks"].values()))
    summed = sum(track["mixture"] == SUM for track in tracks)
    yield "mixture", f"a file in {len(tracks) - summed} tracks, the sum of the stems in {summed}"
