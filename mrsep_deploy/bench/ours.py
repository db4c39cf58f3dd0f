"""A bundle on one of this project's engines, in a measuring process; other contenders do without these imports."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bench.contenders import Contender, Float32, Opened
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.runtime.trace import TraceEvent
from mrsep_deploy.separation.separator import Separator


class OurContender(Opened):
    """A bundle on one of this project's engines: what ``mrsep-deploy run`` runs."""

    @classmethod
    def imports(cls, contender: Contender) -> None:
        # Looking whether it works imports its library.
        choose(contender.engine, EngineOptions(contender.threads)).engine.device.close()

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.separator = self._separator(trace=False)

    def _separator(self, trace: bool) -> Separator:
        contender = self.contender
        bundle = Bundle.open(contender.bundle).at_batch(contender.batch)
        if contender.source:
            bundle = bundle.made_from(Bundle.open(contender.source))
        return Separator(
            bundle,
            engine=contender.engine,
            threads=contender.threads,
            checkpoint=contender.checkpoint_path,
            overlap=contender.overlap,
            mode=contender.mode,
            lanes=contender.lanes,
            trace=trace,
        )

    def segments(self, mix: Float32) -> NDArray[Any]:
        return self.separator.run_segments(mix)

    def song(self, mix: Float32) -> NDArray[Any]:
        return np.stack(list(self.separator.separate(mix).values()))

    def timeline(self, mix: Float32, segments: int) -> tuple[list[TraceEvent], float]:
        """Batches back to back, two under way, in a separator of its own that traces."""
        self.separator.close()
        self.separator = self._separator(trace=True)
        scheduler = self.separator.scheduler
        assert scheduler.trace is not None
        for _ in range(2):
            scheduler.run(mix)
        scheduler.trace.clear()
        began = time.perf_counter()
        ticket = scheduler.submit(mix)
        for _ in range(segments - 1):
            following = scheduler.submit(mix)
            scheduler.result(ticket)
            ticket = following
        scheduler.result(ticket)
        return scheduler.trace.events(), time.perf_counter() - began

    def close(self) -> None:
        self.separator.close()
