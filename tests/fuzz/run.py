"""Fuzz the readers of files from strangers.

    python tests/fuzz/run.py --reader zip --cases 200000 --seed 1 --fuzzer atheris
    python tests/fuzz/run.py --reader all --cases 200000 --json fuzz.json

Readers and what they read are in ``targets.py``. A case fails that raises anything but one of the project's own errors,
or an error without a clear line; that reads, writes, imports or runs anything but its own file; that takes more than
``CASE_SECONDS`` of the processor, ``STUCK_SECONDS`` of the clock or ``MAX_RSS`` of memory. Failing cases are kept in
``--keep``; put them into ``corpus/READER`` when they are mended: the corpus is read first, always. Exit code 1 if
anything failed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from campaign import BOARD_BYTES, FUZZERS, HEAD, Plan
from seeds import seeds
from targets import TARGETS

HERE = Path(__file__).resolve().parent
CASE_SECONDS = 10.0
MAX_RSS = 2 * 10**9
STUCK_SECONDS = 120.0
CORPUS = HERE / "corpus"

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    readers = list(TARGETS) if "all" in options.reader else options.reader
    machine, results = _machine(), []
    for reader in readers:
        for fuzzer in options.fuzzer:
            result = fuzz(reader, fuzzer, options.cases, options.seed, options.keep)
            results.append(result)
            print(json.dumps({**result, "crashes": len(result["crashes"])}), flush=True)
            for crash in result["crashes"]:
                print(f"--- {crash['kind']} {crash['file']}\n{crash['text']}", flush=True)
            if options.json is not None:  # after each: hours may follow
                whole = {
                    "machine": machine,
                    "case_seconds": CASE_SECONDS,
                    "max_rss": MAX_RSS,
                    "campaigns": results,
                }
                options.json.write_text(json.dumps(whole, indent=2) + "\n")
    return int(any(result["crashes"] for result in results))


def fuzz(reader: str, fuzzer: str, cases: int, seed: int, keep: Path | None = None) -> Result:
    """Read this many cases in a process of its own, and in another one where that has died."""
    began = time.monotonic()
    total: Result = {
        "reader": reader,
        "fuzzer": fuzzer,
        "seed": seed,
        "cases": 0,
        "refused": 0,
        "accepted": 0,
    }
    peak, slowest, crashes, deaths = 0, 0.0, [], 0
    replayed = [str(path) for path in sorted((CORPUS / reader).glob("*"))]
    left = len(replayed) + len(seeds(reader)) if fuzzer == "replay" else cases
    while left > 0 and deaths < 5:
        plan = {
            "reader": reader,
            "fuzzer": fuzzer,
            "cases": left,
            "seed": seed + deaths,
            "replayed": replayed,
        }
        report, top, death = _process(plan, keep)
        peak, slowest = max(peak, top), max(slowest, report["slowest"])
        for count in ("cases", "refused", "accepted"):
            total[count] += report[count]
        crashes += report["failures"]
        left -= report["cases"]
        if death is None:
            break
        crashes.append(death)
        if not report["cases"]:  # it did not come to its first case
            break
        deaths += 1
        replayed = []
    seconds = round(time.monotonic() - began, 1)
    limits = {"seconds": seconds, "slowest_case": slowest, "peak_rss_mb": round(peak / 1e6)}
    return {**total, **limits, "crashes": crashes}


def _process(plan: Result, keep: Path | None) -> tuple[Result, int, Result | None]:
    """Its report, its highest memory, and, if it died or was killed, of what."""
    with tempfile.TemporaryDirectory(dir=_fast_folder(), prefix="fuzz-") as name:
        folder = Path(name)
        board = folder / "board"
        board.write_bytes(bytes(BOARD_BYTES))
        whole = Plan(folder=str(folder), board=str(board), **plan)
        (folder / "plan.json").write_text(json.dumps(asdict(whole)))
        with open(folder / "said", "w+") as said:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "campaign.py"), str(folder / "plan.json")],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
            )
            try:
                peak, why = _watched(process, board)
            finally:
                process.kill()
                code = process.wait()
            said.seek(0)
            text = said.read()[-3000:]
        path = folder / "report.json"
        report: Result
        if path.exists() and not why and not code:
            report, death = json.loads(path.read_text()), None
        else:
            count, data = _on_board(board.read_bytes())
            (folder / "last").write_bytes(data)
            report = {"cases": count, "refused": 0, "accepted": 0, "slowest": 0.0, "failures": []}
            death = {"kind": why or f"ended with {code}", "file": str(folder / "last"), "text": text}
        _keep([*report["failures"], *([death] if death else [])], keep)
        return report, peak, death


def _watched(process: subprocess.Popen[bytes], board: Path) -> tuple[int, str]:
    """Wait for the process; its highest memory in bytes, and why it had to be killed, if it had to."""
    peak, count, since, worked = 0, 0, time.monotonic(), 0.0
    with open(board, "rb") as file, mmap.mmap(file.fileno(), BOARD_BYTES, access=mmap.ACCESS_READ) as view:
        while process.poll() is None:
            time.sleep(0.05)
            peak = max(peak, _rss(process.pid))
            if peak > MAX_RSS:
                return peak, f"took {peak / 1e9:.1f} GB"
            now, (at, _) = time.monotonic(), HEAD.unpack(view[: HEAD.size])
            if at != count:
                count, since, worked = at, now, _worked(process.pid)
            elif now - since > STUCK_SECONDS or (count and _worked(process.pid) - worked > CASE_SECONDS):
                process.send_signal(signal.SIGUSR1)
                time.sleep(1)
                return peak, f"took {now - since:.0f} s, of the processor {_worked(process.pid) - worked:.0f}"
    return peak, ""


def _worked(pid: int) -> float:
    """Seconds of processor time so far, as Linux counts it; 0 elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> int:
    """Highest resident memory so far, in bytes, as Linux counts it; 0 elsewhere."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _on_board(data: bytes) -> tuple[int, bytes]:
    count, length = HEAD.unpack(data[: HEAD.size])
    return count, data[HEAD.size : HEAD.size + length]


def _keep(failures: Sequence[Result], keep: Path | None) -> None:
    for failure in failures:
        found = Path(failure["file"])
        failure["file"] = found.name
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            failure["file"] = str(shutil.copy(found, keep / found.name))


def _machine() -> Result:
    """What the result files of benchmarks carry, too."""
    sys.path.append(str(HERE.parents[1] / "benchmarks"))
    from machine_info import machine_info

    return machine_info()


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reader", nargs="+", choices=[*TARGETS, "all"], default=["all"])
    parser.add_argument("--fuzzer", nargs="+", choices=list(FUZZERS), default=["hypothesis"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for failing cases")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
