"""Contenders: specifications that a measuring process is started from, and the interface of each one there.

engines         a bundle on one of this project's engines, in a mode and a precision
torch           the published module, eager, on the CPU             torch-cuda        on the GPU
torch-compile   through torch.compile                               torch-cuda-compile
                                                                    torch-cuda-graph  its network captured
peers           other projects' packages on the same weights, each in a virtual environment of its own
"""

from __future__ import annotations

import abc
import contextlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.errors import UsageError
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
}
"""What engines are compared with, and the class of each; those with cuda in their names run on the GPU."""
PEERS: Mapping[str, str] = {
    "demucs": "peers:Demucs",
    "demucs-onnx": "peers:DemucsOnnx",
    "unblend": "peers:Unblend",
    "unblend-bf16": "peers:Unblend",
}
"""Packages that engines are compared with on a CPU, and the class of each in ``bench/standalone``."""
REFERENCE = _TORCH + "TorchDouble"


def class_in_demucs(family: str) -> str | None:
    """The model class of the package demucs for a bundle's family, ``module.Class``; None if it may have none."""
    names = (name for name, variant in known_classes().items() if variant == family.lower())
    return next((name for name in names if name.startswith("demucs.")), None)


def demucs_has(family: str) -> bool:
    """Whether demucs is installed here, with a model class for a bundle's family."""
    module = (class_in_demucs(family) or "").rpartition(".")[0]
    with contextlib.suppress(ModuleNotFoundError):
        return bool(module) and importlib.util.find_spec(module) is not None
    return False


@dataclass(frozen=True)
class Contender:
    """One that takes part, as plain values.

    Attributes:
        label: what tables call it; one of its kind in a race.
        opener: ``module:class`` of its :class:`Opened`.
        bundle: path of the bundle; where the precision is another, of the one converted to it.
        source: path of the float32 bundle that it was converted from; empty where it is as it was named.
        engine, mode, precision: of an engine's contender; empty otherwise.
        device: ``cpu`` or ``cuda``; whose memory, energy and ceilings count.
        batch: segments in one run.
        threads: CPU threads.
        lanes: segments side by side; only whole songs have several.
        overlap: share of a segment that the next one repeats, in whole songs.
        checkpoint: where the checkpoint lies, if not where it was exported from.
        python: of a peer, the interpreter that it is installed for; empty for all others.
    """

    label: str
    opener: str
    bundle: str
    source: str = ""
    engine: str = ""
    mode: Mode = "sequential"
    precision: AskedPrecision = "fp32"
    device: str = "cpu"
    batch: int = 1
    threads: int = 1
    lanes: int = 1
    overlap: float = 0.25
    checkpoint: str | None = None
    python: str = ""

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


def opponent(given: str, base: Contender) -> Contender:
    """The contender that ``NAME`` or, for peers, ``NAME=VENV`` stands for, of :data:`AGAINST` or :data:`PEERS`.

    Raises:
        UsageError: there is no such name, or no Python where its environment was said to be.
    """
    name, equals, place = given.partition("=")
    if name in AGAINST and not equals:
        device = "cuda" if "cuda" in name else "cpu"
        return replace(base, label=name, opener=AGAINST[name], device=device)
    if name not in PEERS:
        known = ", ".join((*AGAINST, *(f"{peer}=VENV" for peer in PEERS)))
        raise UsageError(f"{given} was given to compare with, expected one of {known}")
    precision: AskedPrecision = "bf16" if name.endswith("-bf16") else "fp32"
    python = python_of(name, Path(place)) if equals else sys.executable
    return replace(base, label=name, opener=PEERS[name], python=python, precision=precision)


def python_of(peer: str, venv: Path) -> str:
    """The interpreter of a virtual environment, or ``venv`` itself where it is one.

    Raises:
        UsageError: there is none.
    """
    for path in (venv / "bin" / "python", venv / "Scripts" / "python.exe", venv):
        if path.is_file():
            return str(path.absolute())
    raise UsageError(
        f"{venv} holds no Python for {peer}, expected a virtual environment",
        f"python -m venv {venv} && {venv}/bin/pip install {peer.removesuffix('-bf16')}",
    )


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
