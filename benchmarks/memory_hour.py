"""Memory of ``mrsep-deploy run`` on a song of an hour, sampled while it runs.

    python benchmarks/memory_hour.py [--hours 1 | --seconds 60] [--model shipped]

The song is the whole songs of ``assets`` one after the other, as often as it takes, written block by
block. Memory that grows with the song would show as a slope; ``growth`` is how much the later half's
median lies above the earlier half's. Writes ``benchmarks/results/memory_hour_ENGINE.json``, for the shipped model
``memory_hour_ENGINE_shipped.json``.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from assets import CHANNELS, SAMPLE_RATE, songs, trained_htdemucs
from machine_info import load_average, machine_info, write_result
from numpy.typing import NDArray

from mrsep_deploy.bundle import shipped
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import load_model

GAIN = 0.45  # the songs peak at up to 2
POINTS = 60  # of the curve that is kept
TITLES = {"trained": "trained HTDemucs", "shipped": shipped.NAME}
SUFFIX = {"trained": "", "shipped": "_shipped"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    seconds = options.seconds or options.hours * 3600
    machine = machine_info()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        bundle = shipped.BUNDLE
        if options.model == "trained":
            bundle = work / "htdemucs"
            made = ExportOptions(layout=options.layout)
            export_model(load_model(trained_htdemucs()), "htdemucs", bundle, made)
        song = work / "song.flac"
        frames = write_song(song, round(seconds * SAMPLE_RATE))
        command = [
            *_program(),
            "run",
            str(song),
            "--model",
            str(bundle),
            "--engine",
            options.engine,
            "--out",
            str(work / "stems"),
            "--quiet",
        ]
        if options.threads:
            command += ["--threads", str(options.threads)]
        took, samples = watch(command)
        stems = {stem.name: soundfile.info(stem).frames for stem in sorted((work / "stems").rglob("*.wav"))}
    if set(stems.values()) != {frames}:
        raise SystemExit(f"the stems have {stems} frames, expected {frames} each")
    path = write_result(
        f"memory_hour_{options.engine}{SUFFIX[options.model]}",
        {
            "machine": machine,
            "load_after": load_average(),
            "model": TITLES[options.model],
            "engine": options.engine,
            "layout": options.layout if options.model == "trained" else "split",
            "song_seconds": round(frames / SAMPLE_RATE, 1),
            "separated_in": round(took, 1),
            "peak_mib": peak_mib(samples),
            "growth_mib": growth_mib(samples),
            "curve": thinned(samples),
        },
    )
    print(path.read_text(encoding="utf-8"))


def write_song(path: Path, frames: int) -> int:
    """Write ``frames`` of music as 24-bit FLAC, holding one block of it."""
    written = 0
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, CHANNELS, subtype="PCM_24") as file:
        for block in _endless():
            part = block[:, : frames - written]
            file.write(part.T * np.float32(GAIN))
            written += int(part.shape[1])
            if written == frames:
                return written
    raise AssertionError("music does not end")


def _endless() -> Iterator[NDArray[np.float32]]:
    for song in itertools.cycle(songs()):
        yield from song.blocks()


def _program() -> list[str]:
    """The command line as users have it, beside this Python."""
    found = shutil.which("mrsep-deploy", path=str(Path(sys.executable).parent)) or shutil.which(
        "mrsep-deploy"
    )
    if found is None:
        raise SystemExit("mrsep-deploy is not installed: pip install -e .")
    return [found]


def watch(command: Sequence[str], every: float = 0.25) -> tuple[float, list[tuple[float, dict[str, float]]]]:
    """Run a command; how long it took, and (seconds, memory) samples of it.

    Memory is the kernel's own account in MiB: ``rss`` now, ``peak`` the highest up to now, so that
    nothing between two samples is missed.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        samples: list[tuple[float, dict[str, float]]] = []
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(every):
                memory = memory_mib(process.pid)
                if memory:
                    samples.append((time.perf_counter() - began, memory))

        watcher = threading.Thread(target=sample, daemon=True)
        watcher.start()
        try:
            code = process.wait()
        finally:
            ended.set()
            watcher.join()
            if process.poll() is None:
                process.kill()
        took = time.perf_counter() - began
        if code:
            output.seek(0)
            last = "".join(output.readlines()[-12:])
            raise SystemExit(f"{command[0]} {command[1]} ended with code {code}:\n{last}")
    return took, samples


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory of a process on Linux; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in fields or "VmHWM" not in fields:
        return {}
    return {"rss": int(fields["VmRSS"][0]) / 1024, "peak": int(fields["VmHWM"][0]) / 1024}


Curve = Sequence[tuple[float, dict[str, float]]]


def peak_mib(samples: Curve) -> float:
    """The highest resident memory.

    The kernel's sum for ended children (``ru_maxrss``) would not do: it counts the memory of the
    process that forked them, and that has exported a model.
    """
    return round(max(memory["peak"] for _, memory in samples), 1)


def growth_mib(samples: Curve) -> float:
    """Median resident memory of the later half less that of the earlier; without the first tenth, loading."""
    rss = [memory["rss"] for _, memory in samples][len(samples) // 10 :]
    half = len(rss) // 2
    return round(statistics.median(rss[half:]) - statistics.median(rss[:half]), 1)


def thinned(samples: Curve) -> list[dict[str, Any]]:
    """At most ``POINTS`` of the samples."""
    step = max(1, -(-len(samples) // POINTS))
    return [{"seconds": round(at, 1), "rss_mib": round(memory["rss"], 1)} for at, memory in samples[::step]]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, help="instead of --hours")
    parser.add_argument("--engine", choices=("ort", "openvino", "torch"), default="ort")
    parser.add_argument("--model", choices=tuple(TITLES), default="trained")
    parser.add_argument("--layout", choices=("split", "whole"), default="split")
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    parser.add_argument("--work", type=Path, help="folder for the song and its stems: 7 GB for an hour")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
