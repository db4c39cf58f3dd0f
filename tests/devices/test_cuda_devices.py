"""CUDA's own: what captures refuse, memory that runs out, contexts that are lost, machines without a GPU."""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_cuda_modules import _RESULTS, fake_cuda_python, install

from mrsep_deploy.devices import CUDA_PYTHON, CUDA_VARIABLE, PYCUDA, CudaStatus, cuda_status, open_cuda
from mrsep_deploy.devices.cuda import CudaDevice, driver_release
from mrsep_deploy.errors import DeviceLostError, EngineError, EngineUnavailableError, UsageError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver(devices=2)
    monkeypatch.delenv(CUDA_VARIABLE, raising=False)
    install(monkeypatch, made)
    return made


@pytest.fixture(params=[CUDA_PYTHON, PYCUDA])
def device(request: pytest.FixtureRequest, driver: FakeDriver) -> Iterator[CudaDevice]:
    opened = open_cuda(1, request.param)
    yield opened
    opened.close()


@pytest.fixture
def capturing(driver: FakeDriver) -> Iterator[CudaDevice]:
    opened = open_cuda(0)
    yield opened
    opened.close()
    assert driver.alive() == {}


# --- captures ----------------------------------------------------------------------------------------------


def test_waiting_inside_for_an_event_of_outside(capturing: CudaDevice) -> None:
    main, side, event = capturing.stream("main"), capturing.stream("side"), capturing.event()
    side.record(event)
    with pytest.raises(EngineError, match="Isolation"):
        capturing.capture(main, lambda: main.wait(event))
    main.synchronize()  # the capture is over


def test_a_fork_that_is_not_joined(capturing: CudaDevice, driver: FakeDriver) -> None:
    main, side, event = capturing.stream("main"), capturing.stream("side"), capturing.event()

    def work() -> None:
        main.record(event)
        side.wait(event)
        driver.launch(side.handle, lambda: None)

    with pytest.raises(EngineError, match="Unjoined"):
        capturing.capture(main, work)
    capturing.synchronize()


def test_an_event_of_a_capture_means_nothing_outside(capturing: CudaDevice) -> None:
    main, side, event = capturing.stream("main"), capturing.stream("side"), capturing.event()
    capturing.capture(main, lambda: main.record(event))
    for use in (event.synchronize, lambda: side.wait(event)):
        with pytest.raises(EngineError, match="CapturedEvent"):
            use()


@pytest.mark.parametrize("what", ["allocate", "pinned", "synchronize"])
def test_what_cannot_be_captured(capturing: CudaDevice, what: str) -> None:
    main = capturing.stream("main")
    calls: dict[str, Callable[[], object]] = {
        "allocate": lambda: capturing.allocate(256),
        "pinned": lambda: capturing.pinned((4,), "float32"),
        "synchronize": main.synchronize,
    }
    with pytest.raises(EngineError, match="Unsupported"):
        capturing.capture(main, lambda: (calls[what](), None)[1])
    main.synchronize()


def test_an_error_inside_a_capture_ends_it(capturing: CudaDevice) -> None:
    main = capturing.stream("main")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capturing.capture(main, interrupted)
    main.synchronize()
    capturing.capture(main, lambda: None).launch(main)


# --- memory, and contexts that are lost --------------------------------------------------------------------


def test_out_of_memory_names_the_sizes(device: CudaDevice) -> None:
    taken = device.allocate(60_000_000)
    with pytest.raises(EngineError, match=r"no 10\.0 MB .* 7 of its 67 MB are free.* smaller batch"):
        device.allocate(10_000_000)
    taken.close()
    device.allocate(10_000_000)


def test_a_kernel_that_fails_loses_the_context(device: CudaDevice, driver: FakeDriver) -> None:
    """The first wait says so, and what to do; closing still works, and raises nothing."""
    stream, event = device.stream("one"), device.event()
    device.allocate(256)

    def crash() -> None:
        raise ZeroDivisionError

    stream.enqueue(lambda: driver.launch(stream.handle, crash))
    with pytest.raises(DeviceLostError, match=r"LaunchFailure.* start it again"):
        stream.synchronize()
    with pytest.raises(DeviceLostError, match="LaunchFailure"):
        stream.record(event)


@pytest.mark.parametrize(
    ("implementation", "call", "code", "lost"),
    [
        (CUDA_PYTHON, "cudaStreamSynchronize", "cudaErrorIllegalAddress", True),
        (CUDA_PYTHON, "cudaStreamSynchronize", "cudaErrorInvalidResourceHandle", False),
        (PYCUDA, "cuStreamSynchronize", "cudaErrorIllegalAddress", True),
        (PYCUDA, "cuStreamSynchronize", "cudaErrorLaunchOutOfResources", False),
    ],
)
def test_which_errors_lose_the_context(
    driver: FakeDriver, implementation: str, call: str, code: str, lost: bool
) -> None:
    opened = open_cuda(0, implementation)
    stream = opened.stream("one")
    driver.inject(call, code)
    with pytest.raises(EngineError, match=code) as caught:
        stream.synchronize()
    assert isinstance(caught.value, DeviceLostError) == lost
    opened.close()


def test_memory_that_work_uses_is_not_freed_unnoticed(device: CudaDevice, driver: FakeDriver) -> None:
    """Of the fake: a program that does this is found out."""
    gate = threading.Event()
    stream, memory = device.stream("one"), device.allocate(256)
    tensor = memory.tensor(0, (4,), "float32")
    stream.enqueue(lambda: driver.launch(stream.handle, lambda: (gate.wait(20), None)[1], [tensor]))
    memory.close()
    gate.set()
    assert driver.violations == ["memory was freed while work under way uses it"]
    with pytest.raises(EngineError, match="Illegal"):
        device.copy(tensor, np.zeros(4, np.float32), stream)


