"""The fake driver as ``cuda.bindings.runtime`` and as ``pycuda.driver``: what this package uses of them.

``install(monkeypatch, driver)`` puts both where imports find them.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cuda import CudaFault, FakeDriver

_ERRORS = (
    "cudaSuccess", "cudaErrorInvalidValue", "cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver",
    "cudaErrorNoDevice", "cudaErrorInvalidDevice", "cudaErrorIllegalState", "cudaErrorNotReady",
    "cudaErrorInvalidResourceHandle", "cudaErrorIllegalAddress", "cudaErrorLaunchFailure",
    "cudaErrorCapturedEvent", "cudaErrorStreamCaptureUnsupported", "cudaErrorStreamCaptureInvalidated",
    "cudaErrorStreamCaptureMerge", "cudaErrorStreamCaptureUnmatched", "cudaErrorStreamCaptureUnjoined",
    "cudaErrorStreamCaptureIsolation", "cudaErrorStreamCaptureWrongThread",
)  # fmt: skip
cudaError_t = enum.IntEnum("cudaError_t", {name: number for number, name in enumerate(_ERRORS)})
cudaMemcpyKind = enum.IntEnum(
    "cudaMemcpyKind",
    {
        f"cudaMemcpy{n}": i
        for i, n in enumerate(("HostToHost", "HostToDevice", "DeviceToHost", "DeviceToDevice"))
    },
)
cudaStreamCaptureMode = enum.IntEnum(
    "cudaStreamCaptureMode",
    {f"cudaStreamCaptureMode{n}": i for i, n in enumerate(("Global", "ThreadLocal", "Relaxed"))},
)
cudaStreamCaptureStatus = enum.IntEnum(
    "cudaStreamCaptureStatus", {f"cudaStreamCaptureStatus{n}": i for i, n in enumerate(("None", "Active"))}
)
CAPABILITY = (8, 6)
NAME = "NVIDIA Fake 3090"
TEXTS = {
    "cudaErrorIllegalAddress": "an illegal memory access was encountered",
    "cudaErrorLaunchFailure": "unspecified launch failure",
    "cudaErrorLaunchOutOfResources": "too many resources requested for launch",
}
"""The driver's texts, which is all that pycuda's exceptions hold."""


def install(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    """Let ``cuda.bindings.runtime`` and ``pycuda.driver`` be faces of this driver."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake_cuda_python(driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake_pycuda(driver))


def fake_cuda_python(driver: FakeDriver) -> types.ModuleType:
    """A module in which every call returns ``(error, *results)``, as cuda-python's do."""
    module: Any = types.ModuleType("cuda.bindings.runtime")
    module.cudaError_t, module.cudaMemcpyKind = cudaError_t, cudaMemcpyKind
    module.cudaStreamCaptureMode, module.cudaStreamCaptureStatus = (
        cudaStreamCaptureMode,
        cudaStreamCaptureStatus,
    )
    module.cudaStreamNonBlocking, module.cudaHostAllocDefault = 1, 0
    module.cudaEventBlockingSync, module.cudaEventDisableTiming, module.cudaEventRecordExternal = 1, 2, 1
    module.cudaGetErrorString = lambda error: (cudaError_t.cudaSuccess, f"text of {error.name}".encode())
    for call in _RUNTIME_CALLS:
        setattr(module, call.__name__, _returning_errors(driver, call))
    return module


_RUNTIME_CALLS: list[Callable[..., Any]] = []
_RESULTS: dict[str, int] = {}
_UNSAFE = {"cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaMemGetInfo"}
_WITHOUT_DEVICE = {"cudaDriverGetVersion", "cudaRuntimeGetVersion"}


