"""A GPU through NVIDIA's own ``cuda-python``: the CUDA runtime API, call by call.

The runtime API works in the device's primary context without being asked. It keeps a current device per
thread, so whatever makes or launches something sets it first; that device stays the thread's current one.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.devices.cuda import (
    CONTEXT_LOST,
    INSTALL_DRIVER,
    NO_DRIVER,
    NO_GPU,
    UPDATE_DRIVER,
    CudaDevice,
    CudaMemory,
    CudaProperties,
    version_text,
)
from mrsep_deploy.devices.interface import Closable, DeviceTensor, Event, Graph, Stream, TensorView
from mrsep_deploy.errors import DeviceLostError, EngineError, EngineUnavailableError
from mrsep_deploy.process.libraries import library

INSTALL = "pip install cuda-python"

# After these no call of the process on that GPU works any more.
_LOST = frozenset(
    f"cudaError{name}"
    for name in (
        "Assert", "ECCUncorrectable", "HardwareStackError", "IllegalAddress", "IllegalInstruction",
        "InvalidAddressSpace", "InvalidPc", "LaunchFailure", "LaunchTimeout", "MisalignedAddress", "Unknown",
    )
)  # fmt: skip


class CudaCallError(EngineError):
    """A call of the runtime failed. ``code`` is CUDA's name for the error."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class CudaRuntime:
    """The runtime's calls by name, with the error that each returns raised.

    Raises:
        EngineUnavailableError: cuda-python cannot be imported.
    """

    def __init__(self) -> None:
        try:
            try:
                self.module: Any = library("cuda.bindings.runtime")
            except ImportError:
                # Releases of cuda-python before 12.6 have the same calls there.
                self.module = library("cuda.cudart")
        except ImportError as error:
            raise EngineUnavailableError(f"cuda-python cannot be imported ({error})", INSTALL) from error

    def __call__(self, call: str, *arguments: Any) -> Any:
        """The call's result; a tuple if it has several."""
        error, *results = getattr(self.module, call)(*arguments)
        if error != self.module.cudaError_t.cudaSuccess:
            _, text = self.module.cudaGetErrorString(error)
            message = f"CUDA failed in {call}: {text.decode(errors='replace')} ({error.name})"
            if error.name in _LOST:
                raise DeviceLostError(message, CONTEXT_LOST)
            raise CudaCallError(message, error.name)
        return results[0] if len(results) == 1 else tuple(results)

    def release(self, call: str, handle: Any) -> None:
        """Give something back. The error is of no use here: such calls also return those of earlier,
        asynchronous work, which synchronizing has raised or will raise."""
        getattr(self.module, call)(handle)


class _Native(Closable):
    """A handle of the runtime's, and the name of the call that gives it back."""

    destroy: ClassVar[str]

    def __init__(self, device: CudaPythonDevice, native: Any) -> None:
        self.device, self.runtime = device, device.runtime
        self.native: Any = native
        super().__init__(device)

    def _release(self) -> None:
        native, self.native = self.native, None
        self.runtime.release(self.destroy, native)


class CudaPythonEvent(_Native, Event):
    """``cudaEvent_t``. Without times it costs least; waiting for it gives the processor to others."""

    destroy: ClassVar[str] = "cudaEventDestroy"

    def __init__(self, device: CudaPythonDevice, timed: bool) -> None:
        self.timed, module = timed, device.runtime.module
        flags = module.cudaEventBlockingSync | (0 if timed else module.cudaEventDisableTiming)
        super().__init__(device, device.runtime("cudaEventCreateWithFlags", flags))

    def synchronize(self) -> None:
        self.runtime("cudaEventSynchronize", self.native)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, CudaPythonEvent)
        return float(self.runtime("cudaEventElapsedTime", earlier.native, self.native)) / 1e3


class CudaPythonStream(_Native, Stream):
    """``cudaStream_t``, non-blocking: the legacy default stream, where other libraries may work, neither
    waits for it nor makes it wait. What is enqueued when it is closed still runs to its end."""

    destroy: ClassVar[str] = "cudaStreamDestroy"

    @property
    def handle(self) -> int:
        if self.native is None:
            raise EngineError("a closed stream was used")
        return int(self.native)

    def enqueue(self, work: Callable[[], None]) -> None:
        assert self.handle
        self.device.make_current()
        work()

    def record(self, event: Event) -> None:
        assert isinstance(event, CudaPythonEvent)
        module = self.runtime.module
        idle = module.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
        if event.timed and self.runtime("cudaStreamIsCapturing", self.handle) != idle:
            # Without the flag a captured record is only an edge of the graph, and takes no time.
            flag = module.cudaEventRecordExternal
            self.runtime("cudaEventRecordWithFlags", event.native, self.handle, flag)
        else:
            self.runtime("cudaEventRecord", event.native, self.handle)

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaPythonEvent)
        self.runtime("cudaStreamWaitEvent", self.handle, event.native, 0)

    def synchronize(self) -> None:
        self.runtime("cudaStreamSynchronize", self.handle)


class CudaPythonGraph(_Native, Graph):
    """``cudaGraphExec_t``."""

    destroy: ClassVar[str] = "cudaGraphExecDestroy"

    def launch(self, stream: Stream) -> None:
        if self.native is None:
            raise EngineError("a closed graph was launched")
        self.runtime("cudaGraphLaunch", self.native, stream.handle)


