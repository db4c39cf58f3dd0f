"""Random models for the scheduler: graphs of stages as a manifest, runners that watch what they read.

A stage mixes the numbers of its inputs in a way that depends on its name, so that a stage which reads the
wrong thing gives the wrong answer. The first number of every tensor says which segment it belongs to, the
second which tensor it is: runners check both before and after they compute, and so find a buffer that was
read too early or overwritten too soon.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import time
import types
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from fake_cuda import FakeDriver
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import (
    MIX,
    STEMS,
    Branch,
    FileInfo,
    Manifest,
    ModelInfo,
    Stage,
    TensorSpec,
    Transform,
)
from mrsep_deploy.bundle.manifest_check import check
from mrsep_deploy.devices.interface import Device, Runner, Stream, Tensors
from mrsep_deploy.engines.contract import Availability, Engine, EngineOptions
from mrsep_deploy.errors import EngineError

Arrays = Mapping[str, NDArray[Any]]
CHANNELS, SAMPLES, SOURCES = 2, 48, ("drums", "other")


# --- models ------------------------------------------------------------------------------------------------


@dataclass
class _Model:
    """A manifest while it grows."""

    choose: random.Random
    batch: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)

    def tensor(self, name: str, *shape: int) -> str:
        self.shapes[name] = (self.batch, *shape)
        return name

    def any_size(self, name: str) -> str:
        """Sizes from a few numbers to a few kilobytes, so that buffers are placed in many ways."""
        return self.tensor(name, self.choose.choice((2, 3, 8, 64)), self.choose.choice((4, 5, 17)))

    def stage(self, name: str, kind: Any, branch: str, inputs: list[str], outputs: list[str]) -> None:
        file = f"{name}.onnx" if kind == "graph" else None
        self.stages.append(Stage(name, kind, branch, tuple(inputs), tuple(outputs), file))


def random_manifest(seed: int, batch: int) -> Manifest:
    """Branches of several resolutions with skips, perhaps a shared bottleneck, perhaps joined graphs,
    perhaps stages that read the mix itself, another branch, or are read by nobody."""
    choose = random.Random(seed)
    model = _Model(choose, batch)
    model.tensor(MIX, CHANNELS, SAMPLES)
    model.tensor(STEMS, len(SOURCES), CHANNELS, SAMPLES)
    names = ["16", "32", "64"][: choose.randint(1, 3)] + ["time"] * choose.randint(0, 1)
    middle = choose.choice(("bottleneck", "two", "none", "whole"))
    for name in names:
        outputs = [model.any_size(f"input_{name}"), model.tensor(f"statistics_{name}", 2)]
        kind = "normalize" if name == "time" else "spectrogram"
        model.stage(f"head.{name}", kind, name, [MIX], outputs)
        if choose.random() < 0.2:
            idle = [model.any_size(f"idle_{name}"), model.tensor(f"idle_statistics_{name}", 2)]
            model.stage(f"idle_head.{name}", kind, name, [MIX], idle)
    if middle == "whole":
        estimates = [model.any_size(f"estimate_{name}") for name in names]
        model.stage("model", "graph", "shared", [f"input_{name}" for name in names], estimates)
    else:
        _split_body(model, names, middle)
    for name in names:
        kind = "denormalize" if name == "time" else "inverse"
        inputs = [f"estimate_{name}", f"statistics_{name}"]
        model.stage(f"tail.{name}", kind, name, inputs, [model.tensor(f"signal_{name}", 2, 2, SAMPLES)])
    fusion = choose.choice(("sum", "graph"))
    model.stage("fusion", fusion, "shared", [f"signal_{name}" for name in names], [STEMS])
    return _finished(model, names)


def _split_body(model: _Model, names: list[str], middle: str) -> None:
    choose = model.choose
    skips: dict[str, list[str]] = {}
    for name in names:
        skips[name] = [model.any_size(f"skip{i}_{name}") for i in range(choose.randint(0, 3))]
        inputs = [f"input_{name}"]
        if choose.random() < 0.3:
            inputs.append(model.any_size(f"raw_{name}"))
            model.stage(f"raw.{name}", "graph", name, [MIX], [f"raw_{name}"])
        model.stage(f"encoder.{name}", "graph", name, inputs, [model.any_size(f"deep_{name}"), *skips[name]])
        if choose.random() < 0.2:
            inputs = [f"deep_{name}", f"input_{name}"]
            model.stage(f"side.{name}", "graph", name, inputs, [model.any_size(f"unused_{name}")])
    bottoms = {name: f"deep_{name}" for name in names}
    if middle != "none":
        deep = {name: model.any_size(f"mixed_{name}") for name in names}
        model.stage("bottleneck", "graph", "shared", list(bottoms.values()), list(deep.values()))
        bottoms = deep
    if middle == "two":
        deep = {name: model.any_size(f"mixed2_{name}") for name in names}
        model.stage("bottleneck2", "graph", "shared", list(bottoms.values()), list(deep.values()))
        bottoms = deep
    for name in names:
        inputs = [bottoms[name], *skips[name]]
        if choose.random() < 0.2:
            inputs.append(bottoms[choose.choice(names)])
        model.stage(
            f"decoder.{name}",
            "graph",
            name,
            list(dict.fromkeys(inputs)),
            [model.any_size(f"estimate_{name}")],
        )


def _finished(model: _Model, names: list[str]) -> Manifest:
    stages = _shuffled(model.stages, model.choose)
    branches = tuple(
        Branch(
            n,
            (1.0, 1.0),
            None if n == "time" else Transform(int(n), 4, 12, int(n) // 2, int(n) // 2, int(n) // 2),
        )
        for n in names
    )
    manifest = Manifest(
        name="random",
        model=ModelInfo("HTDemucs", SOURCES, 8000, CHANNELS, Fraction(SAMPLES, 8000), SAMPLES, False, 0),
        branches=branches,
        tensors=tuple(TensorSpec(name, shape) for name, shape in model.shapes.items()),
        stages=tuple(stages),
        layout="split",
        opset=17,
        precision="float32",
        files={stage.file: FileInfo("0" * 64, 0) for stage in stages if stage.file},
    )
    check(manifest)
    return manifest


def _shuffled(stages: list[Stage], choose: random.Random) -> list[Stage]:
    """In any order that respects the data."""
    ready, left, order = {MIX}, list(stages), []
    while left:
        stage = choose.choice([s for s in left if ready.issuperset(s.inputs)])
        left.remove(stage)
        ready.update(stage.outputs)
        order.append(stage)
    return order


def bundle_of(manifest: Manifest) -> Any:
    """As much of a bundle as scheduling looks at."""
    return types.SimpleNamespace(manifest=manifest)


# --- what stages compute -----------------------------------------------------------------------------------


def tag(name: str) -> float:
    """A number for a tensor's name, exact in float32."""
    return float(zlib.crc32(name.encode()) % 2**20)


