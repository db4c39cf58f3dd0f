"""ONNX Runtime on GPUs, against an ``onnxruntime`` that notes what it is asked for and refuses what it does not know.

What a GPU computes is not tested here: that the right options, addresses and streams reach the library is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundles import tiny_bundle

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices import CudaStatus
from mrsep_deploy.devices.interface import DeviceTensor
from mrsep_deploy.engines import contract
from mrsep_deploy.engines import onnxruntime_cuda as module
from mrsep_deploy.engines import onnxruntime_tensorrt as tensorrt
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.engines.onnxruntime_cuda import CUDA, REPLACE, TENSORRT, OrtCudaEngine, OrtTensorRtEngine
from mrsep_deploy.errors import EngineError, UsageError
from mrsep_deploy.files.paths import HOME_VARIABLE

CPU = "CPUExecutionProvider"

# Names out of ONNX Runtime's documentation; it fails on others.
KNOWN_OPTIONS = {
    CUDA: {
        "device_id", "user_compute_stream", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search",
        "do_copy_in_default_stream", "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d",
        "enable_cuda_graph", "enable_skip_layer_norm_strict_mode", "use_tf32", "prefer_nhwc",
    },
    TENSORRT: {
        "device_id", "user_compute_stream", "trt_max_workspace_size", "trt_fp16_enable", "trt_int8_enable",
        "trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path",
        "trt_auxiliary_streams", "trt_cuda_graph_enable", "trt_builder_optimization_level",
    },
}  # fmt: skip


class FakeSessionOptions:
    def __init__(self) -> None:
        self.log_severity_level = 2
        self.entries: dict[str, str] = {}
        self.dimensions: dict[str, int] = {}

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.dimensions[name] = size

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class FakeRunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class FakeBinding:
    """Takes addresses, of GPU memory only."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        self.inputs[name] = self._checked(device_type, device_id, element_type, shape, buffer_ptr)

    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        self.outputs[name] = self._checked(device_type, device_id, element_type, shape, buffer_ptr)

    @staticmethod
    def _checked(
        device_type: str, device_id: int, element_type: Any, shape: Any, pointer: int
    ) -> tuple[Any, ...]:
        assert device_type == "cuda"
        assert element_type is np.float32
        assert all(isinstance(size, int) for size in (*shape, pointer, device_id))
        return device_id, tuple(shape), pointer


class FakeSession:
    def __init__(
        self,
        ort: FakeOrt,
        path: str,
        options: FakeSessionOptions,
        providers: list[tuple[str, dict[str, str]]],
    ) -> None:
        for name, given in providers:
            assert set(given) <= KNOWN_OPTIONS[name], set(given) - KNOWN_OPTIONS[name]
            assert all(isinstance(value, str) for value in given.values())
        if ort.load_error:
            raise RuntimeError(ort.load_error)
        assert Path(path).read_bytes()
        self.ort, self.options = ort, options
        self.providers = dict(providers)
        self.runs: list[tuple[FakeBinding, FakeRunOptions]] = []

    def get_providers(self) -> list[str]:
        # What cannot be loaded is left out, with no more than a line in the log.
        return [name for name in (*self.providers, CPU) if name not in self.ort.broken]

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: FakeRunOptions) -> None:
        if self.ort.run_error:
            raise RuntimeError(self.ort.run_error)
        self.runs.append((binding, options))


class FakeOrt:
    """The module."""

    __version__ = "1.31.1"
    SessionOptions = FakeSessionOptions
    RunOptions = FakeRunOptions

    def __init__(self) -> None:
        self.available = [TENSORRT, CUDA, CPU]
        self.broken: set[str] = set()
        self.load_error = self.run_error = ""
        self.sessions: list[FakeSession] = []
        self.preloaded = 0
        self.severity = 2

    def set_default_logger_severity(self, severity: int) -> None:
        self.severity = severity

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def InferenceSession(self, path: str, options: FakeSessionOptions, providers: Any) -> FakeSession:
        self.sessions.append(FakeSession(self, path, options, providers))
        return self.sessions[-1]


@pytest.fixture(autouse=True)
def ort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOrt:
    """A machine with two GPUs, onnxruntime-gpu and TensorRT 10."""
    fake = FakeOrt()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv(tensorrt.TF32_VARIABLE, "")
    monkeypatch.delenv(tensorrt.TF32_VARIABLE)
    monkeypatch.setattr(module, "_installed", lambda name: name == "onnxruntime-gpu")
    monkeypatch.setattr(
        module, "cuda_status", lambda: CudaStatus(True, "cuda-python", "13.0", ("A", "B"), ((9, 0),) * 2)
    )
    monkeypatch.setattr(module, "load_tensorrt", lambda: None)
    monkeypatch.setattr(tensorrt, "needed_tensorrt", lambda: 10)
    monkeypatch.setattr(
        contract, "open_cuda", lambda index: SimpleNamespace(index=index, kind="cuda", open_objects={})
    )
    return fake


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


