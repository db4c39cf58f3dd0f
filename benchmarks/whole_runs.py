"""How long whole runs take, from a file of music to files of stems, as users start them.

    python benchmarks/whole_runs.py --model trained --engines ort,openvino --lanes 1,2

    demucs      python -m demucs.separate                 (HTDemucs only)
    torch       mrsep-deploy run --engine torch           the reference modules through the same pipeline
    ENGINE      mrsep-deploy run --engine ENGINE

Every turn is a process of its own: it starts, imports, loads (compiled stages come out of the cache, as from
the second run on), decodes a FLAC file, separates it without shifts, and writes 16-bit wav files. Turns are
interleaved; a ratio is that of one round's two times. Peak memory is that of the process. All stems are compared
with those of the first contender: 16 bits are one step apart at most. Writes
``benchmarks/results/whole_runs_MODEL.json``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from assets import SAMPLE_RATE, songs, trained_htdemucs
from machine_info import load_average, machine_info, write_result
from run_speed import MODELS, SONG, figures, load, rounded

from mrsep_deploy.bench.noise import noise_between, snapshot
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.files.paths import HOME_VARIABLE
from mrsep_deploy.measuring.rounds import Race, Turn, race
from mrsep_deploy.measuring.statistics import ratio_interval
from mrsep_deploy.process.machine import cpu_budget

NAME = "model"
STEP = 2**-15
"""Of 16 bits: where float32 differs in its last digits, a sample can fall on either side of a step."""

# ``ru_maxrss`` of a child begins with what its parent held when it forked.
RUN_MODULE = """
import atexit, pathlib, runpy, sys
from mrsep_deploy.bench.standalone.serving import peak_memory
peak, sys.argv = sys.argv[1], sys.argv[2:]
atexit.register(lambda: pathlib.Path(peak).write_text(str(peak_memory())))
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module as ``python -m`` does, and leaves the most memory it held in a file."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    machine = machine_info()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        export_model(load(options.model), NAME, work / "bundle", ExportOptions())
        song = work / "song.flac"
        samples = next(song for song in songs() if song.name == SONG).read(options.seconds)
        soundfile.write(song, samples.T, SAMPLE_RATE, subtype="PCM_16")
        runs = commands(options, work, song)
        peaks: dict[str, list[int]] = {name: [] for name in runs}
        cpu = [0.0]
        turns = {name: _turn(command, work, peaks[name], cpu) for name, command in runs.items()}
        before = snapshot(0.0)
        found = race(turns, options.rounds)
        noise = noise_between(before, snapshot(cpu[0]), found.times)
        if found.failed or found.interrupted:
            raise SystemExit(
                "; ".join(f"{name}: {why}" for name, why in found.failed.items()) or "interrupted"
            )
        apart = {name: steps_apart(work / next(iter(runs)), work / name) for name in runs}
    path = write_result(
        f"whole_runs_{options.model}",
        {
            "machine": machine,
            "load_after": load_average(),
            "noise": noise.plain(),
            "model": options.model,
            "music": SONG,
            "seconds_of_music": options.seconds,
            "threads": cpu_budget(),
            "rounds": found.rounds,
            "rounds_seconds": {name: rounded(times) for name, times in found.times.items()},
            "seconds": {name: figures(times) for name, times in found.times.items()},
            "times_realtime": {
                name: round(options.seconds / float(np.median(times)), 3)
                for name, times in found.times.items()
            },
            "times_faster": times_faster(found),
            "peak_mib": {name: round(float(np.median(values)) / 2**20, 1) for name, values in peaks.items()},
            "steps_of_16_bits_apart": apart,
        },
    )
    print(path.read_text(encoding="utf-8"))


def commands(options: argparse.Namespace, work: Path, song: Path) -> dict[str, list[str]]:
    """Modules and their arguments, by name; each writes into a folder of that name."""
    made: dict[str, list[str]] = {}
    if options.model == "trained":
        repo = work / "repo"
        repo.mkdir()
        (repo / "955717e8.th").symlink_to(trained_htdemucs())
        made["demucs"] = ["demucs.separate", "--repo", str(repo), "-n", "955717e8"]
        made["demucs"] += [
            "--shifts",
            "0",
            "-o",
            str(work / "demucs"),
            "--filename",
            "{stem}.{ext}",
            str(song),
        ]
    ours = ["mrsep_deploy", "run", "-q", "-n", str(work / "bundle")]
    ours += ["--filename", "{stem}.{ext}", str(song)]
    for engine in ("torch", *options.engines):
        for lanes in (1,) if engine == "torch" else options.lanes:
            name = engine if lanes == 1 else f"{engine} {lanes} lanes"
            made[name] = [*ours, "--engine", engine, "--lanes", str(lanes), "-o", str(work / name)]
    return made


def _turn(command: Sequence[str], work: Path, peaks: list[int], cpu: list[float]) -> Turn:
    """A run of a command: its seconds; its peak memory and processor time are noted."""
    environment: Mapping[str, str] = {**os.environ, HOME_VARIABLE: str(work / "home")}
    peak = work / "peak"

    def turn(_number: int) -> float:
        began = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-c", RUN_MODULE, str(peak), *command],
                env=environment, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            if process.returncode:
                last = output.read().decode(errors="replace").strip().splitlines()[-1:]
                raise RuntimeError(f"exit code {process.returncode}: {' '.join(last)}")
        peaks.append(int(peak.read_text()))
        cpu[0] += usage.ru_utime + usage.ru_stime
        return seconds

    return turn


def steps_apart(expected: Path, found: Path) -> int:
    """The most any sample of any stem differs, in steps of 16 bits."""
    most = 0.0
    for path in sorted(expected.rglob("*.wav")):
        (other,) = found.rglob(path.name)
        mine, theirs = soundfile.read(path)[0], soundfile.read(other)[0]
        most = max(most, float(np.abs(mine - theirs).max()) / STEP)
    return round(most)


def times_faster(found: Race) -> dict[str, dict[str, float]]:
    """Every contender than the first, the baseline."""
    (baseline, slow), *others = found.times.items()
    return {
        f"{name} than {baseline}": {
            key: round(value, 4) for key, value in ratio_interval(slow, times).items()
        }
        for name, times in others
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="trained")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["ort", "openvino"])
    parser.add_argument("--lanes", type=lambda text: [int(n) for n in text.split(",")], default=[1])
    parser.add_argument("--seconds", type=float, default=60.0, help="of music")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
