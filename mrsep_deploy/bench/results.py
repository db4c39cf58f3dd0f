"""What a benchmark gives, and how it stands in JSON.

    format          "mrsep-deploy bench", version 1
    machine         cpu, cores, memory_gib, system, python, versions by package, commit, load_before, date
    command         what was typed, without the folders of absolute paths; empty where it was no command
    settings        rounds, seconds, warm_up, seed, threads, overlap, audio, lengths, limit, as they were asked for
    interrupted     whether Ctrl-C ended it
    ceilings        by device (cpu, cuda): flop_per_second by precision, bytes_per_second, how they were measured
    models          by key: name, digest, licence (terms, source, commercial), family, trained, sources, layout,
                    batch, precision, sample_rate, segment_seconds, parameters, macs (of a segment), macs_counted (on
                    graphs, or as in the manifest), stages (name, kind, branch, macs), branches, fusion (where,
                    sources, weights)
    races           one a model and workload: model, workload, audio_seconds, baseline, rounds, no_exact_reference
                    (why stems are not compared with PyTorch in float64), and noise: load_before,
                    load_after, others_cores, steal_share, quota_seconds, throttles, clock_share, drift by
                    contender, remarks, quiet (mrsep_deploy.bench.noise)
    rows            one a model, workload and contender:
        model, workload, label, opener, engine, mode, precision, device, threads, lanes, batch,
        audio_seconds
        about       of a peer: the versions of its packages, and what has to be known to read its figures
        status      ok, failed (it went wrong, or its stems are), unavailable (it does not work here), skipped
        mark        of a failed row that has times, as only its stems are wrong: how far they are from their limit
        reason, fix why it is not ok, and what would change that
        seconds     of every round, raw, in order; rounds of all rows of a race are the same moments
        median, p25, p75, min, max, p95, p99    seconds; a percentile that the rounds cannot carry is null
        tails       what is said about those percentiles
        realtime    seconds of audio per second
        ratios      by other contender, both ok: how many times faster than it this one is, median, low, high: the
                    percentile bootstrap of mrsep_deploy.measuring.statistics
        floor       arithmetic, memory, floor: seconds; times: the median over the floor; reason: where times is
                    null, why
        start_up    cold (no engine built yet) and warm, seconds: process, import, load, first_segments, and
                    total from the start of the process to the first stems
        memory      loaded_bytes (the most until it was loaded), peak_bytes (until this workload was over, with
                    all of the process), device_bytes (taken on a GPU); null where nothing tells
        energy      by meter (cpu, gpu): source, joules of every round, median, reason if there are none
        parity      reference, snr_db by source, exact (sources that are equal bit for bit), limit_db by source
                    (null: its SNR does not count), below_mix_db by source (how far below the mix its error lies),
                    passes_by by source (SNR, mix, silence; null: it fails), passes, reason; null where stems were
                    not compared. Results of earlier versions lack below_mix_db and passes_by
        timeline    of segments, for contenders that keep one: events (segment, stage, branch, stream, start, end in
                    seconds), seconds, outside_stages (share of the time), shares (of the time, by stage)
    profiles        from --profile, mrsep_deploy.bench.profile; else an empty list

Times are from a mix in host memory to stems in host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mrsep_deploy.bench.contenders import Contender
from mrsep_deploy.bench.noise import Noise
from mrsep_deploy.bench.parity import Parity
from mrsep_deploy.errors import EngineUnavailableError, MrsepError, UsageError, named_line
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.measuring.statistics import SPREAD, ratio_interval, rounds_for, spread, tail

FORMAT = "mrsep-deploy bench"
VERSION = 1
TAILS = (95, 99)

Status = Literal["ok", "failed", "unavailable", "skipped"]


def outcome(error: Exception) -> tuple[Status, str, str]:
    """Returns how a contender ended that raised an error: its status, the reason, and what would change that."""
    status: Status = "unavailable" if isinstance(error, (EngineUnavailableError, UsageError)) else "failed"
    if isinstance(error, MrsepError):
        return status, error.message, error.fix
    return status, named_line(error), ""


@dataclass
class Row:
    """One contender on one workload; it is filled in as the benchmark goes. The module says what is what."""

    contender: Contender
    status: Status = "skipped"
    reason: str = "it was not reached"
    fix: str = ""
    seconds: list[float] = field(default_factory=list)
    joules: dict[str, list[float]] = field(default_factory=dict)
    meters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    start_up: dict[str, Mapping[str, float]] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    floor: Mapping[str, Any] | None = None
    mark: str = ""
    about: str = ""
    parity: Parity | None = None
    timeline: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        return self.contender.label

    @property
    def median(self) -> float | None:
        return spread(self.seconds)["median"] if self.seconds else None

    def end(self, status: Status, reason: str = "", fix: str = "") -> None:
        """Say how it went; a row that broke has no times."""
        self.status, self.reason, self.fix, self.mark = status, reason, fix, ""
        if status != "ok":
            self.seconds, self.joules = [], {}

    def end_wrong(self, parity: Parity, when: str = "") -> None:
        """Fail for wrong stems: times stay, or are still taken, and are marked."""
        self.status, self.mark, self.reason = "failed", parity.mark, f"{parity.reason}{when}"

    def ratio_to(self, other: Row) -> dict[str, float] | None:
        """How many times faster than another row of the same race; None unless both are ok and have times."""
        paired = self.seconds and len(self.seconds) == len(other.seconds)
        ready = self.status == other.status == "ok"
        return ratio_interval(other.seconds, self.seconds) if paired and ready else None


@dataclass
class Race:
    """One model and workload: which rows belong together, and how quiet it was meanwhile."""

    model: str
    workload: str
    audio_seconds: float
    batch: int
    rows: list[Row]
    baseline: str = ""
    rounds: int = 0
    noise: Noise | None = None
    no_exact_reference: str = ""

    def settle(self) -> None:
        """Let the first row that is ok be the baseline."""
        self.baseline = next((row.label for row in self.rows if row.status == "ok"), "")

    def plain(self) -> dict[str, object]:
        """Returns what belongs to the race itself as JSON has it."""
        names = ("model", "workload", "audio_seconds", "baseline", "rounds", "no_exact_reference")
        noise = None if self.noise is None else self.noise.plain()
        return {**{name: getattr(self, name) for name in names}, "noise": noise}


@dataclass
class Result:
    """All of it."""

    machine: Mapping[str, object]
    settings: Mapping[str, object]
    ceilings: dict[str, Mapping[str, object]] = field(default_factory=dict)
    models: dict[str, Mapping[str, object]] = field(default_factory=dict)
    races: list[Race] = field(default_factory=list)
    profiles: list[Mapping[str, object]] = field(default_factory=list)
    interrupted: bool = False
    command: str = ""

    @property
    def rows(self) -> list[Row]:
        return [row for race in self.races for row in race.rows]

    def plain(self) -> dict[str, Any]:
        """Returns everything as JSON has it, numbers unrounded."""
        names = ("machine", "command", "settings", "interrupted", "ceilings", "models")
        found: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        found.update({name: getattr(self, name) for name in names})
        found["races"] = [race.plain() for race in self.races]
        found["rows"] = [_plain_row(row, race) for race in self.races for row in race.rows]
        found["profiles"] = self.profiles
        made: dict[str, Any] = plain(found)
        return made


OF_A_CONTENDER = ("label", "opener", "engine", "mode", "precision", "device", "threads", "lanes")
OF_A_ROW = ("about", "status", "mark", "reason", "fix", "seconds", "floor", "start_up", "memory", "timeline")


def _plain_row(row: Row, race: Race) -> dict[str, object]:
    median = row.median
    return {
        "model": race.model,
        "workload": race.workload,
        **{name: getattr(row.contender, name) for name in OF_A_CONTENDER},
        "batch": race.batch,
        "audio_seconds": race.audio_seconds,
        **{name: getattr(row, name) for name in OF_A_ROW},
        "realtime": race.audio_seconds / median if median else None,
        **(spread(row.seconds) if row.seconds else dict.fromkeys(SPREAD)),
        **{f"p{percent}": tail(row.seconds, percent) for percent in TAILS},
        "tails": tails_remark(len(row.seconds)),
        "ratios": ratios(row, race),
        "energy": {name: _energy(row, name) for name in row.meters},
        "parity": None if row.parity is None else row.parity.plain(),
    }


def ratios(row: Row, race: Race) -> dict[str, dict[str, float]]:
    """How many times faster than each other contender."""
    others = {other.label: row.ratio_to(other) for other in race.rows if other is not row}
    return {label: found for label, found in others.items() if found is not None}


def tails_remark(rounds: int) -> str:
    """Which percentiles so many rounds cannot carry; empty if they carry all."""
    missing = [f"p{percent} needs {rounds_for(percent)}" for percent in TAILS if rounds < rounds_for(percent)]
    return f"{rounds} rounds: {', '.join(missing)}" if missing else ""


def _energy(row: Row, name: str) -> dict[str, object]:
    joules = row.joules.get(name, [])
    return {**row.meters[name], "joules": joules, "median": spread(joules)["median"] if joules else None}
