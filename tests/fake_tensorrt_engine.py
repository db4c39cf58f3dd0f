"""TensorRT's engine on fakes of the library and of the driver: fixtures and what tests do with them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import tiny_bundle
from fake_cuda import FakeDriver
from fake_cuda_modules import install
from fake_tensorrt import FakeRtx, FakeTensorRt

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import DeviceTensor, Runner
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.engines.tensorrt import engine as tensorrt_engine
from mrsep_deploy.engines.tensorrt.engine import TensorRtEngine
from mrsep_deploy.engines.tensorrt.library import Gpu
from mrsep_deploy.engines.tensorrt.runner import TensorRtRunner
from mrsep_deploy.export.graphs.transforms import transform_graph

GPU = Gpu("Fake GPU", "sm_86", "13.0")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """A fake driver of two GPUs; at the end no rule of NVIDIA's has been broken."""
    made = FakeDriver(devices=2)
    install(monkeypatch, made)
    yield made
    assert made.violations == []
    made.end()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: FakeDriver) -> FakeTensorRt:
    """A fake ``tensorrt`` that imports as the real one, a GPU, and an empty cache."""
    fake = FakeTensorRt(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(tensorrt_engine, "find_gpu", lambda index: GPU)
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    return fake


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


@pytest.fixture
def stage(bundle: Bundle) -> Stage:
    return bundle.manifest.graph_stages[0]


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: FakeDriver) -> FakeRtx:
    """A fake ``tensorrt_rtx``, with a GPU and an empty cache."""
    fake = FakeRtx(driver)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    monkeypatch.setattr(tensorrt_engine, "find_gpu", lambda index: GPU)
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    return fake


Make = Callable[[], TensorRtEngine]


@pytest.fixture
def make(library: FakeTensorRt) -> Iterator[Make]:
    def new() -> TensorRtEngine:
        engine = TensorRtEngine(EngineOptions())
        stack.enter_context(contextlib.closing(engine))
        return engine

    with contextlib.ExitStack() as stack:
        yield new


def prepare(engine: TensorRtEngine, bundle: Bundle, stage: Stage) -> Runner:
    return engine.prepare(bundle, stage, 1, engine.device.stream("test"))


def tensors_of(engine: TensorRtEngine, bundle: Bundle, stage: Stage) -> dict[str, DeviceTensor]:
    specs = [bundle.manifest.tensor(name) for name in (*stage.inputs, *stage.outputs)]
    found = {s.name: engine.device.allocate(s.elements * 4).tensor(0, s.shape, s.dtype) for s in specs}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, DeviceTensor)}


def with_transforms(bundle: Bundle) -> Bundle:
    """The same bundle with graphs for the stages that a host could compute."""
    manifest = bundle.manifest
    tensors = {spec.name: spec for spec in manifest.tensors}
    files = {str(stage.file): bundle.graph_bytes(stage) for stage in manifest.graph_stages}
    stages = []
    for stage in manifest.stages:
        if stage.file is None:
            stage = replace(stage, file=f"{stage.name}.onnx")
            files[f"{stage.name}.onnx"] = transform_graph(stage, manifest.branches, tensors)
        stages.append(stage)
    manifest = replace(manifest, stages=tuple(stages))
    return write_bundle(bundle.path.parent / "complete", manifest, files, overwrite=True)


def ready(engine: TensorRtEngine, bundle: Bundle, stage: Stage) -> TensorRtRunner:
    runner = prepare(engine, bundle, stage)
    assert isinstance(runner, TensorRtRunner)
    memory = engine.device.allocate(runner.workspace_bytes)
    workspace = memory.tensor(0, (runner.workspace_bytes,), "uint8")
    assert isinstance(workspace, DeviceTensor)
    runner.set_workspace(workspace)
    return runner
