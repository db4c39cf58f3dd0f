"""Takes orders on stdin, answers on stdout, a line of JSON each, and times every contender the same way.

Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import time

STARTED, BEGAN = time.time(), time.perf_counter()

import contextlib  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Protocol  # noqa: E402

Answer = Mapping[str, Any]

SETTLE_SECONDS = 0.01
"""Before each turn: threads of whoever had the turn before spin for some milliseconds after their last work."""


class Running(Protocol):
    """A contender that is loaded and ready."""

    def segments(self, mix: Any) -> Any:
        """Segments ``[B, C, L]`` to stems ``[B, S, C, L]``, both arrays in host memory."""

    def song(self, mix: Any) -> Any:
        """A song ``[C, n]`` to stems ``[S, C, n]``."""

    def close(self) -> None:
        """Let go of everything. Idempotent."""


class Meter(Protocol):
    """Counts joules: see ``energy.py``."""

    @property
    def source(self) -> str: ...

    @property
    def reason(self) -> str: ...

    def read(self) -> list[float]: ...

    def since(self, before: list[float]) -> float | None: ...


class Server:
    """Carries out orders on one contender: each is the name of a method, with its arguments."""

    opened: Running
    stems: Any
    meters: Mapping[str, Meter]

    def __init__(self) -> None:
        self.closing = contextlib.ExitStack()

    def failure(self, error: Exception) -> Answer:
        """``error``, ``fix`` and ``status`` of an order that raised an error."""
        raise NotImplementedError

    def answer(self, do: str, number: int, **given: Any) -> Answer:
        """What came of an order, or its failure; with the process' CPU seconds and peak memory."""
        try:
            answer = getattr(self, do)(**given)
        except Exception as error:  # whatever a contender raises is its own row's business
            answer = self.failure(error)
        used = {"cpu_seconds": time.process_time(), "peak_bytes": peak_memory()}
        return {**answer, **used, "number": number}

    def start(
        self, imports: Callable[[], object], load: Callable[[], Running], mix: str, born: float
    ) -> dict[str, Any]:
        """Import, load, and run the first segments, each timed.

        Args:
            mix: file of the segments.
            born: when the process was asked for.
        """
        marks = [BEGAN]
        imports()
        marks.append(time.perf_counter())
        self.opened = self.closing.enter_context(contextlib.closing(load()))
        marks.append(time.perf_counter())
        loaded = peak_memory()
        self.stems = self.opened.segments(read_input(mix, 0))
        marks.append(time.perf_counter())
        names = zip(("import", "load", "first_segments"), itertools.pairwise(marks), strict=True)
        return {
            "start_up": {
                "process": max(0.0, STARTED - born),
                **{name: later - before for name, (before, later) in names},
                "total": time.time() - born,
            },
            "loaded_bytes": loaded,
        }

    def measure(self, meters: Mapping[str, Meter]) -> Answer:
        """Read these meters in every turn from now on; returns what they are."""
        self.meters = meters
        return {
            "meters": {name: {"source": each.source, "reason": each.reason} for name, each in meters.items()}
        }

    # --- orders

    def run(self, mix: str, item: int, song: bool) -> Answer:
        """One turn: seconds from the mix in host memory to the stems in host memory, and joules."""
        samples = read_input(mix, item)
        time.sleep(SETTLE_SECONDS)
        before = {name: meter.read() for name, meter in self.meters.items()}
        began = time.perf_counter()
        self.stems = self.opened.song(samples) if song else self.opened.segments(samples)
        seconds = time.perf_counter() - began
        joules = {name: meter.since(before[name]) for name, meter in self.meters.items()}
        return {"seconds": seconds, "joules": joules}

    def write(self, path: str) -> Answer:
        """The stems of the last run, into a file of NumPy's."""
        import numpy as np

        np.save(path, self.stems)
        return {}

    def timeline(self, mix: str) -> Answer:
        """Who ran when, if the contender knows; it cannot be used afterwards."""
        return {"timeline": None}

    def close(self) -> Answer:
        """Let the contender go."""
        self.closing.close()
        return {}


def serve(server: Server) -> None:
    """Serve until stdin ends."""
    # Ctrl-C reaches every process of the terminal; the one that gives the orders decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what anybody else prints on stdout goes to stderr from now on
        for line in sys.stdin:
            order = json.loads(line)
            answers.write(json.dumps(server.answer(**order)) + "\n")
            answers.flush()
            if order["do"] == "close":
                return


def read_input(path: str, item: int) -> Any:
    """One item of a file of inputs, in memory of its own."""
    import numpy as np

    return np.array(np.load(path, mmap_mode="r")[item])


def peak_memory() -> int | None:
    """The most resident memory this process has had, in bytes; None where the system does not tell.

    The kernel's account of the process itself: ``ru_maxrss`` would count the parent's at the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
