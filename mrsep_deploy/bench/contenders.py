"""Contenders: specifications that a measuring process is started from, and the interface of each one there.

engines         a bundle on one of this project's engines, in a mode and a precision
torch           the published module, eager, on the CPU             torch-cuda        on the GPU
torch-compile   through torch.compile                               torch-cuda-compile
demucs          the class of the PyPI package demucs, same weights  torch-cuda-graph  its network captured
"""

from __future__ import annotations

import abc
import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.export.families import known_classes
from mrsep_deploy.precision.names import AskedPrecision
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.runtime.trace import TraceEvent

Float32 = NDArray[np.float32]

OURS = "mrsep_deploy.bench.ours:OurContender"
_TORCH = "mrsep_deploy.bench.torch_contenders:"
AGAINST: Mapping[str, str] = {
    "torch": _TORCH + "TorchEager",
    "torch-compile": _TORCH + "TorchCompiled",
    "torch-cuda": _TORCH + "TorchEager",
    "torch-cuda-compile": _TORCH + "TorchCompiled",
    "torch-cuda-graph": _TORCH + "TorchCudaGraph",
    "demucs": _TORCH + "DemucsContender",
}
"""What engines are compared with, and the class of each; those with cuda in their names run on the GPU."""
REFERENCE = _TORCH + "TorchDouble"


def class_in_demucs(family: str) -> str | None:
    """The model class of the installed package demucs for a bundle's family, ``module.Class``; None if it has none."""
    for name, variant in known_classes().items():
        module = name.rpartition(".")[0]
        if variant == family.lower() and module.startswith("demucs."):
            with contextlib.suppress(ModuleNotFoundError):
                if importlib.util.find_spec(module) is not None:
                    return name
    return None


@dataclass(frozen=True)
class Contender:
    """One that takes part, as plain values.

    Attributes:
        label: what tables call it; one of its kind in a race.
        opener: ``module:class`` of its :class:`Opened`.
        bundle: path of the bundle; where the precision is another, of the one converted to it.
        engine, mode, precision: of an engine's contender; empty otherwise.
        device: ``cpu`` or ``cuda``; whose memory, energy and ceilings count.
        batch: segments in one run.
        threads: CPU threads.
        lanes: segments side by side; only whole songs have several.
        overlap: share of a segment that the next one repeats, in whole songs.
        checkpoint: where the checkpoint lies, if not where it was exported from.
    """

    label: str
    opener: str
    bundle: str
    engine: str = ""
    mode: Mode = "sequential"
    precision: AskedPrecision = "fp32"
    device: str = "cpu"
    batch: int = 1
    threads: int = 1
    lanes: int = 1
    overlap: float = 0.25
    checkpoint: str | None = None

    @property
    def checkpoint_path(self) -> Path | None:
        return None if self.checkpoint is None else Path(self.checkpoint)


class Opened(abc.ABC):
    """A contender in its own process, loaded and ready; making one raises ``MrsepError`` if it does not work here."""

    @classmethod
    @abc.abstractmethod
    def imports(cls, contender: Contender) -> None:
        """Import what it needs, so that start-up can tell importing from loading."""

    @abc.abstractmethod
    def __init__(self, contender: Contender) -> None: ...

    @abc.abstractmethod
    def segments(self, mix: Float32) -> NDArray[Any]:
        """Segments ``[B, C, L]`` in host memory to stems ``[B, S, C, L]`` in host memory."""

    @abc.abstractmethod
    def song(self, mix: Float32) -> NDArray[Any]:
        """A song ``[C, n]`` to stems ``[S, C, n]``, cut into segments and put together again."""

    def timeline(self, mix: Float32, segments: int) -> tuple[list[TraceEvent], float] | None:
        """Who ran when over some batches like ``mix``, and the seconds they took; None if it does not know.

        The contender may not be used afterwards.
        """
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. Idempotent."""


def label_of(engine: str, precision: str, mode: str, precisions: Sequence[str], lanes: int = 1) -> str:
    """``ort``, ``ort fp16 concurrent``, ``ort 2 lanes``: what is the usual goes without saying."""
    words = [engine]
    if precision != "fp32" or len(precisions) > 1:
        words.append(precision)
    if mode != "sequential":
        words.append(mode)
    if lanes > 1:
        words.append(f"{lanes} lanes")
    return " ".join(words)
