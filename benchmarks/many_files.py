"""Hundreds of short songs against one long song of the same length: what the borders between files cost.

    python benchmarks/many_files.py [--files 500] [--rounds 5]

Both are the same music. A short song is two strides long (the step from one segment to the next), because graphs of one
length take as long for half a segment as for a whole one: so both need the same number of segments. They take turns,
the first in each round drawn anew; times are those of the whole program, from its start to its end, engine and
journal included. On a machine with other work, processor time says more than the clock; both are noted. Writes
``benchmarks/results/many_files.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from assets import CHANNELS, SAMPLE_RATE
from machine_info import load_average, machine_info, write_result
from memory_hour import write_song
from small_model import TITLE, small_bundle

from mrsep_deploy.separation.segments import stride_of

STRIDES = 2
KINDS = ("many", "one")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    machine, order = machine_info(), random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        bundle = small_bundle(folder / "small")
        frames = STRIDES * stride_of(
            bundle.manifest.model.segment_samples, bundle.manifest.application.overlap
        )
        write_songs(folder, frames, options.files)
        rounds = []
        for _ in range(options.rounds):
            taken = {kind: separate(folder, kind) for kind in order.sample(KINDS, len(KINDS))}
            rounds.append({kind: taken[kind] for kind in KINDS})
            print(json.dumps(rounds[-1]), flush=True)
    ratios = [each["one"]["seconds"] / each["many"]["seconds"] for each in rounds]
    result = {
        "machine": machine,
        "load_after": load_average(),
        "model": TITLE,
        "engine": "ort",
        "files": options.files,
        "short_seconds": round(frames / SAMPLE_RATE, 3),
        "strides_per_file": STRIDES,
        "long_seconds": round(options.files * frames / SAMPLE_RATE, 1),
        "median_seconds": {
            kind: round(statistics.median(each[kind]["seconds"] for each in rounds), 2) for kind in KINDS
        },
        "speed_of_many": {
            "median": round(statistics.median(ratios), 4),
            "min": round(min(ratios), 4),
            "max": round(max(ratios), 4),
        },
        "cpu_of_one_over_many": round(
            statistics.median(each["one"]["cpu_seconds"] / each["many"]["cpu_seconds"] for each in rounds), 4
        ),
        "rounds": rounds,
    }
    print(write_result("many_files", result).read_text(encoding="utf-8"))


def write_songs(folder: Path, frames: int, count: int) -> None:
    """One long song, and the same cut into short ones."""
    long = folder / "one" / "song.flac"
    long.parent.mkdir()
    write_song(long, frames * count)
    (folder / "many").mkdir()
    with soundfile.SoundFile(long) as song:
        for number in range(count):
            samples = song.read(frames, dtype="int32", always_2d=True)
            assert np.shape(samples) == (frames, CHANNELS)
            soundfile.write(folder / "many" / f"{number:04}.flac", samples, SAMPLE_RATE, subtype="PCM_24")


def separate(folder: Path, kind: str) -> dict[str, float]:
    """Run over one of the two; seconds of the program, of these what its summary says, and processor time."""
    out, summary = folder / "out", folder / "summary.json"
    command = [sys.executable, "-m", "mrsep_deploy", "run", str(folder / kind), "-n", str(folder / "small")]
    command += ["--engine", "ort", "-o", str(out), "--quiet", "--summary", str(summary)]
    before, began = processor_seconds(), time.perf_counter()
    subprocess.run(command, check=True)
    took, worked = time.perf_counter() - began, processor_seconds() - before
    shutil.rmtree(out)
    found = json.loads(summary.read_text())
    assert not found["failed"]
    return {"seconds": round(took, 3), "separating": found["elapsed"], "cpu_seconds": round(worked, 3)}


def processor_seconds() -> float:
    """Of all programs that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for songs and stems: 15 GB for 500 files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
