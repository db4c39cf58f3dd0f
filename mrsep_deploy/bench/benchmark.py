"""Runs a benchmark: opens, checks and times every bundle's contenders, one bundle after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mrsep_deploy.bench.ceilings import ceilings_for
from mrsep_deploy.bench.floor import floor_of_row, model_facts
from mrsep_deploy.bench.heat import Heat
from mrsep_deploy.bench.noise import noise_between
from mrsep_deploy.bench.plan import Entry
from mrsep_deploy.bench.results import Race, Result
from mrsep_deploy.bench.workloads import Workload, make_workloads
from mrsep_deploy.measuring.rounds import race as run_race
from mrsep_deploy.measuring.surroundings import load_average, machine_info

Progress = Callable[[str, int, int], None]


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
        limit: the least SNR in dB of a stem that does not pass by the mix; None for that of each precision.
    """

    rounds: int = 10
    seconds: float | None = None
    warm_up: int = 1
    seed: int = 0
    audio: Path | None = None
    lengths: Sequence[float] = ()
    timeline: bool = True
    limit: float | None = None

    def plain(self) -> dict[str, object]:
        """Returns what was asked for as JSON has it; of the music only its name, as paths are private."""
        asked = asdict(self)
        del asked["timeline"]
        return {**asked, "audio": None if self.audio is None else self.audio.name}


def benchmark(entries: Sequence[Entry], settings: Settings, progress: Progress) -> Result:
    """Measure; Ctrl-C ends it and keeps what is there.

    Args:
        entries: the bundles and who runs them, from :func:`mrsep_deploy.bench.plan.plan`.
        progress: called with what happens now, how many steps are done and how many there are.

    Raises:
        AudioError, UsageError: the music or a length is not usable.
        EngineError: the machine's own speed cannot be measured.
    """
    contenders = [contender for entry in entries for contender in entry.contenders]
    threads = max((contender.threads for contender in contenders), default=1)
    overlap = contenders[0].overlap if contenders else None
    result = Result(machine_info(), {**settings.plain(), "threads": threads, "overlap": overlap})
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-bench-") as folder:
        heats = [_heat(entry, settings, Path(folder) / str(number)) for number, entry in enumerate(entries)]
        for heat in heats:
            result.models[heat.entry.key] = model_facts(heat.entry.bundle)
            result.races.extend(heat.races)
        turns = [len(heat.entry.contenders) + len(heat.races) * settings.rounds for heat in heats]
        steps = _Steps(progress, sum(turns) + 1)
        try:
            steps.next("measuring the machine")
            devices = {contender.device for contender in contenders}
            result.ceilings.update(ceilings_for(devices, threads))
            for heat in heats:
                with heat:
                    _measure(heat, settings, load, steps)
        except KeyboardInterrupt:
            result.interrupted = True
            for row in result.rows:
                if row.status == "skipped":
                    row.reason = "it was interrupted before"
    for heat in heats:
        for race in heat.races:
            for row in race.rows:
                row.floor = floor_of_row(row, race, heat.entry.bundle_of(row.contender), result)
    return result


def _heat(entry: Entry, settings: Settings, folder: Path) -> Heat:
    folder.mkdir()
    workloads = make_workloads(entry.bundle.manifest, settings.audio, settings.lengths, folder)
    return Heat(entry, workloads, folder, settings.limit)


class _Steps:
    """Counts what is reported."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self, what: str) -> None:
        self.progress(what, min(self.done, self.total - 1), self.total)
        self.done += 1


def _measure(heat: Heat, settings: Settings, load: float | None, steps: _Steps) -> None:
    """All of one bundle."""
    key = heat.entry.key
    steps.progress(f"{key}: reference", steps.done, steps.total)
    heat.refer()
    for contender in heat.entry.contenders:
        steps.next(f"{key}: opening {contender.label}")
        heat.open(contender)
    for race, workload in zip(heat.races, heat.workloads, strict=True):
        _race(heat, race, workload, settings, load, steps)
    heat.finish(settings.timeline)
    for race in heat.races:
        race.settle()  # a row may have become wrong since its race


def _race(
    heat: Heat, race: Race, workload: Workload, settings: Settings, load: float | None, steps: _Steps
) -> None:
    """One workload: interleaved rounds among those that are ready, the wrong ones too, which stay failed."""
    heat.check_songs(race, workload)
    ready = {row.label: row for row in race.rows if row.label in heat.ready}
    before = heat.snapshot()._replace(load=load)  # the load average of now is our own doing
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
            heat.drop([row], found.failed[label])
        elif found.times[label]:
            row.seconds = found.times[label]
            # without those of the warm-up, and of a round that Ctrl-C cut off
            last = settings.warm_up + len(row.seconds)
            row.joules = {name: values[settings.warm_up : last] for name, values in row.joules.items()}
            row.memory["peak_bytes"] = heat.ready[label].peak_bytes
            if not row.mark:
                row.end("ok")
    race.rounds = found.rounds
    race.noise = noise_between(before, heat.snapshot(), found.times)
    race.settle()
    if found.interrupted:
        raise KeyboardInterrupt
