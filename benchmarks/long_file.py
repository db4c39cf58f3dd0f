"""Memory of ``mrsep-deploy run`` along a song of three hours, as a file of figures and as a picture.

    python benchmarks/long_file.py [--hours 3]
    python benchmarks/long_file.py --draw        # the picture again, from the figures

The model is small (``small_model.py``), so that hours take minutes: what may grow with a song is what the program
holds of it, not the model. ``memory_hour.py`` measures the trained model. Writes ``benchmarks/results/long_file.json``
and ``docs/long_file.svg`` (with matplotlib, of the extra ``plot``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
from assets import SAMPLE_RATE
from machine_info import RESULTS, ROOT, load_average, machine_info, write_result
from memory_hour import growth_mib, memory_mib, peak_mib, write_song
from small_model import TITLE, small_bundle

PICTURE = ROOT / "docs" / "long_file.svg"
NAME = "long_file"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if not options.draw:
        measure(options.hours, options.work)
    draw(json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8")))


def measure(hours: float, work: Path | None) -> None:
    """Separate a song of so many hours and note memory at every hundredth of it."""
    machine = machine_info()
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        small_bundle(folder / "small")
        song = folder / "song.flac"
        frames = write_song(song, round(hours * 3600 * SAMPLE_RATE))
        began = time.perf_counter()
        curve = watch(song, folder)
        took = time.perf_counter() - began
        stems = {stem.name: soundfile.info(stem).frames for stem in sorted((folder / "out").rglob("*.wav"))}
    if set(stems.values()) != {frames}:
        raise SystemExit(f"the stems have {stems} frames, expected {frames} each")
    result = {
        "machine": machine,
        "load_after": load_average(),
        "model": TITLE,
        "engine": "ort",
        "song_seconds": round(frames / SAMPLE_RATE, 1),
        "separated_in": round(took, 1),
        "peak_mib": peak_mib(curve),
        "growth_mib": growth_mib(curve),
        "curve": [{"song_seconds": round(at, 1), "rss_mib": round(memory["rss"], 1)} for at, memory in curve],
    }
    print(write_result(NAME, result))


def watch(song: Path, folder: Path) -> list[tuple[float, dict[str, float]]]:
    """Run; (seconds of the song that are done, memory) at every report of progress.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "mrsep_deploy", "run", str(song), "-n", str(folder / "small")]
    command += ["--engine", "ort", "-o", str(folder / "out"), "--json"]
    curve = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event: Mapping[str, Any] = json.loads(line)
            if event["event"] == "progress" and (memory := memory_mib(process.pid)):
                curve.append((float(event["done"]), memory))
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    return curve


def draw(result: Mapping[str, Any]) -> None:
    """Memory over song time, from zero."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = NAME  # equal figures give equal files
    from matplotlib import pyplot

    minutes = [point["song_seconds"] / 60 for point in result["curve"]]
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    axes.plot(minutes, [point["rss_mib"] for point in result["curve"]], label="resident memory")
    axes.axhline(result["peak_mib"], linestyle=":", color="grey", label=f"peak, {result['peak_mib']:.0f} MiB")
    axes.set(
        xlabel="minutes of the song",
        ylabel="MiB",
        xlim=(0, max(minutes)),
        ylim=(0, 1.15 * result["peak_mib"]),
    )
    axes.set_title(f"{result['song_seconds'] / 3600:g} hours of music through a small HTDemucs", fontsize=10)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(PICTURE)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--work", type=Path, help="folder for the song and its stems: 25 GB for three hours")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured before")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
