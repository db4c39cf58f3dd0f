"""Runs a benchmark: opens, checks and times every bundle's contenders, one bundle after the other."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mrsep_deploy.bench.contenders import Contender
from mrsep_deploy.bench.facts import ceilings_for, floor_of_row, model_facts
from mrsep_deploy.bench.heat import Heat
from mrsep_deploy.bench.noise import Snapshot, noise_between, snapshot
from mrsep_deploy.bench.plan import Entry
from mrsep_deploy.bench.results import Race, Result, Row
from mrsep_deploy.bench.workloads import Workload, make_workloads
from mrsep_deploy.measuring.rounds import race as run_race
from mrsep_deploy.measuring.surroundings import machine_info

Progress = Callable[[str, int, int], None]

DEFAULT_ROUNDS = 10
WARM_UP = 1


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: of every race, at most.
        seconds: no round of a race starts after so long, the first one excepted; None for no limit.
        warm_up: turns of each contender before its first round.
        seed: of the order in rounds.
        audio: music to run on; None for something made up.
        lengths: songs to separate whole, in seconds, besides single batches of segments.
        timeline: also look who runs when.
        limit: the least SNR of an audible stem in dB; None for that of each precision.
    """

    rounds: int = DEFAULT_ROUNDS
    seconds: float | None = None
    warm_up: int = WARM_UP
    seed: int = 0
    audio: Path | None = None
    lengths: Sequence[float] = ()
    timeline: bool = True
    limit: float | None = None

    def plain(self) -> dict[str, object]:
        """Returns what was asked for as JSON has it; of the music only its name, as paths are private."""
        names = ("rounds", "seconds", "warm_up", "seed", "lengths", "limit")
        audio = None if self.audio is None else self.audio.name
        return {**{name: getattr(self, name) for name in names}, "audio": audio}


def benchmark(entries: Sequence[Entry], settings: Settings, progress: Progress) -> Result:
    """Measure; Ctrl-C ends it and keeps what is there.

    Args:
        entries: the bundles and who runs them, from :func:`mrsep_deploy.bench.plan.plan`.
        settings: how.
        progress: called with what happens now, how many steps are done and how many there are.

    Raises:
        AudioError, UsageError: the music or a length is not usable.
        EngineError: the machine's own speed cannot be measured.
    """
    threads = max((c.threads for entry in entries for c in entry.contenders), default=1)
    asked = {**settings.plain(), "threads": threads, "overlap": _overlap(entries)}
    result = Result(machine_info(), asked)
    at_start = snapshot(time.process_time())
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-bench-") as folder:
        plans = [_prepare(entry, settings, Path(folder) / str(n), result) for n, entry in enumerate(entries)]
        steps = _Steps(progress, sum(plan.steps(settings) for plan in plans) + 1)
        try:
            steps.next("measuring the machine")
            result.ceilings.update(ceilings_for([c for entry in entries for c in entry.contenders], threads))
            for planned in plans:
                with Heat(planned.entry, planned.workloads[0], planned.folder, settings.limit) as heat:
                    _measure(heat, planned, settings, at_start, steps)
        except KeyboardInterrupt:
            result.interrupted = True
            for row in result.rows:
                if row.status == "skipped":
                    row.reason = "it was interrupted before"
        for planned in plans:
            planned.fill_floors(result)
    return result


def _overlap(entries: Sequence[Entry]) -> float | None:
    return next((c.overlap for entry in entries for c in entry.contenders), None)


class _Steps:
    """Counts what is reported."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self, what: str) -> None:
        self.progress(what, min(self.done, self.total - 1), self.total)
        self.done += 1


@dataclass
class _Planned:
    """An entry with its workloads, and the races that will be filled in."""

    entry: Entry
    workloads: list[Workload]
    races: list[Race]
    folder: Path

    def steps(self, settings: Settings) -> int:
        return len(self.entry.contenders) + len(self.workloads) * settings.rounds

    def rows(self, contender: Contender) -> list[Row]:
        """The rows of one contender, one for each workload."""
        return [row for race in self.races for row in race.rows if row.contender == contender]

    def fill_floors(self, result: Result) -> None:
        """What the arithmetic and the bytes of each row would take at the machine's best."""
        for race in self.races:
            for row in race.rows:
                if row.seconds:
                    row.floor = floor_of_row(row, self.entry.bundle_of(row.contender), result)


def _prepare(entry: Entry, settings: Settings, folder: Path, result: Result) -> _Planned:
    folder.mkdir()
    manifest = entry.bundle.manifest
    workloads = make_workloads(manifest, settings.audio, settings.lengths, folder)
    races = []
    for workload in workloads:
        facts = entry.key, workload.name, workload.audio_seconds
        rows = [Row(*facts, manifest.batch, contender) for contender in entry.contenders]
        for contender, error in entry.refused:
            row = Row(*facts, manifest.batch, contender)
            row.end("unavailable", error.message, error.fix)
            rows.append(row)
        races.append(Race(*facts, rows))
    result.models[entry.key] = model_facts(entry.bundle)
    result.races.extend(races)
    return _Planned(entry, workloads, races, folder)


def _measure(heat: Heat, planned: _Planned, settings: Settings, at_start: Snapshot, steps: _Steps) -> None:
    """All of one bundle."""
    heat.refer(lambda: steps.progress(f"{planned.entry.key}: reference", steps.done, steps.total))
    for contender in planned.entry.contenders:
        steps.next(f"{planned.entry.key}: opening {contender.label}")
        heat.open(contender, planned.rows(contender))
    for race in planned.races:
        race.no_exact_reference = heat.no_exact_reference
    for race, workload in zip(planned.races, planned.workloads, strict=True):
        _race(heat, race, workload, settings, at_start, steps)
    heat.finish(planned.races, settings.timeline)
    for race in planned.races:
        race.settle()  # a row may have become wrong since its race


def _race(
    heat: Heat, race: Race, workload: Workload, settings: Settings, at_start: Snapshot, steps: _Steps
) -> None:
    """One workload: interleaved rounds among those that are ready, the wrong ones too, which stay failed."""
    heat.check_songs(race, workload)
    ready = {row.label: row for row in race.rows if row.contender.label in heat.ready}
    # The load average of now is our own doing.
    before = replace(snapshot(heat.cpu_seconds()), load=at_start.load)
    done = steps.done
    found = run_race(
        {label: heat.turn(row, workload) for label, row in ready.items()},
        settings.rounds,
        warm_up=settings.warm_up,
        seconds=settings.seconds,
        seed=settings.seed,
        progress=lambda turn, rounds: steps.next(
            f"{race.model}: {race.workload}, round {turn + 1} of {rounds}"
        ),
    )
    steps.done = done + settings.rounds
    for label, row in ready.items():
        if label in found.failed:
            heat.drop(row, found.failed[label])
        elif found.times[label]:
            row.seconds = found.times[label]
            # without those of the warm-up, and of a round that Ctrl-C cut off
            last = settings.warm_up + len(row.seconds)
            row.joules = {name: values[settings.warm_up : last] for name, values in row.joules.items()}
            if not row.mark:
                row.end("ok")
    race.rounds = found.rounds
    race.noise = noise_between(before, snapshot(heat.cpu_seconds()), found.times)
    race.settle()
    heat.measure_memory(race)
    if found.interrupted:
        raise KeyboardInterrupt
