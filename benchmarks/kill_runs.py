"""Runs over a folder with ``--resume``, killed at random moments until there have been a thousand kills.

    python benchmarks/kill_runs.py [--kills 1000]

A pass begins with an empty output folder and ends when a run has come to its end; every run before it was killed
(SIGKILL) at a moment drawn uniformly from the time that a whole run takes. After every kill, each file that has its
name is compared byte by byte with that of an uninterrupted run, and what the journal names has to be there; after a
pass everything is compared, and nothing else may lie there.

Runs are forked from a process that has imported everything, so that kills fall into the work and not into the start of
Python. The model is that of the tests, a few operators: what is shown is the program around it. Writes
``benchmarks/results/kill_runs.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from machine_info import ROOT, load_average, machine_info, write_result

sys.path.append(str(ROOT / "tests"))

from bundles import SAMPLE_RATE, tiny_bundle

from mrsep_deploy.songs import journal

PATIENCE = 60.0
"""Seconds a run may take; a fork that has inherited a lock would wait for ever."""


@dataclass
class Findings:
    """What has been seen.

    Attributes:
        in_flight: for every kill, songs that had been begun and were not noted down: what is done again.
        wrong: what must not be, in words; empty if all is well.
    """

    kills: int = 0
    passes: int = 0
    moments: list[float] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Folder:
    """Songs, and what an uninterrupted run makes of them."""

    def __init__(self, work: Path, songs: int, jobs: int) -> None:
        self.out = work / "out"
        self.told = work / "told"
        self._jobs = jobs
        for number in range(songs):
            place = work / "music" / f"{number:03}.wav"
            place.parent.mkdir(exist_ok=True)
            noise = np.random.default_rng(number)
            # lengths differ, so that kills meet songs at every step of their way
            frames = 1000 + 500 * (number % 5)
            soundfile.write(place, noise.uniform(-0.4, 0.4, (frames, 2)), SAMPLE_RATE)
        self._music = work / "music"
        began = time.monotonic()
        code = self.run(work / "expected")
        self.seconds = time.monotonic() - began
        if code:
            raise SystemExit(f"the run without a kill ended with {code}: {self.told.read_text()}")
        self.expected = {name: data for name, data in contents(work / "expected") if journal.NAME not in name}

    def run(self, out: Path, kill_after: float | None = None) -> int | None:
        """Run to the end, or kill it; its exit code, or None if it was killed."""
        self.told.write_bytes(b"")  # a run that is killed at once says nothing
        arguments = ["run", str(self._music), "-o", str(out), "--resume", "--json", "-j", str(self._jobs)]
        process = forked([*arguments, "--engine", "ort", "--threads", "1"], self.told)
        deadline = time.monotonic() + (PATIENCE if kill_after is None else kill_after)
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(min(0.001, max(deadline - time.monotonic(), 0)))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if kill_after is None:
            raise SystemExit(f"a run took more than {PATIENCE:g} s")
        return None

    def begun(self) -> set[str]:
        """Songs that the last run had begun to separate."""
        found = set()
        for line in self.told.read_text().splitlines():
            with contextlib.suppress(ValueError):  # half a line
                event = json.loads(line)
                if event["event"] == "progress":
                    found.add(event["track"])
        return found

    def noted(self) -> list[dict[str, object]]:
        """The journal's whole lines."""
        book = next(iter(self.out.rglob(journal.NAME)), None)
        found = []
        for line in book.read_text().splitlines() if book else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    machine = machine_info()
    source = random.Random(options.seed)
    began = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        os.environ["MRSEP_DEPLOY_HOME"] = f"{name}/home"
        from mrsep_deploy.bundle import registry

        registry.register(tiny_bundle(Path(name, "bundles")))
        warm()
        for number, jobs in enumerate(options.jobs):
            work = Path(name, f"jobs-{jobs}")
            work.mkdir()
            folder = Folder(work, options.songs, jobs)
            share = options.kills * (number + 1) // len(options.jobs) - options.kills * number // len(
                options.jobs
            )
            found = kill(folder, share, source)
            results.append(summarised(folder, found, options.songs, jobs))
            print(json.dumps(results[-1]), flush=True)
    wrong = [text for result in results for text in result["wrong"]]  # type: ignore[attr-defined]
    if options.write:
        result = {
            "machine": machine,
            "load_after": load_average(),
            "model": "the tests' own: a few operators",
            "start": "forked from a process that has imported everything",
            "kills": sum(int(str(result["kills"])) for result in results),
            "seconds": round(time.monotonic() - began, 1),
            "folders": results,
        }
        write_result("kill_runs", result)
    if wrong:
        raise SystemExit("\n".join(wrong))


