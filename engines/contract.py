"""What an engine promises: to say whether it works here, and to turn a graph stage into a runner.

    availability()          works here? which version and device? if not, the one line that fixes it
    prepare(bundle, stage)  -> runner, built or loaded from the cache
    runner(inputs, outputs) fills the given output buffers from the given inputs

Buffers are contiguous float32 arrays of the shapes the manifest declares; a runner allocates no
result of its own and keeps no reference to either side after it returns.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.manifest import Stage

Buffers = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Availability:
    """Whether an engine works on this machine.

    Attributes:
        works: it can be used now.
        version: of the library, empty if it is not installed.
        device: what it would run on.
        reason: why it does not work.
        fix: the one command or step that makes it work.
    """

    works: bool
    version: str = ""
    device: str = ""
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class EngineOptions:
    """How to run.

    Attributes:
        threads: threads one stage may use; 0 for all this process may use.
        checkpoint: for the torch engine, where the checkpoint lies if it has moved since the export.
    """

    threads: int = 0
    checkpoint: Path | None = None


class Runner(Protocol):
    """One prepared stage."""

    def __call__(self, inputs: Buffers, outputs: Buffers) -> None:
        """Compute ``outputs`` from ``inputs``, both by tensor name."""


class Engine(abc.ABC):
    """Base of all engines. ``name`` is what users type after ``--engine``."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @classmethod
    @abc.abstractmethod
    def availability(cls) -> Availability:
        """Look, without raising and without loading more than needed."""

    @abc.abstractmethod
    def prepare(self, bundle: Bundle, stage: Stage) -> Runner:
        """Make a graph stage ready to run.

        Raises:
            EngineError: the stage cannot be built; the message names stage and operator.
        """
