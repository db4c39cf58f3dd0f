"""For tests of programs that use this package: an engine that needs no engine library and no time.

    from mrsep_deploy.testing import FakeEngine

    separator = Separator(bundle, engine=FakeEngine())      # every stage repeats its input

What a stage computes is a function from its inputs to its outputs, both by tensor name; the default,
:func:`identity`, repeats the first input over the output's channels. Given a function that raises, it
shows how a program takes a failing stage. No graph is opened: a bundle's manifest is all it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import Runner, Stream, Tensors
from mrsep_deploy.engines.contract import Availability, Engine, EngineOptions

__all__ = ["Arrays", "Compute", "FakeEngine", "identity"]

Arrays = Mapping[str, NDArray[Any]]

Compute = Callable[[Stage, Arrays, Arrays], None]
"""Fills a stage's outputs from its inputs, as a runner does; it sees the stage's own tensors only."""


def identity(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
    """Every output repeats the first input along axis 1; zeros where the other axes do not fit."""
    source = inputs[stage.inputs[0]]
    for target in outputs.values():
        if source.shape[2:] == target.shape[2:] and target.shape[1] % source.shape[1] == 0:
            target[...] = np.concatenate([source] * (target.shape[1] // source.shape[1]), axis=1)
        else:
            target[...] = 0


class FakeEngine(Engine):
    """An engine in plain NumPy.

    Attributes:
        prepared: names of the stages made ready so far, with their threads.
        calls: names of the stages run so far, in order.
        closed: names of the stages whose runner has been closed.
    """

    name: ClassVar[str] = "fake"
    title: ClassVar[str] = "Fake"

    def __init__(self, compute: Compute = identity, options: EngineOptions | None = None) -> None:
        super().__init__(options or EngineOptions())
        self.compute = compute
        self.prepared: dict[str, int] = {}
        self.calls: list[str] = []
        self.closed: list[str] = []

    @classmethod
    def availability(cls, device: int = 0) -> Availability:
        return Availability(True, np.__version__, "no device")

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        self.prepared[stage.name] = threads
        return _FakeRunner(self, stage)


class _FakeRunner(Runner):
    def __init__(self, engine: FakeEngine, stage: Stage) -> None:
        self.engine, self.stage = engine, stage

    def __call__(self, tensors: Tensors) -> None:
        self.engine.calls.append(self.stage.name)
        given, wanted = (
            {name: cast("NDArray[Any]", tensors[name]) for name in names}
            for names in (self.stage.inputs, self.stage.outputs)
        )
        self.engine.compute(self.stage, given, wanted)

    def close(self) -> None:
        if self.stage.name not in self.engine.closed:
            self.engine.closed.append(self.stage.name)
