"""What takes part: torch in several ways, and our engines in every mode, all from host mix to host stems."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mrsep_deploy.bench.ceilings_cuda import tf32
from mrsep_deploy.bench.torch_contenders import GraphedModel
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.separation.separator import Separator

Samples = NDArray[np.float32]

TORCH_WAYS = ("eager", "eager TF32", "autocast fp16", "CUDA graph", "compile")
"""``CUDA graph`` captures the network; spectrograms and inverses stay eager, because torch's inverse
transform reads a result back, which a capture forbids."""

RATES = {"eager TF32": "fp32 TF32 on", "autocast fp16": "fp16"}
"""Which ceiling a way is held against; ``fp32 TF32 off`` where it is not named."""


class Contender(abc.ABC):
    """Something that separates one batch of segments, again and again."""

    name: str
    rate: str = "fp32 TF32 off"

    @abc.abstractmethod
    def run(self) -> Samples:
        """Mix in host memory to stems ``[b, S, C, L]`` in host memory; returns when they are there."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything."""


class TorchContender(Contender):
    """The published module on the GPU.

    Args:
        way: one of ``TORCH_WAYS``.
        model: on the GPU.
        mix: ``[b, C, L]``.
    """

    def __init__(self, way: str, model: SeparationModel, mix: Samples) -> None:
        self.name, self.way = f"torch {way}", way
        self.rate = RATES.get(way, Contender.rate)
        self.host = torch.from_numpy(mix).pin_memory()
        self.mix = self.host.to("cuda")
        self.stems: torch.Tensor | None = None
        self.call = self._call(model)

    def _call(self, model: SeparationModel) -> Callable[[torch.Tensor], torch.Tensor]:
        if self.way == "compile":
            compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model)
            return compiled
        return GraphedModel(model, self.mix) if self.way == "CUDA graph" else model

    def run(self) -> Samples:
        fp16 = self.way == "autocast fp16"
        cast = torch.autocast("cuda", torch.float16) if fp16 else contextlib.nullcontext()
        with torch.inference_mode(), tf32(self.way == "eager TF32"), cast:
            self.mix.copy_(self.host, non_blocking=True)
            stems = self.call(self.mix)
            if self.stems is None:
                self.stems = torch.empty(stems.shape, dtype=torch.float32, pin_memory=True)
            self.stems.copy_(stems, non_blocking=True)
        torch.cuda.synchronize()
        result: Samples = self.stems.numpy()
        return result

    def close(self) -> None:
        del self.call, self.mix, self.host, self.stems
        torch.cuda.empty_cache()


class OurContender(Contender):
    """A bundle on one of this project's engines.

    Raises:
        MrsepError: the engine does not work here, or cannot build a stage.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str,
        mode: Mode,
        precision: Precision,
        mix: Samples,
        checkpoint: Path | None = None,
        trace: bool = False,
    ) -> None:
        self.engine, self.mode, self.precision = engine, mode, precision
        self.layout = bundle.manifest.layout
        self.name = f"{engine} {precision} {self.layout} {mode}"
        self.rate = "fp16" if precision == "fp16" else Contender.rate
        self.mix = mix
        chosen = choose(engine, EngineOptions(checkpoint=checkpoint, precision=precision)).engine
        try:
            self.separator = Separator(bundle, engine=chosen, mode=mode, trace=trace)
        except BaseException:
            chosen.close()
            raise

    def run(self) -> Samples:
        return self.separator.run_segments(self.mix)

    def slots(self) -> list[Samples]:
        """The stems of one batch from every slot, all under way at once: in graph mode from every slot's graph."""
        scheduler = self.separator.scheduler
        tickets = [scheduler.submit(self.mix) for _ in range(scheduler.capacity)]
        return [scheduler.result(ticket).copy() for ticket in tickets]

    def pipelined(self, segments: int) -> None:
        """Many batches, always two of them under way."""
        scheduler = self.separator.scheduler
        tickets = [scheduler.submit(self.mix)]
        for _ in range(segments - 1):
            tickets.append(scheduler.submit(self.mix))
            scheduler.result(tickets.pop(0))
        scheduler.result(tickets.pop())

    def close(self) -> None:
        self.separator.close()
