"""The measuring process of one contender: loads it, runs it on order, and reports seconds, memory and energy.

python -m mrsep_deploy.bench.worker

Orders come on stdin and answers go to stdout, a line of JSON each. Whatever libraries print goes to stderr.
Peak memory and start-up belong to one contender because a process does.
"""

from __future__ import annotations

import time

STARTED, BEGAN = time.time(), time.perf_counter()

import contextlib  # noqa: E402
import importlib  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from mrsep_deploy.bench.contenders import Opened

Answer = Mapping[str, Any]

TRACED = 4
"""Batches in a timeline."""
SETTLE_SECONDS = 0.01
"""Before each turn: threads of whoever had the turn before spin for some milliseconds after their last work."""


def main() -> None:
    """Serve until stdin ends."""
    # Ctrl-C reaches every process of the terminal; the one that gives the orders decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what anybody else prints on stdout goes to stderr from now on
        worker = Worker()
        for line in sys.stdin:
            order = json.loads(line)
            answers.write(json.dumps(worker.answer(**order)) + "\n")
            answers.flush()
            if order["do"] == "close":
                return


class Worker:
    """Carries out orders: each is the name of a method, with its arguments."""

    opened: Opened
    stems: Any

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()

    def answer(self, do: str, number: int, **given: Any) -> Answer:
        """What came of an order, or ``error`` with ``fix`` and ``status``."""
        try:
            answer = getattr(self, do)(**given)
        except Exception as error:  # whatever a contender raises is its own row's business
            from mrsep_deploy.bench.results import outcome

            status, reason, fix = outcome(error)
            answer = {"error": reason, "fix": fix, "status": status}
        used = {"cpu_seconds": time.process_time(), "peak_bytes": peak_memory()}
        return {**answer, **used, "number": number}

    # --- orders

    def open(self, contender: Mapping[str, Any], mix: str, born: float) -> Answer:
        """Import, load, and run the first segments, each timed; ``born`` is when the process was asked for."""
        from mrsep_deploy.bench.contenders import Contender
        from mrsep_deploy.bench.energy import cpu_meter, gpu_memory_used, gpu_meter

        given = Contender(**contender)
        gpu = given.device == "cuda"
        used = gpu_memory_used() if gpu else None
        marks = [BEGAN]
        module, name = given.opener.split(":")
        kind: type[Opened] = getattr(importlib.import_module(module), name)
        kind.imports(given)
        marks.append(time.perf_counter())
        self.opened = self._closing.enter_context(contextlib.closing(kind(given)))
        marks.append(time.perf_counter())
        loaded = peak_memory()
        self.stems = self.opened.segments(_input(mix, 0))
        marks.append(time.perf_counter())
        self.meters = {"cpu": cpu_meter(), **({"gpu": gpu_meter()} if gpu else {})}
        after = gpu_memory_used() if gpu else None
        steps = zip(("import", "load", "first_segments"), itertools.pairwise(marks), strict=True)
        return {
            "start_up": {
                "process": max(0.0, STARTED - born),
                **{step: later - before for step, (before, later) in steps},
                "total": time.time() - born,
            },
            "loaded_bytes": loaded,
            "device_bytes": None if used is None or after is None else max(0, after - used),
            "meters": {name: {"source": m.source, "reason": m.reason} for name, m in self.meters.items()},
        }

    def run(self, mix: str, item: int, song: bool) -> Answer:
        """One turn: seconds from the mix in host memory to the stems in host memory, and joules."""
        samples = _input(mix, item)
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

    def write_single(self, mix: str, path: str) -> Answer:
        """PyTorch's stems in float32, where the contender is the reference in float64."""
        from mrsep_deploy.bench.torch_contenders import TorchDouble

        assert isinstance(self.opened, TorchDouble)
        self.stems = self.opened.single(_input(mix, 0))
        return self.write(path)

    def timeline(self, mix: str) -> Answer:
        """Who ran when, if the contender knows; it cannot be used afterwards."""
        from mrsep_deploy.runtime.timeline import overhead

        found = self.opened.timeline(_input(mix, 0), TRACED)
        if found is None:
            return {"timeline": None}
        events, seconds = found
        start = min(event.start for event in events)
        shares: dict[str, float] = {}
        for event in events:
            shares[event.stage] = shares.get(event.stage, 0.0) + (event.end - event.start) / seconds
        timeline = {
            "events": [{**asdict(e), "start": e.start - start, "end": e.end - start} for e in events],
            "seconds": seconds,
            "outside_stages": overhead(events, seconds),
            "shares": shares,
        }
        return {"timeline": timeline}

    def close(self) -> Answer:
        """Let the contender go."""
        self._closing.close()
        return {}


def _input(path: str, item: int) -> Any:
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


if __name__ == "__main__":
    main()
