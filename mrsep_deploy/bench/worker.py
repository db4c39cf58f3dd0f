"""The measuring process of one contender: loads it, runs it on order, and reports seconds, memory and energy.

python -m mrsep_deploy.bench.worker

Peak memory and start-up belong to one contender because a process does. ``standalone/peer_worker.py`` is the same
for peers.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mrsep_deploy.bench.standalone.serving import Answer, Server, read_input, serve

if TYPE_CHECKING:
    from mrsep_deploy.bench.contenders import Opened

TRACED = 4
"""Batches in a timeline."""


class Worker(Server):
    """Carries out orders on a contender of this project's, or on PyTorch."""

    opened: Opened

    def failure(self, error: Exception) -> Answer:
        from mrsep_deploy.bench.results import outcome

        status, reason, fix = outcome(error)
        return {"error": reason, "fix": fix, "status": status}

    # --- orders

    def open(self, contender: Mapping[str, Any], mix: str, born: float) -> Answer:
        """Import, load, and run the first segments, each timed; ``born`` is when the process was asked for."""
        from mrsep_deploy.bench.contenders import Contender
        from mrsep_deploy.bench.standalone.energy import cpu_meter, gpu_memory_used, gpu_meter

        given = Contender(**contender)
        gpu = given.device == "cuda"
        used = gpu_memory_used() if gpu else None
        module, name = given.opener.split(":")
        kind: type[Opened] = getattr(importlib.import_module(module), name)
        started = self.start(lambda: kind.imports(given), lambda: kind(given), mix, born)
        after = gpu_memory_used() if gpu else None
        return {
            **started,
            **self.measure({"cpu": cpu_meter(), **({"gpu": gpu_meter()} if gpu else {})}),
            "device_bytes": None if used is None or after is None else max(0, after - used),
        }

    def write_single(self, mix: str, path: str) -> Answer:
        """PyTorch's stems in float32, where the contender is the reference in float64."""
        from mrsep_deploy.bench.torch_contenders import TorchDouble

        assert isinstance(self.opened, TorchDouble)
        self.stems = self.opened.single(read_input(mix, 0))
        return self.write(path)

    def write_model(self, folder: str) -> Answer:
        """The model for peers, where the contender is the reference: :func:`mrsep_deploy.bench.peer_model.write`."""
        from mrsep_deploy.bench.peer_model import write
        from mrsep_deploy.bench.torch_contenders import TorchDouble

        assert isinstance(self.opened, TorchDouble)
        write(self.opened.manifest, self.opened.contender.checkpoint_path, folder)
        return {}

    def timeline(self, mix: str) -> Answer:
        """Who ran when, if the contender knows; it cannot be used afterwards."""
        from mrsep_deploy.runtime.timeline import overhead

        found = self.opened.timeline(read_input(mix, 0), TRACED)
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


if __name__ == "__main__":
    serve(Worker())