def warm() -> None:
    """Import what a run imports, but start no thread: a fork has the one that forks, and no other."""


def kill(folder: Folder, kills: int, source: random.Random) -> Findings:
    """Passes over the folder until there were so many kills."""
    found = Findings()
    while found.kills < kills and not found.wrong:
        shutil.rmtree(folder.out, ignore_errors=True)
        noted: list[str] = []
        while found.kills < kills:
            moment = source.uniform(0, folder.seconds)
            code = folder.run(folder.out, moment)
            if code is None:
                found.kills += 1
                found.moments.append(moment)
                before, noted = noted, [str(line["track"]) for line in folder.noted()]
                begun = {os.path.abspath(track) for track in folder.begun()}
                found.in_flight.append(len(begun - set(noted)))
                found.wrong += [f"{track} was done before" for track in begun & set(before)]
                found.wrong += list(after_kill(folder, before, noted))
                continue
            if code:
                found.wrong.append(f"a run ended with {code}")
            break
        else:
            folder.run(folder.out)
        found.passes += 1
        found.wrong += list(after_pass(folder))
    return found


def after_kill(folder: Folder, before: Sequence[str], noted: Sequence[str]) -> Iterator[str]:
    """What is wrong with what lies there."""
    if list(noted[: len(before)]) != list(before):
        yield "the journal has lost a line"
    here = dict(contents(folder.out))
    for name, data in here.items():
        if not name.endswith(".part") and journal.NAME not in name and data != folder.expected[name]:
            yield f"{name} has its name and is not whole"
    for line in folder.noted():
        outputs = line["outputs"]
        assert isinstance(outputs, dict)
        for name in outputs:
            if f"tiny/{name}" not in here:
                yield f"{name} is noted down and not there"


def after_pass(folder: Folder) -> Iterator[str]:
    """What is wrong when a run has come to its end."""
    here = {name: data for name, data in contents(folder.out) if journal.NAME not in name}
    yield from (f"{name} is missing" for name in folder.expected if name not in here)
    yield from (f"{name} is left over" for name in here if name not in folder.expected)
    yield from (f"{name} differs" for name, data in folder.expected.items() if here.get(name, data) != data)
    times = Counter(str(line["track"]) for line in folder.noted())
    yield from (f"{track} was done {count} times" for track, count in times.items() if count != 1)


def summarised(folder: Folder, found: Findings, songs: int, jobs: int) -> dict[str, object]:
    """One folder's part of the result."""
    return {
        "jobs": jobs,
        "songs": songs,
        "stems": len(folder.expected),
        "run_seconds": round(folder.seconds, 3),
        "kills": found.kills,
        "passes": found.passes,
        "in_flight": {str(count): times for count, times in sorted(Counter(found.in_flight).items())},
        "most_in_flight": max(found.in_flight, default=0),
        "wrong": found.wrong[:20],
    }


def forked(arguments: Sequence[str], told: Path) -> int:
    """Run the program in a fork of this process; its number."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        output = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from mrsep_deploy.commands.main import main as program

        program(list(arguments), prog_name="mrsep-deploy")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, hidden ones too."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 4], help="a folder for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for songs and stems")
    parser.add_argument("--no-write", dest="write", action="store_false", help="write no result file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
