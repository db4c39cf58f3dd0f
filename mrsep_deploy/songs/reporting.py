"""Reports of a run's progress and results: bars and lines for people, JSON for programs, or errors only."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mrsep_deploy.errors import one_line
from mrsep_deploy.songs.outcome import Outcome, Summary, in_float32
from mrsep_deploy.songs.tracks import Track

if TYPE_CHECKING:
    from rich.progress import Progress

JSON_STEP = 0.01
"""Share of a song after which a program is told again."""


class Quiet:
    """Says nothing but why something failed, and that only where others have not.

    Args:
        single: there is one song; its error ends the program, which says it.
    """

    def __init__(self, single: bool) -> None:
        self._single = single

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_error: object) -> None:
        """What is shown is taken away; an error goes on."""

    def begin(self, model: str, engine: str | None, tracks: int) -> None:
        """The run begins; without an engine, if there is nothing for one to do."""

    def progress(self, track: Track, done: int, total: int, elapsed: float) -> None:
        """A song has come so far, in samples at the model's rate, in so many seconds since its own begin."""

    def ended(self, outcome: Outcome) -> None:
        """A song has ended."""
        if outcome.status == "failed" and not self._single:
            _warn(f"mrsep-deploy: {outcome.track.path}: {outcome.reason}")

    def summary(self, summary: Summary) -> None:
        """The run has ended."""
        failed = summary.of("failed")
        if failed and not self._single:
            names = ", ".join(str(outcome.track.path) for outcome in failed)
            _warn(f"{len(failed)} of {len(summary.outcomes)} failed: {names}")


class Bars(Quiet):
    """For people: a bar for the song, one for all of them, and a line for each that is done.

    Args:
        rate: the model's sample rate.
        to_stderr: the lines go there, because stdout is taken.
    """

    def __init__(self, single: bool, rate: int, to_stderr: bool = False) -> None:
        super().__init__(single)
        self._to_stderr = to_stderr
        self._rate = rate
        self._bars = _bars()
        self._current: Track | None = None
        self._tracks = self._ended = 0

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def begin(self, model: str, engine: str | None, tracks: int) -> None:
        self._tracks, bars = tracks, self._bars
        self._all = self._bars.add_task("all", total=tracks, visible=tracks > 1, of=f"0/{tracks}", speed="")
        self._one = bars.add_task("", total=None, of="", speed="")
        bars.start()

    def progress(self, track: Track, done: int, total: int, elapsed: float) -> None:
        if track != self._current:
            self._current = track
            self._bars.reset(self._one, description=one_line(track.path.name), total=total)
        speed = f"{done / self._rate / elapsed:.2f} x realtime" if elapsed else ""
        self._bars.update(self._one, completed=done, total=total, speed=speed)
        self._bars.update(self._all, completed=min(self._ended + done / total, self._tracks))

    def ended(self, outcome: Outcome) -> None:
        super().ended(outcome)
        self._ended += 1
        self._bars.update(self._all, completed=self._ended, of=f"{self._ended}/{self._tracks}")
        for remark in outcome.remarks:
            _warn(f"mrsep-deploy: {outcome.track.path} {remark}")
        if outcome.status == "done":
            what = f"{outcome.seconds:.1f} s in {outcome.elapsed:.1f} s, {outcome.speed:.2f} x realtime"
            what += f", {outcome.gain} to keep from clipping" if outcome.gain else ""
            what += f", {in_float32(outcome)}" if outcome.in_float32 else ""
        elif outcome.status == "skipped":
            what = "done already"
        else:
            return
        # Looked up now: on a terminal the bars have put themselves in the streams' place.
        stream = sys.stderr if self._to_stderr else sys.stdout
        print(f"{one_line(_together(outcome.outputs))}  {what}", file=stream, flush=True)

    def summary(self, summary: Summary) -> None:
        self._bars.stop()
        super().summary(summary)
        if not self._single:
            _warn(str(summary))


class JsonLines(Quiet):
    """For programs: one JSON object a line, the kind in ``event``."""

    def __init__(self, single: bool, rate: int) -> None:
        super().__init__(single)
        self._rate = rate
        self._told: tuple[Track | None, float] = (None, 0.0)

    def begin(self, model: str, engine: str | None, tracks: int) -> None:
        self._say(event="begin", model=model, engine=engine, tracks=tracks)

    def progress(self, track: Track, done: int, total: int, elapsed: float) -> None:
        known, before = self._told
        share = done / total
        if track != known or share >= before + JSON_STEP or done == total:
            self._told = track, share
            seconds = {"done": round(done / self._rate, 3), "total": round(total / self._rate, 3)}
            self._say(event="progress", track=str(track.path), **seconds)

    def ended(self, outcome: Outcome) -> None:
        self._say(event="ended", **outcome.as_json())

    def summary(self, summary: Summary) -> None:
        counts = {name: value for name, value in summary.as_json().items() if name != "tracks"}
        self._say(event="summary", **counts)

    def _say(self, **fields: object) -> None:
        # ASCII: a terminal's encoding has no say in what a program reads.
        print(json.dumps(fields), flush=True)


def _warn(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def _together(paths: Sequence[Path]) -> str:
    """``folder/{drums,bass}.wav`` where the names allow it, else the first and how many more."""
    first, *others = paths
    if not others:
        return str(first)
    if any((path.parent, path.suffix) != (first.parent, first.suffix) for path in others):
        return f"{first} and {len(others)} more"
    return str(first.parent / f"{{{','.join(path.stem for path in paths)}}}{first.suffix}")


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[of]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,  # in a file, bars are blank lines
        # What goes to a pipe has to stay there; on a terminal lines go above the bars.
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
    )
