"""How fast bundles run segments of real music, against PyTorch on the same threads.

    python benchmarks/run_speed.py --model trained --engines ort,openvino --modes sequential,concurrent

    ENGINE [concurrent]  the bundle, one batch of segments from mix to stems, transforms included
    torch                the same model as this package's reference modules, eager
    demucs               the published class, eager (HTDemucs only)

A run of ``mrsep-deploy bench`` on a song, of which the figures that the README shows are kept, and the whole
result beside them. A ratio is that of one round's two times; ``low`` and ``high`` are its bootstrap interval,
``min`` and ``max`` its range over the rounds. Then each engine runs some segments with a trace: what of the
time no stage ran, and what of it was no call of the engine. Writes ``benchmarks/results/run_speed_MODEL.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from assets import SAMPLE_RATE, songs, trained_htdemucs
from machine_info import load_average, machine_info, write_result

from mrsep_deploy.bench.benchmark import Settings, benchmark
from mrsep_deploy.bench.plan import Request, plan
from mrsep_deploy.bench.results import Race, Row
from mrsep_deploy.bundle import shipped
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import LoadedModel, load_model, untrained_model
from mrsep_deploy.measuring.statistics import ratio_interval, spread
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.runtime.timeline import overhead
from mrsep_deploy.runtime.trace import TraceEvent
from mrsep_deploy.terminal.progress import step_progress

MODELS = ("trained", "htdemucs_n", "shipped")
SONG = "chaos_god"  # the one with vocals
SECONDS = 120
SEED = 0


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    threads = options.threads or cpu_budget()
    machine = machine_info()
    loaded = load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bundle = export_model(loaded, options.model, work / "bundle", ExportOptions(options.layout))
        request = Request(
            [str(bundle.path)], options.engines, modes=options.modes, threads=threads, batches=[options.batch]
        )
        settings = Settings(options.rounds, audio=write_song(work / "song.wav"))
        with step_progress() as progress:
            found = benchmark(plan(request, work), settings, progress)
    if found.interrupted:
        raise SystemExit("interrupted: nothing is written")
    race = found.races[0]
    missing = [row for row in race.rows if row.status != "ok"]
    if missing:
        raise SystemExit("; ".join(f"{row.label} {row.status}: {row.reason}" for row in missing))
    path = write_result(
        f"run_speed_{options.model}{options.suffix}",
        {
            "machine": machine,
            "load_after": load_average(),
            "noise": None if race.noise is None else race.noise.plain(),
            "ceilings": found.ceilings,
            "model": options.model,
            "music": SONG,
            "layout": options.layout,
            "batch": options.batch,
            "threads": threads,
            "segment_seconds": round(loaded.config.segment_samples / loaded.config.samplerate, 3),
            "rounds": race.rounds,
            "rounds_seconds": {row.label: rounded(row.seconds) for row in race.rows},
            "seconds": {row.label: figures(row.seconds) for row in race.rows},
            "times_faster": times_faster(race),
            "share_of_time": {row.label: outside(row, bundle.manifest.graph_stages) for row in traced(race)},
            "worst_stem_snr_db": {row.label: worst_snr(row) for row in race.rows},
            "peak_mib": {row.label: mebibytes(row.memory.get("peak_bytes")) for row in race.rows},
            "start_up": {row.label: row.start_up for row in race.rows},
            "times_the_floor": {row.label: times_the_floor(row) for row in race.rows},
        },
    )
    print(path.read_text(encoding="utf-8"))


def load(model: str) -> LoadedModel:
    """One of ``MODELS``: the trained HTDemucs, the shipped model, or a seeded untrained one of another family."""
    if model == "shipped":
        return load_model(shipped.CHECKPOINT)
    return load_model(trained_htdemucs()) if model == "trained" else untrained_model(model, SEED)


def write_song(path: Path) -> Path:
    """The loudest stretch tells nothing new: the song from its start, as float32."""
    song = next(song for song in songs() if song.name == SONG).read(SECONDS)
    soundfile.write(path, song.T, SAMPLE_RATE, subtype="FLOAT")
    return path


def figures(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    found = spread(values)
    return {name: round(found[name], 4) for name in ("median", "min", "max")}


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def times_faster(race: Race) -> dict[str, dict[str, float]]:
    """Every engine than every other contender."""
    found = {}
    for row in race.rows:
        for other in race.rows:
            if row.contender.engine and other is not row:
                interval = ratio_interval(other.seconds, row.seconds)
                ratios = figures(np.divide(other.seconds, row.seconds).tolist())
                ends = {name: round(interval[name], 4) for name in ("low", "high")}
                found[f"{row.label} than {other.label}"] = {**ratios, **ends}
    return found


def traced(race: Race) -> list[Row]:
    return [row for row in race.rows if row.timeline is not None]


def outside(row: Row, graphs: Sequence[Any]) -> dict[str, float]:
    """Shares of the time of a run over some segments in which no stage ran, and no engine did."""
    timeline: Mapping[str, Any] = row.timeline or {}
    events = [TraceEvent(**event) for event in timeline["events"]]
    names = {stage.name for stage in graphs}
    calls = overhead([event for event in events if event.stage in names], timeline["seconds"])
    return {
        "outside_stages": round(timeline["outside_stages"], 4),
        "outside_engine_calls": round(calls, 4),
    }


def worst_snr(row: Row) -> float | None:
    """SNR in dB of the worst stem that does not pass by the mix."""
    if row.parity is None or row.parity.worst is None:
        return None
    return round(row.parity.snr[row.parity.worst], 1)


def times_the_floor(row: Row) -> float | None:
    """None where there is no floor, or one that was measured too high."""
    times = None if row.floor is None else row.floor["times"]
    return None if times is None else round(times, 2)


def mebibytes(count: int | None) -> float | None:
    return None if count is None else round(count / 2**20, 1)


def _names(text: str) -> list[str]:
    return text.split(",")


def _modes(text: str) -> list[Mode]:
    modes: dict[str, Mode] = {"sequential": "sequential", "concurrent": "concurrent"}
    return [modes[name] for name in text.split(",")]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="trained")
    parser.add_argument("--engines", type=_names, default=["ort"], help="comma-separated")
    parser.add_argument("--modes", type=_modes, default=["sequential"], help="comma-separated")
    parser.add_argument("--layout", choices=("split", "whole"), default="split")
    parser.add_argument("--batch", type=int, default=1, help="segments a run takes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    parser.add_argument("--suffix", default="", help="of the result's name, to keep another machine's")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
