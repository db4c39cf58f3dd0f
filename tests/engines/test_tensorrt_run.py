"""TensorRT's engine and runner, driven against a library and a GPU that are fakes."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import OFFSET
from fake_cuda import FakeDriver
from fake_tensorrt import BuilderFlag, DataType, FakeTensorRt, MemoryPoolType, Strategy
from fake_tensorrt_engine import (
    Make,
    bundle,
    driver,
    library,
    make,
    prepare,
    ready,
    stage,
    tensors_of,
    with_transforms,
)

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices import CudaStatus
from mrsep_deploy.devices.interface import DeviceTensor, Runner, Stream
from mrsep_deploy.engines import engine_class
from mrsep_deploy.engines.contract import BuildOptions, EngineOptions
from mrsep_deploy.engines.tensorrt import engine as tensorrt_engine
from mrsep_deploy.engines.tensorrt import library as tensorrt_library
from mrsep_deploy.engines.tensorrt.engine import TensorRtEngine
from mrsep_deploy.engines.tensorrt.library import TRT, Gpu
from mrsep_deploy.engines.tensorrt.runner import TensorRtRunner
from mrsep_deploy.errors import EngineError, EngineUnavailableError, UsageError
from mrsep_deploy.runtime.memory import place_workspaces
from mrsep_deploy.runtime.schedule import Mode, make_schedule
from mrsep_deploy.runtime.scheduler import Scheduler

__all__ = ["bundle", "driver", "library", "make", "stage"]


# --- running -----------------------------------------------------------------------------------------------


def test_a_runner_computes_the_stage(make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage) -> None:
    engine = make()
    runner = ready(engine, bundle, stage)
    tensors = tensors_of(engine, bundle, stage)
    given, wanted = (library.driver.array(tensors[name]) for name in (stage.inputs[0], stage.outputs[0]))
    given[...] = np.random.default_rng(1).standard_normal(given.shape)
    runner(tensors)
    engine.device.synchronize()
    np.testing.assert_array_equal(wanted, np.concatenate([given, given], axis=1) + np.float32(OFFSET))


def test_every_address_is_set_before_it_runs(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    engine = make()
    runner = ready(engine, bundle, stage)
    for _ in range(2):  # a second segment lies elsewhere
        tensors = tensors_of(engine, bundle, stage)
        runner(tensors)
        stream, addresses = library.of("execute")[-1]
        assert stream == next(each for each in engine.device.open_objects if isinstance(each, Stream)).handle
        assert addresses == {name: tensor.pointer for name, tensor in tensors.items()}


def test_the_context_brings_no_memory_of_its_own(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    ready(make(), bundle, stage)
    assert library.of("context") == [(Strategy.USER_MANAGED,)]


def test_it_does_not_run_without_its_workspace(make: Make, bundle: Bundle, stage: Stage) -> None:
    engine = make()
    runner = prepare(engine, bundle, stage)
    tensors = tensors_of(engine, bundle, stage)
    with pytest.raises(EngineError, match="run before it was given its workspace"):
        runner(tensors)


def test_a_stage_that_needs_no_workspace_runs_without(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    library.workspace = 0
    engine = make()
    tensors = tensors_of(engine, bundle, stage)
    prepare(engine, bundle, stage)(tensors)
    assert len(library.of("execute")) == 1


def test_too_small_a_workspace(make: Make, bundle: Bundle, stage: Stage) -> None:
    runner = prepare(make(), bundle, stage)
    assert isinstance(runner, TensorRtRunner)
    with pytest.raises(EngineError, match="was given 999 bytes of workspace, expected 1000"):
        runner.set_workspace(DeviceTensor(256, (999,), np.dtype("uint8")))


@pytest.mark.parametrize(
    ("call", "message"),
    [("execute", "TensorRT 10.13.2.6 failed in stage branch.16"), ("address", "refuses the address of")],
)
def test_a_call_that_fails(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage, call: str, message: str
) -> None:
    engine = make()
    runner = ready(engine, bundle, stage)
    library.fails.add(call)
    tensors = tensors_of(engine, bundle, stage)
    with pytest.raises(EngineError, match=message):
        runner(tensors)


def test_host_memory_is_refused(make: Make, bundle: Bundle, stage: Stage) -> None:
    runner = ready(make(), bundle, stage)
    arrays = {name: np.zeros(1) for name in (*stage.inputs, *stage.outputs)}
    with pytest.raises(EngineError, match="lies in host memory"):
        runner(arrays)


def test_no_context(make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage) -> None:
    library.fails.add("context")
    with pytest.raises(EngineError, match=r"makes no execution context for stage branch\.16"):
        prepare(make(), bundle, stage)


def test_closing_twice(make: Make, bundle: Bundle, stage: Stage) -> None:
    runner = prepare(make(), bundle, stage)
    runner.close()
    runner.close()


@pytest.mark.parametrize(("mode", "shared"), [("sequential", 1), ("concurrent", 2)])
def test_stages_that_never_overlap_share_a_workspace(
    make: Make, library: FakeTensorRt, bundle: Bundle, mode: Mode, shared: int
) -> None:
    engine = make()
    runners = {stage.name: runner for stage, runner in unplaced(engine, bundle)}
    with contextlib.ExitStack() as stack:
        place_workspaces(engine.device, make_schedule(bundle.manifest, mode), [runners], stack)
        for runner in runners.values():
            stack.callback(runner.close)
        assert len({pointer for _, pointer, _ in library.of("memory")}) == shared


def test_no_stage_needs_a_workspace(make: Make, library: FakeTensorRt, bundle: Bundle) -> None:
    library.workspace = 0
    engine = make()
    runners = {stage.name: runner for stage, runner in unplaced(engine, bundle)}
    with contextlib.ExitStack() as stack:
        place_workspaces(engine.device, make_schedule(bundle.manifest, "sequential"), [runners], stack)
    assert library.of("memory") == []


def unplaced(engine: TensorRtEngine, bundle: Bundle) -> list[tuple[Stage, Runner]]:
    """Runners of all graph stages, before they are given their workspaces."""
    stages = bundle.manifest.graph_stages
    return [(stage, prepare(engine, bundle, stage)) for stage in stages]


def test_host_memory_is_no_workspace(make: Make, bundle: Bundle, stage: Stage) -> None:
    runner = prepare(make(), bundle, stage)
    with pytest.raises(EngineError, match=r"the workspace of stage .* lies in host memory"):
        runner.set_workspace(np.zeros(1000, np.uint8))


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
def test_a_whole_schedule_runs(make: Make, library: FakeTensorRt, bundle: Bundle, mode: Mode) -> None:
    """Every stage as a graph, over the scheduler's streams, buffers and workspaces: the CPU engine's stems."""
    complete = with_transforms(bundle)
    mixes = np.random.default_rng(2).standard_normal((3, 1, 2, 64)).astype(np.float32)
    reference = Scheduler(bundle, engine_class("ort")(EngineOptions()), mode)
    scheduler = Scheduler(complete, make(), mode)
    for mix in mixes:
        np.testing.assert_allclose(scheduler.run(mix), reference.run(mix), atol=1e-5)
    assert len(library.of("memory")) == len(complete.manifest.stages)
    scheduler.close()
    reference.close()


# --- building ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "flags"), [("10.9.0.34", 2), ("10.16.1", 2), ("11.4.0.1", 0)])
def test_networks_are_strongly_typed(
    monkeypatch: pytest.MonkeyPatch,
    driver: FakeDriver,
    make: Make,
    bundle: Bundle,
    stage: Stage,
    version: str,
    flags: int,
) -> None:
    fake = FakeTensorRt(driver, version)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    make().build(bundle, stage, BuildOptions())
    ((network, config),) = fake.of("build")
    assert network.flags == flags
    assert config.flags == set(), "TF32 is off"
    assert config.max_aux_streams == 0


def test_options_reach_the_library(make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage) -> None:
    make().build(bundle, stage, BuildOptions(optimization_level=5, workspace=10**9))
    ((_, config),) = library.of("build")
    assert config.builder_optimization_level == 5
    assert config.limits == {MemoryPoolType.WORKSPACE: 10**9}
    assert BuilderFlag.TF32 not in config.flags


def test_it_builds_once(make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage) -> None:
    first = make().build(bundle, stage, BuildOptions())
    again = make().build(bundle, stage, BuildOptions())
    prepare(make(), bundle, stage)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert (first.key, first.data, first.details) == (again.key, again.data, again.details)
    assert len(library.of("build")) == 1


def test_running_takes_what_was_built_last(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    """Whatever options it was built with: they were asked for by whoever called ``build``."""
    make().build(bundle, stage, BuildOptions(optimization_level=5))
    prepare(make(), bundle, stage)
    assert len(library.of("build")) == 1


def test_running_takes_no_engine_of_less_effort(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    """A quick build to try something leaves the good engine in use; 3 is the library's default."""
    engine = make()
    for level in (4, 0, None, 2):
        engine.build(bundle, stage, BuildOptions(optimization_level=level))
    last = engine._built_last(bundle, stage)
    assert last is not None
    assert last.key.options["optimization_level"] == 4