class CudaPythonMemory(_Native, CudaMemory):
    """A block of ``cudaMalloc``: taken once before the first segment, so that no pool is of use."""

    destroy: ClassVar[str] = "cudaFree"

    def __init__(self, device: CudaPythonDevice, size: int) -> None:
        self.size = size
        try:
            super().__init__(device, device.runtime("cudaMalloc", max(size, 1)))
        except CudaCallError as error:
            if error.code == "cudaErrorMemoryAllocation":
                raise device.out_of_memory(size) from error
            raise


class CudaPythonDevice(CudaDevice):
    """A GPU through cuda-python."""

    captures = True

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.runtime = CudaRuntime()
        self.make_current()

    @classmethod
    def probe(cls) -> list[CudaProperties]:
        runtime = CudaRuntime()
        driver, own = runtime("cudaDriverGetVersion"), runtime("cudaRuntimeGetVersion")
        if not driver:
            raise EngineUnavailableError(NO_DRIVER, INSTALL_DRIVER)
        try:
            count = runtime("cudaGetDeviceCount")
        except CudaCallError as error:
            if error.code == "cudaErrorInsufficientDriver":
                found = version_text(driver)
                fix = f'{UPDATE_DRIVER} Here: pip install "cuda-python=={found.split(".")[0]}.*"'
                message = f"the NVIDIA driver supports CUDA {found}, cuda-python needs {version_text(own)}"
                raise EngineUnavailableError(message, fix) from error
            message = NO_GPU if error.code == "cudaErrorNoDevice" else error.message
            raise EngineUnavailableError(message, INSTALL_DRIVER) from error
        return [
            CudaProperties(
                properties.name.split(b"\0")[0].decode(errors="replace"),
                (properties.major, properties.minor),
                properties.totalGlobalMem,
                version_text(driver),
                version_text(own),
            )
            for properties in (runtime("cudaGetDeviceProperties", index) for index in range(count))
        ]

    def make_current(self) -> None:
        """Make this the calling thread's device."""
        self.runtime("cudaSetDevice", self.index)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self.make_current()
        yield

    def stream(self, name: str) -> CudaPythonStream:
        self.make_current()
        flag = self.runtime.module.cudaStreamNonBlocking
        return CudaPythonStream(self, self.runtime("cudaStreamCreateWithFlags", flag))

    def event(self, timed: bool = False) -> CudaPythonEvent:
        self.make_current()
        return CudaPythonEvent(self, timed)

    def allocate(self, size: int) -> CudaPythonMemory:
        self.make_current()
        return CudaPythonMemory(self, size)

    def free_bytes(self) -> int:
        self.make_current()
        free, _ = self.runtime("cudaMemGetInfo")
        return int(free)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        self.make_current()
        count = int(np.prod(shape, dtype=np.int64))
        size = max(count * np.dtype(dtype).itemsize, 1)
        pointer = int(self.runtime("cudaHostAlloc", size, self.runtime.module.cudaHostAllocDefault))
        block = (ctypes.c_ubyte * size).from_address(pointer)
        # Every view of the array holds `block`, so nobody can be left with freed memory in hand.
        finalizer = weakref.finalize(block, self.runtime.release, "cudaFreeHost", pointer)
        finalizer.atexit = False  # the process's end frees it, the driver may be gone by then
        array: NDArray[Any] = np.frombuffer(memoryview(block), dtype, count).reshape(shape)
        array[...] = 0
        return array

    def _copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        sides = (target, source)
        places = [each.pointer if isinstance(each, DeviceTensor) else each.ctypes.data for each in sides]
        to, from_ = ("Device" if isinstance(each, DeviceTensor) else "Host" for each in sides)
        kind = getattr(self.runtime.module.cudaMemcpyKind, f"cudaMemcpy{from_}To{to}")
        self.runtime("cudaMemcpyAsync", *places, target.nbytes, kind, stream.handle)

    def capture(self, stream: Stream, work: Callable[[], None]) -> CudaPythonGraph:
        """See the interface.

        Thread-local mode: a call of this thread that cannot be captured (an allocation, a
        synchronization) fails here, where relaxed mode would let it run once and be missing from every
        launch; and other threads' allocations are left alone, which global mode would make fail.
        """
        runtime = self.runtime
        self.make_current()
        mode = runtime.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        runtime("cudaStreamBeginCapture", stream.handle, mode)
        try:
            work()
        except BaseException:
            _, *graphs = runtime.module.cudaStreamEndCapture(stream.handle)
            self._destroy(graphs[0])
            raise
        graph = runtime("cudaStreamEndCapture", stream.handle)
        try:
            executable = runtime("cudaGraphInstantiate", graph, 0)
        finally:
            self._destroy(graph)
        made = CudaPythonGraph(self, executable)
        # Now, so that the first launch takes no longer than the others.
        runtime("cudaGraphUpload", executable, stream.handle)
        return made

    def _destroy(self, graph: Any) -> None:
        """A capture that went wrong may have left no graph at all."""
        if graph is not None and int(graph):
            self.runtime.release("cudaGraphDestroy", graph)