def _call(results: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _RUNTIME_CALLS.append(function)
        _RESULTS[function.__name__] = results
        return function

    return register


def _returning_errors(driver: FakeDriver, call: Callable[..., Any]) -> Callable[..., Any]:
    name = call.__name__

    @functools.wraps(call)
    def wrapped(*arguments: Any) -> tuple[Any, ...]:
        try:
            if name not in _WITHOUT_DEVICE:
                driver.enter(name, name in _UNSAFE)
            found = call(driver, *arguments)
        except CudaFault as fault:
            return (cudaError_t[fault.code], *[None] * _RESULTS[name])
        if not _RESULTS[name]:
            return (cudaError_t.cudaSuccess,)
        return (cudaError_t.cudaSuccess, *(found if isinstance(found, tuple) else (found,)))

    return wrapped


@_call(1)
def cudaDriverGetVersion(driver: FakeDriver) -> int:
    return driver.driver_version


@_call(1)
def cudaRuntimeGetVersion(driver: FakeDriver) -> int:
    return driver.runtime_version


@_call(1)
def cudaGetDeviceCount(driver: FakeDriver) -> int:
    if driver.driver_version < driver.runtime_version:
        raise CudaFault("cudaErrorInsufficientDriver")
    if not driver.devices:
        raise CudaFault("cudaErrorNoDevice")
    return driver.devices


@_call(1)
def cudaGetDeviceProperties(driver: FakeDriver, device: int) -> Any:
    return types.SimpleNamespace(
        name=NAME.encode() + b"\0\0", major=CAPABILITY[0], minor=CAPABILITY[1], totalGlobalMem=driver.total
    )


@_call()
def cudaSetDevice(driver: FakeDriver, device: int) -> None:
    if not 0 <= device < driver.devices:
        raise CudaFault("cudaErrorInvalidDevice")
    driver.current = device


@_call(2)
def cudaMemGetInfo(driver: FakeDriver) -> tuple[int, int]:
    return driver.memory_info()


@_call(1)
def cudaStreamCreateWithFlags(driver: FakeDriver, flags: int) -> int:
    assert flags == 1, "a stream that waits for the default stream"
    return driver.stream_create()


@_call()
def cudaStreamDestroy(driver: FakeDriver, stream: int) -> None:
    driver.stream_destroy(stream)


@_call()
def cudaStreamSynchronize(driver: FakeDriver, stream: int) -> None:
    driver.stream_synchronize(stream)


@_call()
def cudaStreamWaitEvent(driver: FakeDriver, stream: int, event: int, flags: int) -> None:
    driver.event_wait(stream, event)


@_call(1)
def cudaStreamIsCapturing(driver: FakeDriver, stream: int) -> Any:
    return cudaStreamCaptureStatus(int(driver.is_capturing(stream)))


@_call()
def cudaStreamBeginCapture(driver: FakeDriver, stream: int, mode: Any) -> None:
    driver.capture_begin(stream, mode.name.removeprefix("cudaStreamCaptureMode"))


@_call(1)
def cudaStreamEndCapture(driver: FakeDriver, stream: int) -> int:
    return driver.capture_end(stream)


@_call(1)
def cudaGraphInstantiate(driver: FakeDriver, graph: int, flags: int) -> int:
    return driver.graph_instantiate(graph)


@_call()
def cudaGraphUpload(driver: FakeDriver, executable: int, stream: int) -> None:
    driver.executable(executable)


@_call()
def cudaGraphLaunch(driver: FakeDriver, executable: int, stream: int) -> None:
    driver.graph_launch(executable, stream)


@_call()
def cudaGraphDestroy(driver: FakeDriver, graph: int) -> None:
    driver.graph_destroy(graph)


@_call()
def cudaGraphExecDestroy(driver: FakeDriver, executable: int) -> None:
    driver.executable_destroy(executable)


@_call(1)
def cudaEventCreateWithFlags(driver: FakeDriver, flags: int) -> int:
    return driver.event_create(timed=not flags & 2)


@_call()
def cudaEventDestroy(driver: FakeDriver, event: int) -> None:
    driver.event_destroy(event)


@_call()
def cudaEventRecord(driver: FakeDriver, event: int, stream: int) -> None:
    driver.event_record(event, stream)


@_call()
def cudaEventRecordWithFlags(driver: FakeDriver, event: int, stream: int, flags: int) -> None:
    driver.event_record(event, stream, external=bool(flags & 1))


@_call()
def cudaEventSynchronize(driver: FakeDriver, event: int) -> None:
    driver.event_synchronize(event)


@_call(1)
def cudaEventElapsedTime(driver: FakeDriver, start: int, end: int) -> float:
    return driver.event_elapsed(start, end)


@_call(1)
def cudaMalloc(driver: FakeDriver, size: int) -> int:
    return driver.allocate(size)


@_call()
def cudaFree(driver: FakeDriver, pointer: int) -> None:
    driver.free(pointer)


@_call(1)
def cudaHostAlloc(driver: FakeDriver, size: int, flags: int) -> int:
    return driver.host_allocate(size)


@_call()
def cudaFreeHost(driver: FakeDriver, pointer: int) -> None:
    driver.host_free(pointer)


@_call()
def cudaMemcpyAsync(driver: FakeDriver, dst: int, src: int, count: int, kind: Any, stream: int) -> None:
    driver.copy(dst, src, count, kind.name.removeprefix("cudaMemcpy"), stream)


# --- pycuda


def fake_pycuda(fake: FakeDriver) -> types.ModuleType:
    """``pycuda.driver``: classes whose destructors give back, errors raised, and a stack of contexts."""
    module: Any = types.ModuleType("pycuda.driver")
    contexts = threading.local()

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    class LaunchError(Error):
        pass

    class event_flags(enum.IntFlag):
        DEFAULT, BLOCKING_SYNC, DISABLE_TIMING = 0, 1, 2

    def checked(name: str, call: Callable[..., Any], *arguments: Any, context: bool = True) -> Any:
        if context and not stack():
            raise LogicError(f"{name} failed: invalid device context")
        try:
            fake.enter(name)
            return call(*arguments)
        except CudaFault as fault:
            kinds = {
                "cudaErrorMemoryAllocation": MemoryError,
                "cudaErrorLaunchFailure": LaunchError,
                "cudaErrorLaunchOutOfResources": LaunchError,
            }
            text = TEXTS.get(fault.code, "text")
            raise kinds.get(fault.code, LogicError)(f"{name} failed: {text} ({fault.code})") from fault

    def stack() -> list[Context]:
        if not hasattr(contexts, "stack"):
            contexts.stack, contexts.before = [], []
        found: list[Context] = contexts.stack
        return found

    def released(owner: Any, name: str, call: Callable[..., Any], handle: int) -> None:
        def release() -> None:
            if not stack() and name != "cuMemFreeHost":
                fake.violations.append(f"{name} without a context")
            call(handle)

        weakref.finalize(owner, release).atexit = False

    class Context:
        def __init__(self, index: int) -> None:
            self.index = index

        def push(self) -> None:
            stack().append(self)
            contexts.before.append(fake.current)
            fake.current = self.index

        def detach(self) -> None:
            stack().remove(self)

        @staticmethod
        def pop() -> None:
            if not stack():
                raise LogicError("context::pop failed: cannot pop non-current context")
            stack().pop()
            fake.current = contexts.before.pop()

    class Device:
        def __init__(self, index: int) -> None:
            if not 0 <= index < fake.devices:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")
            self.index = index

        @staticmethod
        def count() -> int:
            return fake.devices

        def name(self) -> str:
            return NAME

        def compute_capability(self) -> tuple[int, int]:
            return CAPABILITY

        def total_memory(self) -> int:
            return fake.total

        def retain_primary_context(self) -> Context:
            return Context(self.index)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            assert flags == 1, "a stream that waits for the default stream"
            self.handle: int = checked("cuStreamCreate", fake.stream_create)
            released(self, "cuStreamDestroy", fake.stream_destroy, self.handle)

        def synchronize(self) -> None:
            checked("cuStreamSynchronize", fake.stream_synchronize, self.handle)

        def wait_for_event(self, evt: Event) -> None:
            checked("cuStreamWaitEvent", fake.event_wait, self.handle, evt.number)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            self.number: int = checked("cuEventCreate", fake.event_create, not flags & 2)
            released(self, "cuEventDestroy", fake.event_destroy, self.number)

        def record(self, stream: Stream) -> Event:
            checked("cuEventRecord", fake.event_record, self.number, stream.handle)
            return self

        def synchronize(self) -> Event:
            checked("cuEventSynchronize", fake.event_synchronize, self.number)
            return self

        def time_since(self, start: Event) -> float:
            return float(checked("cuEventElapsedTime", fake.event_elapsed, start.number, self.number))

    class DeviceAllocation:
        def __init__(self, pointer: int) -> None:
            self.pointer = pointer
            released(self, "cuMemFree", fake.free, pointer)

        def __int__(self) -> int:
            return self.pointer

    def mem_alloc(size: int) -> DeviceAllocation:
        return DeviceAllocation(checked("cuMemAlloc", fake.allocate, size))

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        pointer = checked("cuMemHostAlloc", fake.host_allocate, max(size, 1))
        block = (ctypes.c_ubyte * max(size, 1)).from_address(pointer)
        released(block, "cuMemFreeHost", fake.host_free, pointer)
        return np.frombuffer(block, dtype, int(np.prod(shape, dtype=np.int64))).reshape(shape)

    def copying(kind: str) -> Callable[..., None]:
        def copy(target: Any, source: Any, size: int, stream: Stream) -> None:
            checked(f"cuMemcpy{kind}", fake.copy, target, source, size, kind, stream.handle)

        return copy

    module.Error, module.MemoryError, module.LogicError, module.LaunchError = (
        Error,
        MemoryError,
        LogicError,
        LaunchError,
    )
    module.event_flags, module.Context, module.Device = event_flags, Context, Device
    module.Stream, module.Event, module.mem_alloc = Stream, Event, mem_alloc
    module.pagelocked_empty = pagelocked_empty
    module.init = lambda: checked("cuInit", lambda: None, context=False)
    module.get_version, module.get_driver_version = lambda: (13, 0, 0), lambda: fake.driver_version
    module.mem_get_info = lambda: checked("cuMemGetInfo", fake.memory_info)
    module.memcpy_htod_async = lambda dest, src, stream: copying("HostToDevice")(
        dest, src.ctypes.data, src.nbytes, stream
    )
    module.memcpy_dtoh_async = lambda dest, src, stream: copying("DeviceToHost")(
        dest.ctypes.data, src, dest.nbytes, stream
    )
    module.memcpy_dtod_async = lambda dest, src, size, stream: copying("DeviceToDevice")(
        dest, src, size, stream
    )
    module.context_depth = lambda: len(stack())
    return module
