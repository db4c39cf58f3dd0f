"""Runs the contenders of one bundle, each in its process: opens, checks and times them."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mrsep_deploy.bench.contenders import REFERENCE, Contender
from mrsep_deploy.bench.noise import Snapshot, snapshot
from mrsep_deploy.bench.parity import Parity, Reference, compare
from mrsep_deploy.bench.plan import Entry
from mrsep_deploy.bench.process import MeasuringProcess
from mrsep_deploy.bench.results import Race, Row, outcome
from mrsep_deploy.bench.workloads import Workload
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.bundle.provenance import Check
from mrsep_deploy.errors import EngineError, EngineUnavailableError
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.limits import limit_for
from mrsep_deploy.measuring.rounds import Turn
from mrsep_deploy.precision.names import ELEMENTS

LOW_MEMORY = 0.05
"""Share of the machine's memory that has to be free for another contender to be opened."""


class Heat(contextlib.AbstractContextManager["Heat"]):
    """Owns the processes of a bundle's contenders and fills in their rows; ``with`` it.

    Args:
        entry: the bundle and its contenders.
        workloads: what they run; everybody is checked on the first one, of segments.
        folder: for files; exists.
        limit: the least SNR in dB of a stem that does not pass by the mix; None for that of each precision.

    Attributes:
        races: one a workload.
        ready: the processes of the contenders that can race, by label.
    """

    def __init__(self, entry: Entry, workloads: list[Workload], folder: Path, limit: float | None) -> None:
        self.entry, self.workloads, self.folder, self.limit = entry, workloads, folder, limit
        self.manifest = entry.bundle.manifest
        self.races = []
        for workload in workloads:
            rows = [Row(contender) for contender in entry.contenders]
            rows += [Row(each, "unavailable", error.message, error.fix) for each, error in entry.refused]
            facts = entry.key, workload.name, workload.audio_seconds, self.manifest.batch
            self.races.append(Race(*facts, rows))
        self.ready: dict[str, MeasuringProcess] = {}
        self._references: dict[str, Reference] = {}
        self._no_model = "PyTorch did not load it"
        """Why peers cannot be given the model; empty if they can."""
        self._all: list[MeasuringProcess] = []

    # --- processes

    def _start(self, contender: Contender, home: Path) -> MeasuringProcess:
        home.mkdir(exist_ok=True)
        process = MeasuringProcess(contender, home)
        self._all.append(process)
        return process

    def snapshot(self) -> Snapshot:
        """The system now, with the CPU time of this process and of all it has started, as of their last answers."""
        return snapshot(time.process_time() + sum(process.cpu_seconds for process in self._all))

    def drop(self, rows: list[Row], error: Exception) -> None:
        """A contender that failed: these rows of it say why, and it races no more."""
        for row in rows:
            row.end(*outcome(error))
            if row.label in self.ready:
                self.ready.pop(row.label).close()

    # --- opening

    def refer(self) -> None:
        """Let PyTorch's stems in float64 be the reference of segments, where torch and the checkpoint are there.

        Elsewhere the first contender's stems become the reference, and the races say why.
        """
        for first in self.entry.contenders[:1]:
            reason = _missing_model(self.manifest.provenance, first.checkpoint) or self._refer(first)
            self._no_model = self._no_model and (reason or self._no_model)
            for race in self.races:
                race.no_exact_reference = reason

    def _refer(self, first: Contender) -> str:
        """Run PyTorch in float64; returns what went wrong."""
        bundle, segments = str(self.entry.bundle.path), self.workloads[0]
        spec = Contender("reference", REFERENCE, bundle, threads=first.threads, checkpoint=first.checkpoint)
        process = self._start(spec, self.folder / "home-reference")
        try:
            process.open(segments.path)
            if any(contender.python for contender in self.entry.contenders):
                process.ask("write_model", folder=str(self.folder))
                self._no_model = ""
            exact = self._stems(process)
            process.ask("write_single", mix=str(segments.path), path=str(self.folder / "single.npy"))
        except EngineError as error:
            return str(error).rstrip(". ")
        finally:
            process.close()
        single = np.load(self.folder / "single.npy")
        snr = {
            source: Deviation.between(single[:, index], exact[:, index]).snr
            for index, source in enumerate(self.manifest.model.sources)
        }
        self._references[segments.name] = Reference(
            "PyTorch in float64", exact, True, snr, segments.power(), segments.scale
        )
        return ""

    def open(self, contender: Contender) -> None:
        """Start a contender's process, check its stems, and start another one warm."""
        rows = [row for race in self.races for row in race.rows if row.contender == contender]
        home, segments = self.folder / f"home-{len(self._all)}", self.workloads[0]
        try:
            _require_memory()
            model = self._prepared(contender, home) if contender.python else None
            process = self.ready[contender.label] = self._start(contender, home)
            answer = process.open(segments.path, model)
            parity = self._check(process, rows[0], segments)
            with contextlib.closing(self._start(contender, home)) as warm:
                again = warm.open(segments.path, model)
        except EngineError as error:
            self.drop(rows, error)
            return
        for row in rows:
            row.start_up = {"cold": answer["start_up"], "warm": again["start_up"]}
            row.memory = {name: answer[name] for name in ("loaded_bytes", "device_bytes")}
            row.meters, row.about = answer["meters"], answer.get("about", "")
            if not parity.passes:
                row.end_wrong(parity, "" if row is rows[0] else ", of segments")

    def _prepared(self, contender: Contender, home: Path) -> Path:
        """Let a peer do what it has to do once; returns the folder with its model."""
        if self._no_model:
            raise EngineUnavailableError(f"the model cannot be handed over: {self._no_model}")
        with contextlib.closing(self._start(contender, home)) as process:
            process.ask("prepare", contender=asdict(contender), model=str(self.folder))
        return self.folder

    # --- right or wrong

    def _stems(self, process: MeasuringProcess) -> Any:
        """The stems of a process' last run."""
        path = self.folder / "stems.npy"
        process.ask("write", path=str(path))
        return np.load(path)

    def _check(self, process: MeasuringProcess, row: Row, workload: Workload) -> Parity:
        """The stems of the last run against the reference; the first ones are it where there is no other."""
        stems, sources = self._stems(process), self.manifest.model.sources
        if workload.name not in self._references:
            segments = self._references.get(self.workloads[0].name)
            check = Check.read(self.manifest.checks, "whole")
            known = {} if check is None else dict.fromkeys(sources, check.pytorch.snr)
            yardstick = known if segments is None else segments.yardstick
            self._references[workload.name] = Reference(
                row.label, stems, False, yardstick, workload.power(), workload.scale
            )
        ran = self.entry.bundle_of(row.contender).manifest
        limit = limit_for(_precision(row.contender, ran), self.limit)
        row.parity = compare(stems, self._references[workload.name], sources, limit)
        return row.parity

    def check_songs(self, race: Race, workload: Workload) -> None:
        """For a song: everybody's stems against the first one's whose segments are right."""
        for row in race.rows if workload.song else ():
            process = self.ready.get(row.label)
            if process is None or (row.mark and workload.name not in self._references):
                continue
            try:
                process.run(workload, 0)
                parity = self._check(process, row, workload)
            except EngineError as error:
                self.drop([row], error)
                continue
            if not parity.passes:
                row.end_wrong(parity)

    # --- racing

    def turn(self, row: Row, workload: Workload) -> Turn:
        """What a race calls; joules go into the row, those of the warm-up too."""
        process = self.ready[row.label]

        def run(number: int) -> float:
            answer = process.run(workload, number)
            for name, joules in answer["joules"].items():
                if joules is not None:
                    row.joules.setdefault(name, []).append(joules)
            return float(answer["seconds"])

        return run

    def finish(self, timeline: bool) -> None:
        """Check again that stems are right, as rounds may have spoilt something; then look who runs when."""
        segments = self.workloads[0]
        for row in self.races[0].rows:
            process = self.ready.get(row.label)
            if process is None or row.status != "ok":
                continue
            rows = [other for race in self.races for other in race.rows if other.label == row.label]
            try:
                process.run(segments, 0)
                parity = self._check(process, row, segments)
                if not parity.passes:
                    for other in rows:
                        other.end_wrong(parity, ", after the rounds")
                elif timeline:
                    row.timeline = process.ask("timeline", mix=str(segments.path))["timeline"]
            except EngineError as error:
                self.drop(rows, error)

    # --- the end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._all:
            process.close() if error is None else process.kill()


def _precision(contender: Contender, bundle: Manifest) -> str:
    """Of the stems that a contender is asked for, by element type; ``bundle`` is what an engine runs."""
    if contender.engine:
        return bundle.precision
    return ELEMENTS.get(contender.precision, "float32")


def _missing_model(origin: Mapping[str, object], checkpoint: str | None) -> str:
    """Why the model of a bundle cannot be made again; asked before torch is imported in vain."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    recorded = origin.get("checkpoint")
    place = checkpoint or (recorded.get("path") if isinstance(recorded, Mapping) else None)
    if "untrained" in origin or (isinstance(place, str) and Path(place).is_file()):
        return ""
    return "the checkpoint is not where it was exported from; --checkpoint FILE gives its place"


def _require_memory() -> None:
    """Refuse a contender that would not fit beside the others; Linux only, elsewhere it is tried."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        total, free = found["MemTotal"], found["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return
    if free < LOW_MEMORY * total:
        raise EngineError(
            f"only {free / 2**20:.1f} of {total / 2**20:.1f} GiB of memory are left beside the other contenders",
            "Compare fewer at a time.",
        )