def first_stage(bundle: Bundle) -> Stage:
    return bundle.manifest.graph_stages[0]


def stream(handle: int) -> Any:
    return SimpleNamespace(handle=handle)


def tensors(bundle: Bundle, base: int) -> dict[str, DeviceTensor]:
    """A tensor for every name of the manifest, 1 MB apart."""
    return {
        spec.name: DeviceTensor(base + 2**20 * i, spec.shape, np.dtype(np.float32))
        for i, spec in enumerate(bundle.manifest.tensors)
    }


def run_once(engine: Any, bundle: Bundle, handle: int = 77) -> None:
    memory = tensors(bundle, 2**40)
    engine.prepare(bundle, first_stage(bundle), 1, stream(handle))(memory)


# --- sessions


@pytest.mark.parametrize("device", [0, 1])
def test_a_session_computes_in_float32_on_the_streams_handle(
    ort: FakeOrt, bundle: Bundle, device: int
) -> None:
    run_once(OrtCudaEngine(EngineOptions(device=device)), bundle, handle=0x5555)
    (session,) = ort.sessions
    options = session.providers[CUDA]
    assert options["user_compute_stream"] == str(0x5555)
    assert options["device_id"] == str(device)
    assert options["use_tf32"] == "0"
    assert options["enable_cuda_graph"] == "0"
    assert list(session.providers) == [CUDA]
    assert session.options.entries["session.disable_cpu_ep_fallback"] == "1"
    assert ort.preloaded == 1


def test_the_host_waits_for_nothing(ort: FakeOrt, bundle: Bundle) -> None:
    run_once(OrtCudaEngine(EngineOptions()), bundle)
    ((_, options),) = ort.sessions[0].runs
    assert options.entries == {"disable_synchronize_execution_providers": "1"}
    assert ort.severity == 3  # a warning for each session, of what is as it should be


def test_now_and_then_a_run_waits_and_gives_staged_memory_back(ort: FakeOrt, bundle: Bundle) -> None:
    runner = OrtCudaEngine(EngineOptions()).prepare(bundle, first_stage(bundle), 1, stream(77))
    memory = tensors(bundle, 2**40)
    for _ in range(3 * module.COLLECT_EVERY):
        runner(memory)
    waits = [
        options.entries["disable_synchronize_execution_providers"] for _, options in ort.sessions[0].runs
    ]
    assert [number for number, value in enumerate(waits, 1) if value == "0"] == [64, 128, 192]


def test_tensors_are_bound_by_address_at_every_run(ort: FakeOrt, bundle: Bundle) -> None:
    """Two slots take turns: one session, other addresses."""
    engine, stage = OrtCudaEngine(EngineOptions(device=1)), first_stage(bundle)
    runner = engine.prepare(bundle, stage, 1, stream(77))
    for base in (2**40, 2**41, 2**40):
        memory = tensors(bundle, base)
        runner(memory)
        binding, _ = ort.sessions[0].runs[-1]
        for names, bound in ((stage.inputs, binding.inputs), (stage.outputs, binding.outputs)):
            expected = {n: (1, memory[n].shape, memory[n].pointer) for n in names}
            assert bound == expected
    assert len(ort.sessions) == 1


def test_another_stream_gets_a_session_of_its_own(ort: FakeOrt, bundle: Bundle) -> None:
    engine, memory = OrtCudaEngine(EngineOptions()), tensors(bundle, 2**40)
    first, second = (engine.prepare(bundle, first_stage(bundle), 1, stream(handle)) for handle in (5, 6))
    for runner in (first, second, first):
        runner(memory)
    assert [s.providers[CUDA]["user_compute_stream"] for s in ort.sessions] == ["5", "6"]
    assert [len(s.runs) for s in ort.sessions] == [2, 1]
    first.close()
    first.close()


def test_transforms_run_as_graphs(bundle: Bundle) -> None:
    """And a bundle that has none for them is refused, when the stage is prepared."""
    assert OrtCudaEngine.graph_transforms
    spectrogram = bundle.manifest.stages[0]
    assert spectrogram.file is None
    with pytest.raises(EngineError, match=r"spectrogram\.16"):
        OrtCudaEngine(EngineOptions()).prepare(bundle, spectrogram, 1, stream(77))


def test_half_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="fp16"):
        OrtCudaEngine(EngineOptions(precision="fp16"))


# --- nothing runs on the CPU instead


