"""The tables and lines of an evaluation, from its plain values; the terminal, Markdown and pages show these."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from mrsep_deploy import __version__
from mrsep_deploy.bundle.licence import Licence
from mrsep_deploy.evaluation.evaluate import Evaluation
from mrsep_deploy.evaluation.scores import ALL, differences, summarise
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.terminal.markdown import document, escaped
from mrsep_deploy.terminal.tables import NOTHING, Part, Table, optional, print_parts
from mrsep_deploy.verification.multitrack import SUM

Plain = Mapping[str, Any]

TITLES = {
    "museval": "SDR, BSS Eval v4 (museval): median over 1 s windows, then median over tracks",
    "mdx": "SDR, MDX 2021: energies over the whole track, mean over tracks",
}
DIGITS = "{:.2f}"
"""Of a score in dB, as the field reports it."""
UNTRAINED = "The model is untrained: its weights are random, and it separates nothing."


def to_plain(found: Evaluation, dataset: Path, command: str = "") -> dict[str, Any]:
    """Returns everything, numbers unrounded; None for a score that is not defined or infinite.

    Of the folder ``dataset`` the name is kept; ``command`` is what was typed to get the result.
    """
    manifest, metrics = found.request.bundle.manifest, found.request.metrics
    made: dict[str, Any] = plain(
        {
            "model": {
                "name": manifest.name,
                "digest": found.request.bundle.digest,
                "family": manifest.model.family,
                "sources": manifest.model.sources,
                "trained": manifest.model.trained,
                "licence": manifest.licence,
            },
            "dataset": dataset.name,
            "command": command,
            "machine": machine_info(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "version": __version__,
            "overlap": found.request.used_overlap,
            "metrics": metrics,
            "engines": found.engines,
            "summary": {
                metric: {engine: summarise(tracks, metric) for engine, tracks in found.scores.items()}
                for metric in metrics
            },
            "differences": {metric: differences(found.scores, metric) for metric in metrics},
            "tracks": found.scores,
            "failed": found.failed,
        }
    )
    return made


def to_markdown(found: Plain) -> str:
    """Returns all tables and lines as Markdown."""
    model = found["model"]
    lead = [f"{model['family']}, bundle {model['digest'][:16]}, overlap {found['overlap']:g}."]
    lead += [] if model["trained"] else [UNTRAINED]
    lead.append(f"Weights: {escaped(Licence(**model['licence']).title)}.")
    for name, facts in found["engines"].items():
        line = f"{name}: {facts['version']}, {facts['device']}"
        lead.append(f"- {escaped(line)}")
    parts = [
        Part(TITLES[metric], [summary_table(found, metric), track_table(found, metric)])
        for metric in found["metrics"]
    ]
    parts[-1] = Part(parts[-1].title, parts[-1].tables, [*remarks(found)])
    return document(f"{model['name']} on {found['dataset']}", lead, parts)


def print_evaluation(screen: Console, found: Plain) -> None:
    """Prints the summary; tracks are in the files."""
    print_parts(screen, (Part(TITLES[metric], [summary_table(found, metric)]) for metric in found["metrics"]))
    for remark in remarks(found):
        screen.print(remark, soft_wrap=True)


def summary_table(found: Plain, metric: str) -> Table:
    """Returns a row for each engine, then how far the others are from the first."""
    columns = [*found["model"]["sources"], ALL]
    rows = [
        [name, *(optional(values[column], DIGITS) for column in columns)]
        for name, values in found["summary"][metric].items()
    ]
    for name, apart in found["differences"][metric].items():
        rows.append([f"{name} − {apart['from']}", *(difference(apart["summary"][c]) for c in columns)])
    return Table("SDR in dB", ["dB", *columns], rows)


def sdr(track: Plain, metric: str, source: str) -> float | None:
    """Returns the SDR in dB of one stem; None where there is none."""
    score = track[metric].get(source)
    if metric == "museval":
        score = None if score is None else score["sdr"]
    return None if score is None else float(score)


def track_table(found: Plain, metric: str) -> Table:
    """Returns a row for each track and engine; ``all`` is the mean of the sources that have a score."""
    rows = []
    for tracks in zip(*found["tracks"].values(), strict=True):
        for engine, track in zip(found["tracks"], tracks, strict=True):
            values = [sdr(track, metric, source) for source in found["model"]["sources"]]
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if known else None
            rows.append([track["track"], engine, *(optional(each, DIGITS) for each in (*values, mean))])
    columns = ["track", "engine", *found["model"]["sources"], ALL]
    return Table("Track by track, SDR in dB", columns, rows, text_columns=(0, 1))


def difference_lines(found: Plain, metric: str) -> Iterator[str]:
    """Returns how far each engine is from the first at most, and where."""
    for name, apart in found["differences"][metric].items():
        largest = apart["largest"]
        most = "infinitely" if largest is None else f"by {difference(largest)} dB at most"
        yield f"{name} differs from {apart['from']} {most} ({apart['largest_source']} of {apart['largest_track']})."


def remarks(found: Plain) -> Iterator[str]:
    """Returns what has to be known to read the figures."""
    tracks = next(iter(found["tracks"].values()))
    word = "track" if len(tracks) == 1 else "tracks"
    yield f"{len(tracks)} {word}, {sum(track['seconds'] for track in tracks) / 60:.1f} minutes."
    for metric in found["metrics"]:
        yield from (f"{metric}: {line}" for line in difference_lines(found, metric))
    summed = [track for track in tracks if track["mixture"] == SUM]
    if summed:
        yield f"The mixture is the sum of the stems in {len(summed)} of {len(tracks)} {word}."
    silent = {
        f"{source} of {track['track']}"
        for scores in found["tracks"].values()
        for track in scores
        for source, score in track["museval"].items()
        if score is None
    }
    if silent:
        yield f"Without a museval score, because silent: {', '.join(sorted(silent))}."
    for name, reason in found["failed"].items():
        yield f"Failed: {name}: {reason}"


def difference(value: float | None) -> str:
    """A difference in dB; engines are often a millionth of one apart, and zero would say that they agree."""
    if value is None or abs(value) >= 0.0005 or value == 0:
        return NOTHING if value is None else f"{value:+.4f}"
    return f"{value:+.0e}"
