"""What ``mrsep-deploy run`` tells: before, while and after songs are separated."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.commands.run_options import RunOptions
from mrsep_deploy.errors import DONE, FAILED, PARTIAL, AudioError, MrsepError, one_line

if TYPE_CHECKING:
    from mrsep_deploy.bundle.licence import Licence
    from mrsep_deploy.separation.separator import Separator
    from mrsep_deploy.songs.journal import Journal
    from mrsep_deploy.songs.outcome import Summary
    from mrsep_deploy.songs.reporting import Quiet
    from mrsep_deploy.songs.tracks import Track
    from mrsep_deploy.songs.writing import WriteOptions

DRAWN = 4
"""Segments in a timeline; more would be too narrow to read."""


def reporter_of(options: RunOptions, sample_rate: int, single: bool) -> Quiet:
    """Returns the reporter that the options ask for."""
    from mrsep_deploy.songs.reporting import Bars, JsonLines, Quiet

    if options.json:
        return JsonLines(single, sample_rate)
    return Quiet(single) if options.quiet else Bars(single, sample_rate, options.to_stdout)


def introduce(name: str, separator: Separator, licence: Licence, why: str, limits: Sequence[str]) -> None:
    """Say with what songs are about to be separated.

    Args:
        licence: of the model's weights.
        why: why it is this model, if none was named.
        limits: what is known of what it cannot do, line by line.
    """
    engine, manifest, plan = separator.engine, separator.manifest, separator.run_plan
    found = engine.availability(engine.options.device)
    model = f"{name}{', ' if why else ''}{why} ({', '.join(separator.sources)}; {licence.title})"
    reason = f" ({separator.engine_reason})" if separator.engine_reason else ""
    proved = f", {plan.snr:.1f} dB or more proved" if plan.snr is not None else ""
    measured = f"; {plan.title}, as measured here{proved}" if plan.measured or plan.keep else ""
    lines = [f"{model} on {engine.title} {found.version}, {found.device}{reason}{measured}", *limits]
    if manifest.precision != "float32":
        emulated = f", emulated: {engine.title} computes it {engine.emulation}" if engine.emulation else ""
        burstiness = separator.gate
        gate = (
            f"; segments of burstiness above {burstiness:g} in float32" if math.isfinite(burstiness) else ""
        )
        lines.append(f"Precision: {manifest.precision}{emulated}{gate}.")
    if not manifest.model.trained:
        untrained = "its weights are random, and its stems are no separation of the song"
        lines.append(f"This model is untrained: {untrained}.")
    for line in lines:
        click.echo(line, err=True)


def objection(track: Track) -> MrsepError | None:
    """Why there is no song, as far as that is known before it is opened."""
    from mrsep_deploy.audio.info import check_file

    try:
        if track.problem is None and not track.is_stdin:
            check_file(track.path)
    except AudioError as error:
        return error
    return track.problem


def tell_plan(
    options: RunOptions, tracks: Sequence[Track], writing: WriteOptions, journal: Journal | None
) -> int:
    """Tell what would be written, and what is not there; the exit code."""
    failed = 0
    for track in tracks:
        error = objection(track)
        failed += error is not None
        paths = [] if error else writing.naming.paths(track, writing.outputs)
        done = options.resume and not error and journal is not None and journal.is_done(track.path, paths)
        if options.json:
            event = "would fail" if error else "would skip" if done else "would write"
            found = {"error": str(error)} if error else {"outputs": [str(path) for path in paths]}
            click.echo(json.dumps({"event": event, "track": str(track.path), **found}))
        elif error:
            click.echo(one_line(f"mrsep-deploy: {track.path}: {error}"), err=True)
        for path in () if options.json else paths:
            click.echo(one_line(f"{track.path} -> {path}") + ("  done already" if done else ""))
    return (PARTIAL if failed < len(tracks) else FAILED) if failed else DONE


def tell(options: RunOptions, reporter: Quiet, summary: Summary, model: str, licence: Licence) -> None:
    """Reports the end of a run, and writes the summary that was asked for."""
    reporter.summary(summary)
    write_summary(options.summary, summary, model, licence)


def write_summary(path: Path | None, summary: Summary, model: str, licence: Licence) -> None:
    """Writes it as JSON, if it was asked for."""
    from mrsep_deploy.files.parts import write_file

    if path is not None:
        tree = {**summary.as_json(), "model": model, "licence": asdict(licence)}
        write_file(path, (json.dumps(tree, indent=2) + "\n").encode())


def draw_timeline(separator: Separator, path: Path) -> None:
    """The first segments of a run with a trace, as SVG."""
    from mrsep_deploy.files.parts import write_file
    from mrsep_deploy.runtime.timeline import timeline_svg

    assert separator.scheduler.trace is not None
    events = [event for event in separator.scheduler.trace.events() if event.segment < DRAWN]
    write_file(path, timeline_svg(events).encode())