# --- finding GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", [CUDA_PYTHON, PYCUDA])
def test_status(driver: FakeDriver, implementation: str) -> None:
    name = "NVIDIA Fake 3090"
    found = replace(cuda_status(implementation), release="")
    assert found == CudaStatus(True, implementation, "13.0", (name, name), ((8, 6), (8, 6)))
    assert driver.alive() == {}


class Nvml:
    """The driver's library, as far as ctypes sees it."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.open = failing, 0

    def nvmlInit_v2(self) -> int:
        self.open += self.failing != "nvmlInit_v2"
        return int(self.failing == "nvmlInit_v2")

    def nvmlSystemGetDriverVersion(self, text: ctypes.Array[ctypes.c_char], size: int) -> int:
        text.value = b"580.95.05"[: size - 1]
        return int(self.failing == "nvmlSystemGetDriverVersion")

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0


@pytest.mark.parametrize(
    ("failing", "release"),
    [("", "580.95.05"), ("nvmlInit_v2", ""), ("nvmlSystemGetDriverVersion", "")],
)
def test_the_drivers_own_version(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, failing: str, release: str
) -> None:
    """CUDA's is another: many releases of the driver support one."""
    library = Nvml(failing)
    monkeypatch.setattr("ctypes.CDLL", lambda _name: library)
    assert cuda_status().release == release
    assert library.open == 0


def test_a_driver_that_does_not_say_its_version() -> None:
    assert driver_release("libnosuch.so.1") == ""


def test_properties(device: CudaDevice) -> None:
    assert device.name == "NVIDIA Fake 3090"
    assert device.kind == "cuda"
    assert device.properties.compute_capability == (8, 6)
    assert device.properties.total_bytes == 1 << 26
    assert device.properties.driver == device.properties.runtime == "13.0"
    assert device.free_bytes() == 1 << 26


@pytest.mark.parametrize("implementation", [CUDA_PYTHON, PYCUDA])
@pytest.mark.parametrize("index", [2, -1])
def test_a_gpu_that_is_not_there(driver: FakeDriver, implementation: str, index: int) -> None:
    with pytest.raises(EngineUnavailableError, match=f"no GPU {index}, CUDA finds 2.*nvidia-smi"):
        open_cuda(index, implementation)


def no_gpu(driver: FakeDriver) -> None:
    driver.devices = 0


def no_driver(driver: FakeDriver) -> None:
    driver.driver_version = 0


def old_driver(driver: FakeDriver) -> None:
    driver.driver_version = 12040


@pytest.mark.parametrize(
    ("breakage", "reason", "fix"),
    [
        (no_gpu, "the NVIDIA driver finds no GPU", "nvidia-smi"),
        (no_driver, "there is no NVIDIA driver", "--gpus all"),
        (old_driver, "supports CUDA 12.4, cuda-python needs 13.0", "cuda-python==12.*"),
    ],
)
def test_machines_without(
    driver: FakeDriver, breakage: Callable[[FakeDriver], None], reason: str, fix: str
) -> None:
    breakage(driver)
    status = cuda_status()
    assert not status.works
    assert reason in status.reason
    assert fix in status.fix
    with pytest.raises(EngineUnavailableError, match=status.reason[:20]):
        open_cuda()


@pytest.mark.parametrize(
    ("implementation", "module"), [(CUDA_PYTHON, "cuda.bindings.runtime"), (PYCUDA, "pycuda.driver")]
)
def test_a_package_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, implementation: str, module: str
) -> None:
    for name in (module, "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    status = cuda_status(implementation)
    assert "cannot be imported" in status.reason
    assert implementation in status.fix


def test_the_old_place_of_cuda_python(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", fake_cuda_python(driver))
    assert cuda_status().works


def test_a_broken_package_does_not_raise(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    def broken() -> None:
        raise RuntimeError("a library is missing")

    monkeypatch.setattr(sys.modules["cuda.bindings.runtime"], "cudaGetDeviceCount", broken)
    assert "a library is missing" in cuda_status().reason


def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    monkeypatch.setenv(CUDA_VARIABLE, PYCUDA)
    assert cuda_status().implementation == PYCUDA
    opened = open_cuda()
    assert not opened.captures
    opened.close()
    monkeypatch.setenv(CUDA_VARIABLE, "opencl")
    assert CUDA_VARIABLE in cuda_status().reason
    with pytest.raises(UsageError, match="'opencl'"):
        open_cuda()


# --- the fake itself ---------------------------------------------------------------------------------------


def test_the_fake_has_the_real_packages_names() -> None:
    """Every call, constant and enumeration member that the fake offers exists in cuda-python, with as many
    parameters."""
    real = pytest.importorskip("cuda.bindings.runtime")
    fake = fake_cuda_python(FakeDriver())
    for name in vars(fake):
        if name.startswith("cuda"):
            assert hasattr(real, name), name
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamCaptureStatus"):
        missing = set(getattr(fake, kind).__members__) - set(getattr(real, kind).__members__)
        assert not missing, kind
    for name in _RESULTS:
        signature = getattr(real, name).__doc__.strip().splitlines()[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        ours = getattr(fake, name).__wrapped__.__code__.co_argcount - 1
        assert ours == len([each for each in inside.split(",") if each.strip()]), signature
    for name in ("cudaStreamNonBlocking", "cudaEventBlockingSync", "cudaEventDisableTiming"):
        assert getattr(fake, name) == getattr(real, name)
    assert importlib.import_module("cuda.bindings.runtime") is real
