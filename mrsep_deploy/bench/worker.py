"""The measuring process of one contender: loads it, runs it on order, and reports seconds, memory and energy.

python -m mrsep_deploy.bench.worker CONTENDER.json

Orders come on stdin and answers go to stdout, a line of JSON each. Whatever libraries print goes to stderr.
Peak memory and start-up belong to one contender because a process does.
"""

from __future__ import annotations

import time

STARTED, BEGAN = time.time(), time.perf_counter()

import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import IO, TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from mrsep_deploy.bench.contenders import Contender, Opened

TRACED = 4
"""Batches in a timeline."""
SETTLE_SECONDS = 0.01
"""Before each turn: threads of whoever had the turn before spin for some milliseconds after their last work."""


def main(job: Path) -> None:
    """Serve until stdin ends."""
    # Ctrl-C reaches every process of the terminal; the one that gives the orders decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _own_stdout() as answers:
        worker = Worker(json.loads(job.read_text(encoding="utf-8")))
        for line in sys.stdin:
            order = json.loads(line)
            answers.write(json.dumps(worker.answer(order)) + "\n")
            answers.flush()
            if order["do"] == "close":
                return


def _own_stdout() -> IO[str]:
    """Stdout for answers only; what anybody else prints there goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


class Worker:
    """Carries out orders; ``spec`` is a :class:`Contender` as plain values."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.opened: Opened | None = None
        self.stems: Any = None

    def answer(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """What came of an order, or ``error`` with ``fix`` and ``kind``."""
        from mrsep_deploy.errors import EngineUnavailableError, UsageError, named_line

        orders: Mapping[str, Callable[..., dict[str, Any]]] = {
            "open": self.open,
            "run": self.run,
            "stems": self.write,
            "reference": self.reference,
            "memory": self.memory,
            "timeline": self.timeline,
            "close": self.close,
        }
        given = {name: value for name, value in order.items() if name not in ("do", "number")}
        try:
            answer = orders[order["do"]](**given)
        except Exception as error:  # whatever a contender raises is its own row's business
            text = getattr(error, "message", "") or named_line(error)
            kind = "unavailable" if isinstance(error, (EngineUnavailableError, UsageError)) else "failed"
            answer = {"error": text, "fix": getattr(error, "fix", ""), "kind": kind}
        return {**answer, "number": order["number"], "cpu_seconds": time.process_time()}

    # --- orders

    def open(self, mix: str, born: float) -> dict[str, Any]:
        """Import, load, and run the first segments, each timed; ``born`` is when the process was asked for."""
        from mrsep_deploy.bench.contenders import Contender, opened_class
        from mrsep_deploy.bench.energy import cpu_meter, gpu_memory_used, gpu_meter

        contender: Contender = Contender(**self.spec)
        gpu = contender.device == "cuda"
        used = gpu_memory_used() if gpu else None
        marks = [BEGAN]
        kind = opened_class(contender.opener)
        kind.imports(contender)
        marks.append(time.perf_counter())
        self.opened = kind(contender)
        marks.append(time.perf_counter())
        loaded = peak_memory()
        self.stems = self.opened.segments(_input(mix, 0))
        marks.append(time.perf_counter())
        self.meters = {"cpu": cpu_meter(), **({"gpu": gpu_meter()} if gpu else {})}
        after = gpu_memory_used() if gpu else None
        imported, load, first = (later - before for before, later in itertools.pairwise(marks))
        return {
            "start_up": {
                "process": max(0.0, STARTED - born),
                "import": imported,
                "load": load,
                "first_segments": first,
                "total": time.time() - born,
            },
            "loaded_bytes": loaded,
            "device_bytes": None if used is None or after is None else max(0, after - used),
            "traces": self.opened.traces,
            "meters": {name: {"source": m.source, "reason": m.reason} for name, m in self.meters.items()},
        }

    def run(self, mix: str, item: int, song: bool) -> dict[str, Any]:
        """One turn: seconds from the mix in host memory to the stems in host memory, and joules."""
        assert self.opened is not None
        samples = _input(mix, item)
        time.sleep(SETTLE_SECONDS)
        before = {name: meter.read() for name, meter in self.meters.items()}
        began = time.perf_counter()
        self.stems = self.opened.song(samples) if song else self.opened.segments(samples)
        seconds = time.perf_counter() - began
        joules = {name: meter.since(before[name]) for name, meter in self.meters.items()}
        return {"seconds": seconds, "joules": joules}

    def write(self, path: str) -> dict[str, Any]:
        """The stems of the last run, into a file of NumPy's."""
        import numpy as np

        np.save(path, self.stems)
        return {}

    def reference(self, mix: str, path: str, single: str) -> dict[str, Any]:
        """PyTorch's stems in float64 and in float32, into two files."""
        import numpy as np

        from mrsep_deploy.bench.torch_contenders import TorchDouble

        assert isinstance(self.opened, TorchDouble)
        np.save(path, self.stems)
        np.save(single, self.opened.single(_input(mix, 0)))
        return {}

    def memory(self) -> dict[str, Any]:
        """The most this process has held so far, loading included."""
        return {"peak_bytes": peak_memory()}

    def timeline(self, mix: str) -> dict[str, Any]:
        """Who ran when; the contender cannot be used afterwards."""
        from mrsep_deploy.runtime.timeline import overhead

        assert self.opened is not None
        events, seconds = self.opened.timeline(_input(mix, 0), TRACED)
        start = min(event.start for event in events)
        moved = [
            {**asdict(event), "start": event.start - start, "end": event.end - start} for event in events
        ]
        return {"events": moved, "seconds": seconds, "outside_stages": overhead(events, seconds)}

    def close(self) -> dict[str, Any]:
        """Let the contender go."""
        if self.opened is not None:
            self.opened.close()
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
    main(Path(sys.argv[1]))
