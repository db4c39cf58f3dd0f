"""The same benchmark three times in a row: is what it says the same each time?

    python benchmarks/bench_thrice.py                  # trained HTDemucs: torch, demucs, ort, openvino
    python benchmarks/bench_thrice.py --continue       # goes on after an interruption

Every run is one of ``mrsep-deploy bench`` on a song, with processes of its own and the order of its rounds drawn
with another seed. Runs agree if

    ranking     the contenders' order by median is the same in all of them
    ratios      for every two contenders, the 95 % intervals of the ratio that the runs state have a common point

Whether every ratio also lies within the intervals of the other runs is counted beside it: of two runs of the same
truth one in six does not, as both have an error. Writes ``benchmarks/results/bench_thrice.json`` after each run.
Exit code 1 if they do not agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets import trained_htdemucs
from machine_info import RESULTS, machine_info, write_result
from run_speed import SONG, figures, worst_snr, write_song

from mrsep_deploy.bench.benchmark import Settings, benchmark
from mrsep_deploy.bench.plan import Request, plan
from mrsep_deploy.bench.results import Race, ratios
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import load_model
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.terminal.progress import step_progress

NAME = "bench_thrice"
RUNS = 3
ENGINES = ("ort", "openvino")
AGAINST = ("torch", "demucs")

Run = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    asked = {"rounds": options.rounds, "threads": options.threads or cpu_budget(), "music": SONG}
    kept = _kept(asked) if options.go_on else {}
    machine, runs = kept.get("machine") or machine_info(), list(kept.get("runs", ()))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bundle = export_model(load_model(trained_htdemucs()), "trained", work / "bundle", ExportOptions())
        song = write_song(work / "song.wav")
        while len(runs) < RUNS:
            request = Request([str(bundle.path)], ENGINES, against=AGAINST, threads=asked["threads"])
            settings = Settings(options.rounds, seed=len(runs), audio=song, timeline=False)
            runs.append(run_once(request, settings, work))
            found = {"machine": machine, **asked, "runs": runs}
            path = write_result(NAME, {**found, "agreement": agreement(runs)} if len(runs) > 1 else found)
    said = agreement(runs)
    print(json.dumps(said, indent=2))
    print(path if len(runs) > len(kept.get("runs", ())) else RESULTS / f"{NAME}.json")
    return 0 if said["agree"] else 1


def run_once(request: Request, settings: Settings, work: Path) -> dict[str, Any]:
    """One benchmark, as plain values; anything but a whole one ends the program."""
    with step_progress() as progress, tempfile.TemporaryDirectory(dir=work) as folder:
        found = benchmark(plan(request, Path(folder)), settings, progress)
    race = found.races[0]
    wrong = [f"{row.label} {row.status}: {row.reason}" for row in race.rows if row.status != "ok"]
    if found.interrupted or wrong:
        raise SystemExit("; ".join(wrong) or "interrupted: go on with --continue")
    return summary(race)


def summary(race: Race) -> dict[str, Any]:
    """What one run states: medians, the ranking, every ratio with its interval, and how quiet it was."""
    rows = sorted(race.rows, key=lambda row: row.median or 0.0)
    return {
        "seconds": {row.label: figures(row.seconds) for row in rows},
        "ranking": [row.label for row in rows],
        "times_faster": {
            f"{row.label} than {label}": {name: round(value, 4) for name, value in found.items()}
            for row in rows
            for label, found in ratios(row, race).items()
        },
        "worst_snr": {row.label: worst_snr(row) for row in rows},
        "noise": None if race.noise is None else race.noise.plain(),
    }


def agreement(runs: Sequence[Run]) -> dict[str, Any]:
    """Whether runs say the same: their rankings, and the intervals of their ratios.

    A ratio and its inverse say the same thing, so that each pair of contenders counts once.
    """
    rankings = [run["ranking"] for run in runs]
    pairs = {
        f"{one} than {other}": [run["times_faster"][f"{one} than {other}"] for run in runs]
        for one, other in itertools.combinations(rankings[0], 2)
    }
    apart = [name for name, found in pairs.items() if not share_a_point(found)]
    inside = [
        one["low"] <= other["median"] <= one["high"]
        for found in pairs.values()
        for one, other in itertools.permutations(found, 2)
    ]
    same = all(ranking == rankings[0] for ranking in rankings)
    return {
        "runs": len(runs),
        "agree": same and not apart,
        "same_ranking": same,
        "rankings": rankings,
        "ratios_apart": apart,
        "ratios_within_the_others_intervals": f"{sum(inside)} of {len(inside)}",
        "quiet": [run["noise"] is None or run["noise"]["quiet"] for run in runs],
    }


def share_a_point(intervals: Sequence[Mapping[str, float]]) -> bool:
    """Whether all intervals have a point in common."""
    return max(each["low"] for each in intervals) <= min(each["high"] for each in intervals)


def _kept(asked: Mapping[str, object]) -> dict[str, Any]:
    """What an earlier call has written, if it was asked for the same."""
    path = RESULTS / f"{NAME}.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if any(found.get(name) != value for name, value in asked.items()):
        raise SystemExit(f"{path} was measured otherwise; leave out --continue to measure anew")
    return found


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="keep the runs that are there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
