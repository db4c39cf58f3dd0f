"""Runs in a terminal, interrupted at moments from 0 to 4 seconds after their start.

    python benchmarks/interrupt_runs.py [--keyboard 300] [--terminate 100]

Each run separates a song of two minutes with the model that comes with the package, on each CPU engine in turn, in a
pseudo-terminal of its own. Ctrl-C is typed there; SIGTERM is sent to the process. A run has to end within five
seconds, with the exit code 130 or 143, without a traceback, and leave no file behind, whole or in part.

Most moments lie within the first 1.2 seconds, in which libraries are imported and engines start. Before its
first line of ours a process belongs to Python, which ends with a traceback of its own, or to the system: such ends
are counted apart; of them only the time and the files count. Prints what was found as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from mrsep_deploy.songs.journal import NAME as JOURNAL

ENGINES = ("ort", "openvino", "torch")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LONGEST = 5.0
"""Seconds from the signal to the end of the process."""
START, LAST = 1.2, 4.0
"""Seconds: most moments lie before the first, all before the second."""
SHARE_IN_START = 0.85
SECONDS_OF_SONG = 120
SAMPLE_RATE = 44100


@dataclass(frozen=True)
class Interruption:
    """One run, and how it ended.

    Attributes:
        moment: seconds from the start of the process to the signal.
        seconds: from the signal to the end of the process.
        wrong: what must not be, in words; empty if all is well.
        early: no line of the program had run.
    """

    engine: str
    number: int
    moment: float
    seconds: float
    code: int
    wrong: str = ""
    early: bool = False


def moments(count: int, seed: int) -> list[float]:
    """Moments of that many signals, seconds."""
    draw = random.Random(seed)
    return [
        draw.uniform(0, START) if draw.random() < SHARE_IN_START else draw.uniform(START, LAST)
        for _ in range(count)
    ]


def make_song(path: Path) -> Path:
    """Two minutes of noise: nobody finishes them within four seconds."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (SECONDS_OF_SONG * SAMPLE_RATE, 2))
    soundfile.write(path, noise.astype(np.float32), SAMPLE_RATE)
    return path


def interrupt(song: Path, work: Path, engine: str, number: int, moment: float) -> Interruption:
    """Start a run, send it a signal, and see how it ends."""
    work.mkdir()
    out = work / "out"
    command = [sys.executable, "-m", "mrsep_deploy", "run", str(song), "--engine", engine, "-o", str(out)]
    keyboard, terminal = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_own_terminal,
        cwd=work,
        env={**os.environ, "TMPDIR": str(work)},
    )
    os.close(terminal)
    said = _listen(keyboard, began + moment)
    early = not _handles_signals(process.pid)
    if number == signal.SIGINT:
        os.write(keyboard, b"\x03")
    else:
        process.send_signal(number)
    sent = time.monotonic()
    said += _listen(keyboard, sent + LONGEST + 1, process)
    took = time.monotonic() - sent
    if process.poll() is None:
        process.kill()
    code = process.wait()
    said += _listen(keyboard, time.monotonic())
    os.close(keyboard)
    text = said.decode(errors="replace")
    wrong = _wrong(text, None if early else code, CODES[signal.Signals(number)], took, work)
    shutil.rmtree(work)
    return Interruption(engine, number, moment, took, code, wrong, early)


def _handles_signals(process: int) -> bool:
    """Whether the program has begun, whose first line handles SIGTERM: Python itself does not. From Linux' /proc."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _listen(keyboard: int, until: float, process: subprocess.Popen[bytes] | None = None) -> bytes:
    """What the terminal shows until a moment, or until the process has ended."""
    os.set_blocking(keyboard, False)
    said = b""
    while True:
        with contextlib.suppress(BlockingIOError, OSError):  # OSError: nobody has the terminal open any more
            said += os.read(keyboard, 65536)
            continue
        if time.monotonic() >= until or (process is not None and process.poll() is not None):
            return said
        time.sleep(0.005)


def _wrong(text: str, code: int | None, expected: int, took: float, work: Path) -> str:
    """Returns what must not be; of an end before the program's first line (``code`` None), only its time and files."""
    # Nobody finishes the song, so that no stem may be there, under whatever name.
    left = [path.name for path in work.rglob("*") if path.is_file() and path.name != JOURNAL]
    problems = {
        f"it took {took:.1f} s": took > LONGEST,
        f"left behind: {', '.join(left)}": bool(left),
    }
    if code is None:
        return "; ".join(problem for problem, found in problems.items() if found)
    problems |= {
        f"exit code {code}, expected {expected}": code != expected,
        "a traceback": "Traceback" in text or "Exception ignored" in text,
        "it calls itself broken": "This is a bug" in text,
        f"not interrupted: {text[-300:]!r}": "error:" in text,
    }
    return "; ".join(problem for problem, found in problems.items() if found)


def interrupt_many(keyboard: int, terminate: int, side_by_side: int = 2, seed: int = 0) -> list[Interruption]:
    """Interrupt that many runs, and terminate that many, some at a time."""
    numbers = [signal.SIGINT] * keyboard + [signal.SIGTERM] * terminate
    times = moments(len(numbers), seed)
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-interrupts-") as folder:
        song = make_song(Path(folder) / "song.wav")

        def one(place: int) -> Interruption:
            engine = ENGINES[place % len(ENGINES)]
            return interrupt(song, Path(folder) / f"{place}", engine, numbers[place], times[place])

        with ThreadPoolExecutor(side_by_side) as pool:
            return list(pool.map(one, range(len(numbers))))


def summary(found: Sequence[Interruption]) -> dict[str, object]:
    """What was found, in figures."""
    ours = [each for each in found if not each.early]
    return {
        "interruptions": len(found),
        "by_engine": dict(Counter(each.engine for each in found)),
        "by_signal": dict(Counter(signal.Signals(each.number).name for each in found)),
        "before_the_first_line": len(found) - len(ours),
        "longest_seconds": round(max(each.seconds for each in ours), 2),
        "median_seconds": round(float(np.median([each.seconds for each in ours])), 3),
        "wrong": [
            f"{each.engine}, {signal.Signals(each.number).name} after {each.moment:.3f} s: {each.wrong}"
            for each in found
            if each.wrong
        ],
    }


def main() -> int:
    """Interrupt, and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--keyboard", type=int, default=300, metavar="N", help="runs that Ctrl-C ends")
    parser.add_argument("--terminate", type=int, default=100, metavar="N", help="runs that SIGTERM ends")
    parser.add_argument("--side-by-side", type=int, default=2, metavar="N", help="runs at a time")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    found = interrupt_many(given.keyboard, given.terminate, given.side_by_side, given.seed)
    print(json.dumps({**summary(found), "seconds": round(time.monotonic() - began)}, indent=2))
    return 1 if any(each.wrong for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
