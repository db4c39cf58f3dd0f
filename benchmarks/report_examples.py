"""The example reports of ``bench`` and ``verify``, measured anew: what ``docs/reports.py`` makes their pages of.

    python benchmarks/report_examples.py prepare    # a minute or two, at any time: what is measured
    python benchmarks/report_examples.py            # five minutes, on a quiet machine: both
    python benchmarks/report_examples.py bench      # or one of them

Every command runs as a user types it, in a folder of its own, where the pages' commands can be read. What is
measured: the model that comes with the package, and an untrained one that is small enough to be measured in two
batches, on six seconds of real music with true stems. Writes ``benchmarks/results/report_*.json`` and
``docs/reports/*.html``. (The example of ``eval`` measures no time: ``benchmarks/multitrack.py`` has its commands.)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from assets import cache_folder, four_stem_excerpt
from machine_info import ROOT, load_average, write_result

sys.path.append(str(ROOT / "docs"))

import reports

from mrsep_deploy.bench.noise import LOAD

MODEL = "mrsep-small"
SMALL = ROOT / "tests" / "golden" / "htdemucs_nn.th"
SONG = "falcon69.stem.mp4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "what", nargs="*", help=f"of prepare, {', '.join(MEASURES)}; all but prepare by default"
    )
    parser.add_argument("--rounds", type=int, default=6, help="of the benchmark")
    parser.add_argument(
        "--wait", type=float, default=30, metavar="S", help="at most before each, until the machine is quiet"
    )
    given = parser.parse_args()
    folder = cache_folder() / "report-examples"
    if unknown := set(given.what) - {"prepare", *MEASURES}:
        parser.error(f"{', '.join(sorted(unknown))} is none of prepare, {', '.join(MEASURES)}")
    if "prepare" in given.what or not (folder / "ready").exists():
        prepare(folder)
    for name in [each for each in MEASURES if each in given.what or not given.what]:
        quiet(given.wait)
        began = time.perf_counter()
        MEASURES[name](folder, given.rounds)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if given.what != ["prepare"]:
        make_pages(folder)


def prepare(folder: Path) -> None:
    """Export what is measured beside the shipped model, and put the music where commands name it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(four_stem_excerpt(), folder / SONG)
    run(folder, ["export", str(SMALL), "--quiet"])
    (folder / "ready").touch()


def quiet(most: float) -> None:
    """Wait until nothing has been running for a while; after so many seconds go on all the same: the page says so."""
    until = time.monotonic() + most
    while (load_average() or 0.0) > LOAD and time.monotonic() < until:
        time.sleep(1)


def bench(folder: Path, rounds: int) -> None:
    given = [
        "bench",
        MODEL,
        SMALL.stem,
        "--batch",
        "1,4",
        "--mode",
        "sequential,concurrent",
        "--rounds",
        str(rounds),
    ]
    run(folder, [*given, "--audio", SONG, "--json", "bench.json", "--html", "bench.html"], (0, 3))
    keep("bench", (folder / "bench.json").read_text(encoding="utf-8"))


def verify(folder: Path, _rounds: int) -> None:
    given = ["verify", MODEL, "--precision", "fp16", "--audio", SONG, "--html", "verify.html", "--json"]
    keep("verify", run(folder, given, (0, 1)))


MEASURES: Mapping[str, Callable[[Path, int], None]] = {"bench": bench, "verify": verify}


def make_pages(folder: Path) -> None:
    """At the end, as pages that changed would make the commit one with changes.

    Spectrograms are no part of a result, so that the page that the command wrote has to be there for them.
    """
    if (folder / "verify.html").exists():
        shutil.copyfile(folder / "verify.html", reports.FOLDER / "verify.html")
    reports.main()


def run(folder: Path, arguments: Sequence[str], fine: Sequence[int] = (0,)) -> str:
    """What a command of ours prints, in a folder and with a registry of its own; another exit code ends it all."""
    for name in arguments:
        if name in ("bench.json", "bench.html", "verify.html"):
            (folder / name).unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "mrsep_deploy", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "MRSEP_DEPLOY_HOME": str(folder / "home")},
    )  # fmt: skip
    if done.returncode not in fine:
        raise SystemExit(f"mrsep-deploy {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def keep(name: str, text: str) -> None:
    print(write_result(f"report_{name}", json.loads(text)), file=sys.stderr)


if __name__ == "__main__":
    main()