def test_another_driver_device_or_library_builds_again(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(make(), bundle, stage)
    for gpu in (
        Gpu("Fake GPU", "sm_86", "13.1"),
        Gpu("Other GPU", "sm_86", "13.0"),
        Gpu("Fake GPU", "sm_89", "13.0"),
    ):
        monkeypatch.setattr(tensorrt_engine, "find_gpu", lambda index, gpu=gpu: gpu)
        prepare(make(), bundle, stage)
    assert len(library.of("build")) == 4
    library.__version__ = "10.13.3.9"
    prepare(make(), bundle, stage)
    assert len(library.of("build")) == 5


def test_a_cached_engine_that_does_not_load_is_built_anew(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    make().build(bundle, stage, BuildOptions())
    library.fails.add("deserialize")
    ready(make(), bundle, stage)
    assert len(library.of("build")) == 2
    assert "plan file is not compatible" in caplog.text


def test_a_gpu_without_room_is_no_stale_engine(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    """Building again would take minutes, fail as well, and replace a good engine."""
    make().build(bundle, stage, BuildOptions())
    library.fails.add("memory")
    with pytest.raises(EngineError, match=r"branch\.16: .*out of memory.*\. Free GPU memory"):
        prepare(make(), bundle, stage)
    assert len(library.of("build")) == 1


def test_no_runtime(make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage) -> None:
    library.fails.add("runtime")
    with pytest.raises(EngineError, match=r"cannot make a runtime for stage branch\.16"):
        prepare(make(), bundle, stage)
    assert len(library.of("build")) == 1


def test_a_new_engine_that_does_not_load_is_an_error(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    library.fails.add("deserialize")
    with pytest.raises(
        EngineError, match=r"cannot load stage branch\.16: The engine plan file is not compatible"
    ):
        prepare(make(), bundle, stage)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("build", r"cannot build stage branch\.16: Could not find any implementation for node 3"),
        ("builder", "cannot make a builder"),
        ("config", "cannot make a builder's configuration"),
        ("parser", "cannot make an ONNX parser"),
        ("build in a thread", r"cannot build stage branch\.16: no kernel fits"),
    ],
)
def test_a_build_that_fails(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage, call: str, message: str
) -> None:
    library.fails.add(call)
    engine = make()
    with pytest.raises(EngineError, match=message):
        engine.build(bundle, stage, BuildOptions())
    assert engine.cache.entries() == []


def test_targets_are_for_tensorrt_for_rtx(make: Make, bundle: Bundle, stage: Stage) -> None:
    with pytest.raises(UsageError, match="builds only for the GPU that is present, found --target sm_86"):
        make().build(bundle, stage, BuildOptions(targets=("sm_86",)))


def test_a_bundle_without_graphs_for_its_transforms(make: Make, bundle: Bundle) -> None:
    spectrogram = next(stage for stage in bundle.manifest.stages if stage.file is None)
    with pytest.raises(
        EngineError, match=r"tiny has no graph for stage spectrogram\.16.*Export the checkpoint again"
    ):
        prepare(make(), bundle, spectrogram)


def test_timings_are_kept_and_merged(make: Make, library: FakeTensorRt, bundle: Bundle) -> None:
    for each in bundle.manifest.graph_stages:
        engine = make()
        engine.build(bundle, each, BuildOptions())
    (file,) = engine.cache.folder.glob("timing-*.bin")
    assert file.read_bytes() == b"kernel 1\nkernel 2"
    engine.cache.prune(everything=True)
    assert list(engine.cache.folder.glob("timing-*")) == []


def test_damaged_timings_cost_nothing_but_time(
    make: Make, library: FakeTensorRt, bundle: Bundle, stage: Stage
) -> None:
    engine = make()
    engine.build(bundle, stage, BuildOptions())
    (file,) = engine.cache.folder.glob("timing-*.bin")
    file.write_bytes(b"damaged")
    engine.build(bundle, stage, BuildOptions(), fresh=True)
    assert file.read_bytes() == b"kernel 2"


@pytest.mark.parametrize("what", ["timing cache", "set timing", "get timing", "combine"])
def test_a_library_without_timings_still_builds(
    make: Make,
    library: FakeTensorRt,
    bundle: Bundle,
    stage: Stage,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A finished engine is not thrown away because its timings cannot be kept."""
    library.fails.add(what)
    assert make().build(bundle, stage, BuildOptions()).data
    assert "kernel timings are not" in caplog.text


def test_timings_that_cannot_be_kept(
    make: Make,
    bundle: Bundle,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = make()
    monkeypatch.setattr(engine.cache, "timing_file", lambda *_: Path("/dev/null/timings"))
    with caplog.at_level(logging.WARNING):
        engine.build(bundle, stage, BuildOptions())
    assert "kernel timings are not kept for the next build" in caplog.text


# --- availability ------------------------------------------------------------------------------------------


def test_availability(library: FakeTensorRt) -> None:
    found = TensorRtEngine.availability()
    assert (found.works, found.version, found.device) == (True, "10.13.2.6", "Fake GPU (sm_86)")


def test_an_old_library(library: FakeTensorRt) -> None:
    library.__version__ = "10.8.0.43"
    found = TensorRtEngine.availability()
    assert not found.works
    assert found.reason == "TensorRT 10.8.0.43 is installed, expected 10.9 or newer"
    assert "pip install --upgrade" in found.fix


@pytest.mark.parametrize(("name", "extra"), [("trt", "trt"), ("trt-rtx", "rtx")])
def test_no_library(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = engine_class(name).availability()
    assert not found.works
    assert found.reason.endswith("is not installed")
    assert found.fix.startswith(f'pip install "mrsep-deploy[{extra}]"')


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found = TensorRtEngine.availability()
    assert found.reason == "TensorRT is installed but does not load: libnvinfer.so.10: cannot open"


def test_no_gpu(library: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_index: int) -> Gpu:
        raise EngineUnavailableError("this machine has no CUDA driver", "Install it.")

    monkeypatch.setattr(tensorrt_engine, "find_gpu", none)
    found = TensorRtEngine.availability()
    assert (found.works, found.version) == (False, "10.13.2.6")
    assert (found.reason, found.fix) == ("this machine has no CUDA driver", "Install it.")


def test_the_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    status = CudaStatus(
        True, "fake", "13.2", ("NVIDIA A", "NVIDIA B"), ((8, 6), (12, 0)), release="580.65.06"
    )
    monkeypatch.setattr(tensorrt_library, "cuda_status", lambda: status)
    assert tensorrt_library.find_gpu(1) == Gpu("NVIDIA B", "sm_120", "580.65.06")
    unknown = replace(status, release="")
    monkeypatch.setattr(tensorrt_library, "cuda_status", lambda: unknown)
    assert tensorrt_library.find_gpu(1) == Gpu("NVIDIA B", "sm_120", "CUDA 13.2")
    with pytest.raises(
        EngineUnavailableError, match=r"there is no GPU 2, CUDA finds 0 \(NVIDIA A\), 1 \(NVIDIA B\)"
    ):
        tensorrt_library.find_gpu(2)


def test_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    status = CudaStatus(False, "fake", reason="there is no driver", fix="Install it.")
    monkeypatch.setattr(tensorrt_library, "cuda_status", lambda: status)
    with pytest.raises(EngineUnavailableError, match=r"there is no driver\. Install it\."):
        tensorrt_library.find_gpu(0)


def test_numpy_names_of_element_types(library: FakeTensorRt) -> None:
    found = tensorrt_engine.find_library(TRT)
    assert [found.dtype(kind) for kind in DataType] == ["float32", "float16", "int64"]
