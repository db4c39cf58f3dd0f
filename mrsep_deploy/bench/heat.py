"""Runs the contenders of one bundle, each in its process: opens, checks and times them."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mrsep_deploy.bench.contenders import REFERENCE, Contender
from mrsep_deploy.bench.parity import Parity, Reference, compare
from mrsep_deploy.bench.plan import Entry
from mrsep_deploy.bench.process import OPEN_SECONDS, ContenderError, MeasuringProcess
from mrsep_deploy.bench.results import Race, Row
from mrsep_deploy.bench.workloads import Workload
from mrsep_deploy.bundle.provenance import Check
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.limits import limit_for
from mrsep_deploy.measuring.rounds import Turn

LOW_MEMORY = 0.05
"""Share of the machine's memory that has to be free for another contender to be opened."""


class Heat:
    """Owns the processes; ``with`` it.

    Args:
        entry: the bundle and its contenders.
        segments: the workload that everybody is checked on.
        folder: for files; exists.
        limit: the least SNR of an audible stem in dB; None for that of each precision.

    Attributes:
        ready: the processes of the contenders that can race, by label.
        no_exact_reference: why stems are not compared with PyTorch in float64; empty if they are.
    """

    def __init__(self, entry: Entry, segments: Workload, folder: Path, limit: float | None = None) -> None:
        self.entry, self.segments, self.folder, self.limit = entry, segments, folder, limit
        self.manifest = entry.bundle.manifest
        self.ready: dict[str, MeasuringProcess] = {}
        self.reference: Reference | None = None
        self.no_exact_reference = ""
        self._all: list[MeasuringProcess] = []
        self._traces: set[str] = set()

    # --- processes

    def _start(self, contender: Contender, home: Path) -> MeasuringProcess:
        home.mkdir(exist_ok=True)
        process = MeasuringProcess(contender, self.folder, home)
        self._all.append(process)
        return process

    def cpu_seconds(self) -> float:
        """CPU time of this process and of all it has started, as of their last answers."""
        return time.process_time() + sum(process.cpu_seconds for process in self._all)

    def drop(self, row: Row, error: Exception) -> None:
        """A contender that failed: its row says why, and it races no more."""
        kind, fix = (error.kind, error.fix) if isinstance(error, ContenderError) else ("failed", "")
        row.end("unavailable" if kind == "unavailable" else "failed", str(error), fix)
        process = self.ready.pop(row.label, None)
        if process is not None:
            process.close()

    # --- opening

    def refer(self, report: Callable[[], None]) -> None:
        """PyTorch's stems in float64, where torch and the checkpoint are there.

        Elsewhere the first contender's stems become the reference, and the result says so.
        """
        report()
        first = next(iter(self.entry.contenders), None)
        if first is None:
            return
        self.no_exact_reference = _missing_model(self.manifest.provenance, first.checkpoint)
        if self.no_exact_reference:
            return
        spec = Contender(
            "reference", REFERENCE, str(self.entry.bundle.path), threads=first.threads,
            checkpoint=first.checkpoint,
        )  # fmt: skip
        process = self._start(spec, self.folder / "home-reference")
        exact, single = self.folder / "exact.npy", self.folder / "single.npy"
        try:
            self._opened(process)
            process.ask("reference", mix=str(self.segments.path), path=str(exact), single=str(single))
        except ContenderError as error:
            self.no_exact_reference = f"{error}. {error.fix}".rstrip(". ")
            return
        finally:
            process.close()
        stems = np.load(exact)
        self.reference = Reference(
            "PyTorch in float64", stems, True, self._snr(np.load(single), stems), self.segments.scale
        )

    def _snr(self, stems: Any, exact: Any) -> dict[str, float]:
        sources = self.manifest.model.sources
        pairs = ((stems[:, index], exact[:, index]) for index in range(len(sources)))
        return {s: Deviation.between(*pair).snr for s, pair in zip(sources, pairs, strict=True)}

    def open(self, contender: Contender, rows: list[Row]) -> None:
        """Start a contender's process, check its stems, and start another one warm."""
        home = self.folder / f"home-{len(self._all)}"
        process: MeasuringProcess | None = None
        try:
            _require_memory()
            process = self._start(contender, home)
            answer = self._opened(process)
            parity = self._check(process, rows[0])
            with contextlib.closing(self._start(contender, home)) as warm:
                again = self._opened(warm)
        except ContenderError as error:
            if process is not None:
                process.close()
            for row in rows:
                self.drop(row, error)
            return
        for row in rows:
            row.start_up = {"cold": answer["start_up"], "warm": again["start_up"]}
            row.memory = {name: answer[name] for name in ("loaded_bytes", "device_bytes")}
            row.meters = answer["meters"]
            if not parity.passes:
                row.end_wrong(parity, "" if row is rows[0] else ", of segments")
        self.ready[contender.label] = process
        if answer["traces"]:
            self._traces.add(contender.label)

    def _opened(self, process: MeasuringProcess) -> Mapping[str, Any]:
        return process.ask("open", OPEN_SECONDS, mix=str(self.segments.path), born=process.born)

    # --- right or wrong

    def _check(self, process: MeasuringProcess, row: Row) -> Parity:
        """The stems of the last run against the reference; the first contender's are it where there is no other."""
        path = self.folder / "stems.npy"
        process.ask("stems", path=str(path))
        stems = np.load(path)
        if self.reference is None:
            found = Check.read(self.manifest.checks, "whole")
            sources = self.manifest.model.sources
            known = {} if found is None else dict.fromkeys(sources, found.pytorch.snr)
            self.reference = Reference(row.label, stems, False, known, self.segments.scale)
        row.parity = self._compare(stems, self.reference, row.contender)
        return row.parity

    def _compare(self, stems: Any, reference: Reference, contender: Contender) -> Parity:
        precision = self.entry.bundle_of(contender).manifest.precision if contender.engine else "float32"
        return compare(stems, reference, self.manifest.model.sources, limit_for(precision, self.limit))

    def check_songs(self, race: Race, workload: Workload) -> None:
        """For a song: everybody's stems against the first one's whose segments are right."""
        if not workload.song:
            return
        reference: Reference | None = None
        path = self.folder / "song-stems.npy"
        for row in race.rows:
            process = self.ready.get(row.label)
            if process is None or (reference is None and row.mark):
                continue
            try:
                process.ask("run", mix=str(workload.path), item=0, song=True)
                process.ask("stems", path=str(path))
            except ContenderError as error:
                self.drop(row, error)
                continue
            stems = np.load(path)
            if reference is None:
                known = self.reference.yardstick if self.reference is not None else {}
                reference = Reference(row.label, stems, False, known)
            row.parity = self._compare(stems, reference, row.contender)
            if not row.parity.passes:
                row.end_wrong(row.parity)

    # --- racing

    def turn(self, row: Row, workload: Workload) -> Turn:
        """What a race calls; joules go into the row, those of the warm-up too."""
        process = self.ready[row.label]

        def run(number: int) -> float:
            item = number % workload.items
            answer = process.ask("run", mix=str(workload.path), item=item, song=workload.song)
            for name, joules in answer["joules"].items():
                if joules is not None:
                    row.joules.setdefault(name, []).append(joules)
            return float(answer["seconds"])

        return run

    def measure_memory(self, race: Race) -> None:
        """The most each process has held until now."""
        for row in race.rows:
            process = self.ready.get(row.label)
            if process is not None and row.seconds:
                with contextlib.suppress(ContenderError):
                    row.memory = {**row.memory, "peak_bytes": process.ask("memory")["peak_bytes"]}

    def finish(self, races: list[Race], timeline: bool) -> None:
        """Check again that stems are right, as rounds may have spoilt something; then look who runs when."""
        for row in races[0].rows:
            process = self.ready.get(row.label)
            if process is None or row.status != "ok":
                continue
            rows = [other for race in races for other in race.rows if other.label == row.label]
            try:
                process.ask("run", mix=str(self.segments.path), item=0, song=False)
                parity = self._check(process, row)
                if not parity.passes:
                    for other in rows:
                        other.end_wrong(parity, ", after the rounds")
                elif timeline and row.label in self._traces:
                    row.timeline = self._timeline(process)
            except ContenderError as error:
                for other in rows:
                    self.drop(other, error)

    def _timeline(self, process: MeasuringProcess) -> dict[str, Any]:
        answer = process.ask("timeline", mix=str(self.segments.path))
        seconds = answer["seconds"]
        shares: dict[str, float] = {}
        for event in answer["events"]:
            shares[event["stage"]] = (
                shares.get(event["stage"], 0.0) + (event["end"] - event["start"]) / seconds
            )
        return {
            "events": answer["events"],
            "seconds": seconds,
            "outside_stages": answer["outside_stages"],
            "shares": shares,
        }

    # --- the end

    def __enter__(self) -> Heat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._all:
            process.close() if error is None else process.kill()


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
        raise ContenderError(
            f"only {free / 2**20:.1f} of {total / 2**20:.1f} GiB of memory are left beside the other contenders",
            "Compare fewer at a time.",
        )