@pytest.mark.parametrize("kind", [OrtCudaEngine, OrtTensorRtEngine])
def test_a_provider_that_does_not_load_is_an_error(ort: FakeOrt, bundle: Bundle, kind: type[Any]) -> None:
    ort.broken = {kind.provider}
    with pytest.raises(EngineError, match=rf"branch\.16 on .*not {kind.provider}"):
        run_once(kind(EngineOptions()), bundle)


def test_errors_name_the_stage(ort: FakeOrt, bundle: Bundle) -> None:
    ort.load_error = "libcudnn.so.9: cannot open shared object file\nmore"
    with pytest.raises(EngineError, match=r"branch\.16.*libcudnn") as caught:
        run_once(OrtCudaEngine(EngineOptions()), bundle)
    assert "more" not in str(caught.value)
    ort.load_error, ort.run_error = "", "CUDA failure 700"
    with pytest.raises(EngineError, match=r"branch\.16.*700"):
        run_once(OrtCudaEngine(EngineOptions()), bundle)


# --- TensorRT


def test_tensorrt_goes_first_and_keeps_its_engines(ort: FakeOrt, bundle: Bundle, tmp_path: Path) -> None:
    run_once(OrtTensorRtEngine(EngineOptions()), bundle)
    session = ort.sessions[0]
    assert list(session.providers) == [TENSORRT, CUDA]
    options = session.providers[TENSORRT]
    assert options["user_compute_stream"] == session.providers[CUDA]["user_compute_stream"] == "77"
    assert options["trt_fp16_enable"] == options["trt_cuda_graph_enable"] == "0"
    assert options["trt_engine_cache_enable"] == "1"
    folder = Path(options["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "home")
    graph, batch, _ = folder.name.split("-")
    assert bundle.manifest.files["branch.16.onnx"].sha256.startswith(graph)
    assert batch == "1"


def test_two_graphs_or_batches_share_no_folder(ort: FakeOrt, bundle: Bundle) -> None:
    engine = OrtTensorRtEngine(EngineOptions())
    folders = {
        engine.providers(opened, stage, 0)[0][1]["trt_engine_cache_path"]
        for opened in (bundle, bundle.at_batch(2))
        for stage in bundle.manifest.graph_stages
    }
    assert len(folders) == 2 * len(bundle.manifest.graph_stages)


def test_a_session_is_made_for_the_batch(ort: FakeOrt, bundle: Bundle) -> None:
    OrtCudaEngine(EngineOptions()).prepare(bundle.at_batch(3), first_stage(bundle), 1, stream(77))
    assert ort.sessions[0].options.dimensions == {"batch": 3}


def test_another_gpu_driver_or_runtime_shares_no_folder(
    ort: FakeOrt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = bundle.manifest.graph_stages[0]

    def folder(device: int = 0) -> str:
        found = OrtTensorRtEngine(EngineOptions(device=device)).providers(bundle, stage, 0)[0][1]
        return found["trt_engine_cache_path"]

    places = {folder(), folder(1)}
    driver = CudaStatus(True, "cuda-python", "13.0", ("A", "B"), ((9, 0),) * 2, release="580.1")
    monkeypatch.setattr(module, "cuda_status", lambda: driver)
    places.add(folder())
    monkeypatch.setattr(ort, "__version__", "1.99.0")
    places.add(folder())
    assert len(places) == 4


@pytest.mark.parametrize("harm", ["none", "changed", "another", "unnoted"])
def test_engines_that_are_not_what_was_built_are_not_loaded(
    ort: FakeOrt, bundle: Bundle, tmp_path: Path, harm: str
) -> None:
    """They are native code."""
    seen: list[dict[str, bytes]] = []
    opened = ort.InferenceSession

    def building(path: str, options: Any, providers: Any) -> Any:
        folder = Path(dict(providers)[TENSORRT]["trt_engine_cache_path"])
        seen.append({each.name: each.read_bytes() for each in folder.iterdir() if each.suffix == ".engine"})
        (folder / "one.engine").write_bytes(b"built")
        return opened(path, options, providers)

    ort.InferenceSession = building  # type: ignore[method-assign]
    run_once(OrtTensorRtEngine(EngineOptions()), bundle)
    (engine,) = (tmp_path / "home").rglob("one.engine")
    if harm == "changed":
        engine.write_bytes(b"BUILT")
    elif harm == "another":
        engine.with_name("two.engine").write_bytes(b"built")
    elif harm == "unnoted":
        engine.with_name("sha256.txt").unlink()
    run_once(OrtTensorRtEngine(EngineOptions()), bundle)
    assert seen == [{}, {"one.engine": b"built"} if harm == "none" else {}]


def test_tensorrt_computes_in_float32_unless_somebody_wants_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    OrtTensorRtEngine(EngineOptions())
    assert os.environ[tensorrt.TF32_VARIABLE] == "0"
    monkeypatch.setenv(tensorrt.TF32_VARIABLE, "1")
    OrtTensorRtEngine(EngineOptions())
    assert os.environ[tensorrt.TF32_VARIABLE] == "1"


# --- availability


def test_it_works_on_such_a_machine() -> None:
    found = OrtCudaEngine.availability()
    assert found.works
    assert found.version == "1.31.1"
    assert "A" in found.device
    assert OrtTensorRtEngine.availability().works


def test_it_is_asked_of_the_gpu_that_is_meant() -> None:
    assert OrtCudaEngine.availability(1).device == "B, CUDA 13.0"
    found = OrtCudaEngine.availability(2)
    assert not found.works
    assert found.reason == "there is no GPU 2, CUDA finds 0 (A), 1 (B)"


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = OrtCudaEngine.availability()
    assert not found.works
    assert found.fix == REPLACE


def test_with_the_cpu_build(ort: FakeOrt) -> None:
    ort.available = [CPU]
    for kind in (OrtCudaEngine, OrtTensorRtEngine):
        found = kind.availability()
        assert not found.works
        assert kind.provider in found.reason
        assert found.fix == REPLACE


def test_with_both_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda name: True)
    found = OrtCudaEngine.availability()
    assert not found.works
    assert "both" in found.reason
    assert found.fix == REPLACE


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "cuda_status", lambda: CudaStatus(False, "cuda-python", reason="no driver", fix="Install it.")
    )
    found = OrtCudaEngine.availability()
    assert (found.works, found.reason, found.fix) == (False, "no driver", "Install it.")


def test_without_tensorrt_10(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "libnvinfer.so.10 of TensorRT 10 cannot be loaded", 'pip install "tensorrt-cu13==10.*"'
    monkeypatch.setattr(module, "load_tensorrt", lambda: wanted)
    found = OrtTensorRtEngine.availability()
    assert not found.works
    assert "libnvinfer.so.10" in found.reason
    assert "pip install" in found.fix
    assert OrtCudaEngine.availability().works


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An onnxruntime-gpu of TensorRT 11, pip's package of it, and what is tried to be loaded."""
    monkeypatch.undo()
    monkeypatch.delenv(tensorrt.TF32_VARIABLE, raising=False)
    provider = tmp_path / "onnxruntime" / "capi" / tensorrt._PROVIDER
    provider.parent.mkdir(parents=True)
    provider.write_bytes(b"\x7fELF\0libcudart.so.13\0libnvinfer.so.11\0libnvonnxparser.so.11\0")
    places = {"onnxruntime": [str(tmp_path / "onnxruntime")], "tensorrt_libs": ["/packages/tensorrt_libs"]}

    def find(name: str) -> SimpleNamespace:
        return SimpleNamespace(submodule_search_locations=places[name])

    tried: list[str] = []

    def loads(path: str) -> bool:
        tried.append(path)
        assert os.environ[tensorrt.TF32_VARIABLE] == "0", "NVIDIA's libraries read it when they are loaded"
        return path.startswith("/packages")

    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", find)
    monkeypatch.setattr(tensorrt, "_loads", loads)
    monkeypatch.setattr(tensorrt, "_is_loaded", lambda _name: False)
    return tried


linux = pytest.mark.skipif(os.name == "nt", reason="names of Linux")


@linux
def test_the_tensorrt_that_the_provider_names_is_loaded(installed: list[str]) -> None:
    assert tensorrt.load_tensorrt() is None
    assert tried_names(installed) == ["libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"]
    assert sum(path.startswith("/packages") for path in installed) == 3


def tried_names(tried: list[str]) -> list[str]:
    return list(dict.fromkeys(path.rsplit("/", 1)[-1] for path in tried))


@linux
def test_a_tensorrt_that_is_missing_is_named(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "_loads", lambda path: "plugin" not in path)
    reason, fix = tensorrt.load_tensorrt() or ("", "")
    assert reason == "libnvinfer_plugin.so.11 of TensorRT 11 cannot be loaded"
    assert '"tensorrt-cu13==11.*"' in fix


@linux
def test_a_tensorrt_that_was_loaded_before_tf32_was_off(
    installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the variable, or that there is none; said each time."""
    monkeypatch.setattr(tensorrt, "_is_loaded", lambda name: name == "libnvinfer.so.11")
    for _ in range(2):
        reason, fix = tensorrt.load_tensorrt() or ("", "")
        assert "may multiply in TF32" in reason
        assert "NVIDIA_TF32_OVERRIDE=0 before the program starts" in fix
    assert installed == []
    monkeypatch.setenv(tensorrt.TF32_VARIABLE, "0")
    assert tensorrt.load_tensorrt() is None


def test_without_a_provider(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "_PROVIDER", "none.so")
    reason, _ = tensorrt.load_tensorrt() or ("", "")
    assert reason == "none.so is missing, or names no TensorRT"
    assert installed == []