def compute(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
    """Every output mixes all numbers of all inputs; the same on every device to the last bit."""
    for name in stage.outputs:
        out = outputs[name].reshape(-1)
        mixed = np.full(out.size, tag(name) / 2**20, np.float32)
        for number, source in enumerate(stage.inputs, 1):
            given = inputs[source].reshape(-1)[2:]
            mixed += np.resize(given, out.size) * np.float32(0.5 / number)
        mixed[:2] = inputs[stage.inputs[0]].reshape(-1)[0], tag(name)
        out[:] = mixed


def segment(number: int, manifest: Manifest, count: int) -> NDArray[np.float32]:
    """A mix that carries its number."""
    mix = np.random.default_rng(number).standard_normal((count, CHANNELS, SAMPLES), np.float32)
    mix.reshape(-1)[:2] = number, tag(MIX)
    return mix


def reference(manifest: Manifest, mix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The stems of a batch, stage by stage, every tensor in memory of its own."""
    arrays = {t.name: np.zeros(t.shape, t.dtype) for t in manifest.tensors}
    arrays[MIX][: len(mix)] = mix
    for stage in manifest.stages:
        compute(stage, arrays, arrays)
    stems: NDArray[np.float32] = arrays[STEMS][: len(mix)]
    return stems


# --- the engine --------------------------------------------------------------------------------------------


class WatchingEngine(Engine):
    """Runs ``compute`` on a CPU device or on the fake CUDA driver, for every stage of every kind.

    Attributes:
        violations: tensors that were not what a stage was promised.
        calls: stages that a runner was called for, in order.
        failing: a stage's name, what to do instead of computing.
        closed: stages whose runner was closed.
        nap: the longest a stage takes, seconds.
        slow: stages that take longer, seconds.
    """

    name: ClassVar[str] = "watching"
    title: ClassVar[str] = "Watching"
    graph_transforms: ClassVar[bool] = True

    def __init__(
        self,
        device: Device,
        driver: FakeDriver | None = None,
        *,
        threads: int = 2,
        nap: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(EngineOptions(threads=threads))
        self._device, self.driver, self.nap = device, driver, nap
        self._random = random.Random(seed)
        self.violations: list[str] = []
        self.calls: list[str] = []
        self.failing: dict[str, Callable[[], None]] = {}
        self.closed: list[str] = []
        self.slow: dict[str, float] = {}
        self.threads: dict[str, int] = {}

    @functools.cached_property
    def device(self) -> Device:  # type: ignore[override]
        return self._device

    @classmethod
    def availability(cls, device: int = 0) -> Availability:
        return Availability(True)

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        self.threads[stage.name] = threads
        readers = [name for other in bundle.manifest.stages for name in other.inputs]
        scratch = [n for n in stage.inputs if n.startswith("estimate") and readers.count(n) == 1]
        return _WatchingRunner(self, stage, scratch, stream)

    def duration(self, stage: Stage) -> float:
        return self.slow.get(stage.name, self._random.random() * self.nap)


class _WatchingRunner(Runner):
    def __init__(self, engine: WatchingEngine, stage: Stage, scratch: list[str], stream: Stream) -> None:
        self.engine, self.stage, self.scratch, self.stream = engine, stage, scratch, stream

    def __call__(self, tensors: Tensors) -> None:
        engine, stage, driver = self.engine, self.stage, self.engine.driver
        engine.calls.append(stage.name)
        if stage.name in engine.failing:
            engine.failing[stage.name]()
        if driver is None:
            self._run(tensors)  # type: ignore[arg-type]
            return
        touched = {name: tensors[name] for name in (*stage.inputs, *stage.outputs)}

        def kernel() -> None:
            arrays = {name: driver.array(tensor) for name, tensor in touched.items()}
            self._run(arrays)

        driver.launch(self.stream.handle, kernel, touched.values())

    def _run(self, arrays: Arrays) -> None:
        before = self._tags(arrays)
        self._expect(before[0][0] if before else 0.0, before)
        for name in self.stage.outputs:
            arrays[name].reshape(-1)[:2] = np.nan  # whoever reads now reads nothing good
        seconds = self.engine.duration(self.stage)
        if seconds:
            time.sleep(seconds)
        compute(self.stage, arrays, arrays)
        if self._tags(arrays) != before:
            self.engine.violations.append(f"an input of {self.stage.name} changed while it ran")
        for name in self.scratch:
            arrays[name].fill(np.nan)  # as an inverse transform uses its estimate

    def _tags(self, arrays: Arrays) -> list[tuple[float, float]]:
        return [(float(a[0]), float(a[1])) for a in (arrays[n].reshape(-1) for n in self.stage.inputs)]

    def _expect(self, number: float, found: list[tuple[float, float]]) -> None:
        for name, (segment_number, tensor_tag) in zip(self.stage.inputs, found, strict=True):
            if segment_number != number or tensor_tag != tag(name):
                self.engine.violations.append(
                    f"{self.stage.name} read {name} of segment {segment_number:g}, expected {number:g}"
                )

    def close(self) -> None:
        if self.stage.name in self.engine.closed:
            return
        self.engine.closed.append(self.stage.name)
        if self.engine.driver is None:
            return
        # A session of ONNX Runtime still uses its stream when it goes.
        with contextlib.suppress(EngineError):
            if self.stream.handle:
                return
        self.engine.violations.append(f"the runner of {self.stage.name} outlived its stream")


def names_of(manifest: Manifest) -> list[str]:
    return list(itertools.chain(stage.name for stage in manifest.stages))
