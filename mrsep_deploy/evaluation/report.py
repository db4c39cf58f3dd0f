"""Results of an evaluation: for programs, as Markdown, and for a terminal."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from mrsep_deploy import __version__
from mrsep_deploy.evaluation.evaluate import Evaluation
from mrsep_deploy.evaluation.scores import scores_to_plain
from mrsep_deploy.evaluation.summary import ALL, differences, summarise
from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.terminal.markdown import escaped, table_lines
from mrsep_deploy.terminal.tables import table
from mrsep_deploy.verification.multitrack import SUM

TITLES = {
    "museval": "SDR, BSS Eval v4 (museval): median over 1 s windows, then median over tracks",
    "mdx": "SDR, MDX 2021: energies over the whole track, mean over tracks",
}
Row = Sequence[str]


def to_plain(found: Evaluation, dataset: Path, command: str = "") -> dict[str, object]:
    """Everything, numbers unrounded; None for a score that is not defined or infinite.

    Args:
        found: the evaluation.
        dataset: its folder, of which the name is kept.
        command: what was typed to get it.
    """
    manifest = found.request.bundle.manifest
    return {
        "model": {
            "name": manifest.name,
            "digest": found.request.bundle.digest,
            "family": manifest.model.family,
            "sources": manifest.model.sources,
            "trained": manifest.model.trained,
        },
        "dataset": dataset.name,
        "command": command,
        "machine": machine_info(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "overlap": found.request.overlap,
        "metrics": found.request.metrics,
        "engines": {name: asdict(facts) for name, facts in found.engines.items()},
        "summary": {
            metric: {name: _plain(summarise(tracks, metric)) for name, tracks in found.scores.items()}
            for metric in found.request.metrics
        },
        "differences": {
            metric: {
                name: {
                    "from": next(iter(found.scores)),
                    "summary": _plain(apart.summary),
                    "largest": finite(apart.largest),
                    "largest_track": apart.track,
                    "largest_source": apart.source,
                }
                for name, apart in differences(found.scores, metric).items()
            }
            for metric in found.request.metrics
        },
        "tracks": {
            name: [scores_to_plain(track) for track in tracks] for name, tracks in found.scores.items()
        },
        "failed": dict(found.failed),
    }


def _plain(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: finite(v) for name, v in values.items()}


def to_markdown(found: Evaluation, dataset: Path) -> str:
    """The same for people."""
    return "\n".join(_markdown(found, dataset)) + "\n"


def _markdown(found: Evaluation, dataset: Path) -> Iterator[str]:
    manifest = found.request.bundle.manifest
    yield f"# {escaped(f'{manifest.name} on {dataset.name}')}"
    yield ""
    yield f"{manifest.model.family}, bundle {found.request.bundle.digest[:16]}, overlap {found.request.overlap:g}."
    if not manifest.model.trained:
        yield "The model is untrained: its weights are random, and it separates nothing."
    for name, facts in found.engines.items():
        yield f"- {escaped(f'{name}: {facts.version}, {facts.device}')}"
    for metric in found.request.metrics:
        yield ""
        yield f"## {TITLES[metric]}"
        yield ""
        yield from table_lines(("dB", *_columns(found)), summary_rows(found, metric))
        yield ""
        yield from table_lines(("track", "engine", *_columns(found)), _track_rows(found, metric))
    for remark in remarks(found):
        yield ""
        yield escaped(remark)


def _columns(found: Evaluation) -> tuple[str, ...]:
    return (*found.request.bundle.manifest.model.sources, ALL)


def summary_rows(found: Evaluation, metric: str) -> list[Row]:
    """A row an engine; then how far the others are from the first, and where they are furthest."""
    columns = _columns(found)
    rows: list[Row] = []
    for name, tracks in found.scores.items():
        values = summarise(tracks, metric)
        rows.append((name, *(two_digits(values[column]) for column in columns)))
    first = next(iter(found.scores))
    for name, apart in differences(found.scores, metric).items():
        rows.append((f"{name} − {first}", *(difference(apart.summary[c]) for c in columns)))
    return rows


def _track_rows(found: Evaluation, metric: str) -> list[Row]:
    rows: list[Row] = []
    for tracks in zip(*found.scores.values(), strict=True):
        for name, track in zip(found.scores, tracks, strict=True):
            values = track.sdr(metric)
            known = [value for value in values.values() if value is not None]
            mean = sum(known) / len(known) if known else None
            cells = [two_digits(values[source]) for source in _columns(found)[:-1]]
            rows.append((track.track, name, *cells, two_digits(mean)))
    return rows


def remarks(found: Evaluation) -> Iterator[str]:
    """What has to be known to read the figures."""
    first = next(iter(found.scores))
    tracks = found.scores[first]
    tracks_word = "track" if len(tracks) == 1 else "tracks"
    yield f"{len(tracks)} {tracks_word}, {sum(track.seconds for track in tracks) / 60:.1f} minutes."
    for metric in found.request.metrics:
        for name, apart in differences(found.scores, metric).items():
            where = f"{apart.source} of {apart.track}"
            yield f"{metric}: {name} differs from {first} by {difference(apart.largest)} dB at most ({where})."
    summed = [track.track for track in tracks if track.mixture == SUM]
    if summed:
        yield f"The mixture is the sum of the stems in {len(summed)} of {len(tracks)} {tracks_word}."
    silent = sorted(
        {
            f"{source} of {track.track}"
            for scores in found.scores.values()
            for track in scores
            for source, score in track.museval.items()
            if score is None
        }
    )
    if silent:
        yield f"Without a museval score, because silent: {', '.join(silent)}."
    for name, reason in found.failed.items():
        yield f"Failed: {name}: {reason}"


def print_evaluation(screen: Console, found: Evaluation) -> None:
    """The summary; tracks are in the files."""
    columns = _columns(found)
    for metric in found.request.metrics:
        screen.print(TITLES[metric], style="bold")
        made = table("dB", *columns, right=columns)
        for row in summary_rows(found, metric):
            made.add_row(*row)
        screen.print(made)
        screen.print()
    for remark in remarks(found):
        screen.print(remark, soft_wrap=True)


def two_digits(value: float | None) -> str:
    """A score in dB, as the field reports it; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def difference(value: float | None) -> str:
    """A difference in dB; engines are often a millionth of one apart, and zero would say that they agree."""
    if value is None or abs(value) >= 0.0005 or value == 0:
        return "–" if value is None else f"{value:+.4f}"
    return f"{value:+.0e}"
