"""A GPU through NVIDIA's own ``cuda-python``: the CUDA runtime API, call by call.

The runtime API works in the device's primary context without being asked. It keeps a current device per
thread, so whatever makes or launches something sets it first; that device stays the thread's current one.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.devices.cuda import CudaDevice, check_index, slice_block
from mrsep_deploy.devices.cuda_runtime import CudaCallError, CudaRuntime, probe
from mrsep_deploy.devices.interface import DeviceTensor, Event, Graph, Memory, OpenObjects, Stream, TensorView
from mrsep_deploy.devices.views import address, check_copy
from mrsep_deploy.errors import EngineError

__all__ = ["CudaPythonDevice", "probe"]


class CudaPythonEvent(Event):
    """``cudaEvent_t``. Without times it costs least; waiting for it gives the processor to others."""

    def __init__(self, runtime: CudaRuntime, open_objects: OpenObjects, timed: bool) -> None:
        self._runtime, self._open, self.timed = runtime, open_objects, timed
        module = runtime.module
        flags = module.cudaEventBlockingSync | (0 if timed else module.cudaEventDisableTiming)
        self._event: Any = runtime("cudaEventCreateWithFlags", flags)

    def synchronize(self) -> None:
        self._runtime("cudaEventSynchronize", self._event)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, CudaPythonEvent)
        return float(self._runtime("cudaEventElapsedTime", earlier._event, self._event)) / 1e3

    def close(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            self._open.remove(self)
            self._runtime.release("cudaEventDestroy", event)


class CudaPythonStream(Stream):
    """``cudaStream_t``, non-blocking: the legacy default stream, where other libraries may work, neither
    waits for it nor makes it wait."""

    def __init__(self, device: CudaPythonDevice) -> None:
        self._device, self._runtime = device, device.runtime
        self._stream: Any = self._runtime(
            "cudaStreamCreateWithFlags", self._runtime.module.cudaStreamNonBlocking
        )

    @property
    def handle(self) -> int:
        if self._stream is None:
            raise EngineError("a closed stream was used")
        return int(self._stream)

    def enqueue(self, work: Callable[[], None]) -> None:
        assert self.handle
        self._device.make_current()
        work()

    def record(self, event: Event) -> None:
        assert isinstance(event, CudaPythonEvent)
        if event.timed and self._is_capturing():
            # Without the flag a captured record is only an edge of the graph, and takes no time.
            flag = self._runtime.module.cudaEventRecordExternal
            self._runtime("cudaEventRecordWithFlags", event._event, self.handle, flag)
        else:
            self._runtime("cudaEventRecord", event._event, self.handle)

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaPythonEvent)
        self._runtime("cudaStreamWaitEvent", self.handle, event._event, 0)

    def synchronize(self) -> None:
        self._runtime("cudaStreamSynchronize", self.handle)

    def _is_capturing(self) -> bool:
        status = self._runtime("cudaStreamIsCapturing", self.handle)
        return bool(status != self._runtime.module.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone)

    def close(self) -> None:
        """What is enqueued still runs to its end; the driver lets go of the stream after it."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._device.forget(self)
            self._runtime.release("cudaStreamDestroy", stream)


class CudaPythonGraph(Graph):
    """``cudaGraphExec_t``."""

    def __init__(self, runtime: CudaRuntime, open_objects: OpenObjects, executable: Any) -> None:
        self._runtime, self._open, self._executable = runtime, open_objects, executable

    def launch(self, stream: Stream) -> None:
        if self._executable is None:
            raise EngineError("a closed graph was launched")
        self._runtime("cudaGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        executable, self._executable = self._executable, None
        if executable is not None:
            self._open.remove(self)
            self._runtime.release("cudaGraphExecDestroy", executable)


class CudaPythonMemory(Memory):
    """A block of ``cudaMalloc``: taken once before the first segment, so that no pool is of use."""

    def __init__(self, device: CudaPythonDevice, size: int) -> None:
        self.size = size
        self._device = device
        try:
            self._pointer: int | None = int(device.runtime("cudaMalloc", max(size, 1)))
        except CudaCallError as error:
            if error.code == "cudaErrorMemoryAllocation":
                raise device.out_of_memory(size) from error
            raise

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        assert self._pointer is not None, "the block is closed"
        return slice_block(self._pointer, self.size, offset, shape, dtype)

    def close(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self._device.forget(self)
            self._device.runtime.release("cudaFree", pointer)


class CudaPythonDevice(CudaDevice):
    """GPU ``index`` through cuda-python.

    Raises:
        EngineUnavailableError: there is no cuda-python, no driver or no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        found = probe()
        check_index(index, len(found))
        super().__init__(index, found[index])
        self.runtime = CudaRuntime()
        self.make_current()

    def make_current(self) -> None:
        """Make this the calling thread's device."""
        self.runtime("cudaSetDevice", self.index)

    def forget(self, closed: Stream | Memory) -> None:
        """Called by what this device made, once it is closed."""
        self._open.remove(closed)

    def stream(self, name: str) -> CudaPythonStream:
        self.make_current()
        return self._open.add(CudaPythonStream(self))

    def event(self, timed: bool = False) -> CudaPythonEvent:
        self.make_current()
        return self._open.add(CudaPythonEvent(self.runtime, self._open, timed))

    def allocate(self, size: int) -> CudaPythonMemory:
        self.make_current()
        return self._open.add(CudaPythonMemory(self, size))

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

    def copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        size = check_copy(target, source)
        kinds = self.runtime.module.cudaMemcpyKind
        to, from_ = ("Device" if isinstance(tensor, DeviceTensor) else "Host" for tensor in (target, source))
        kind = getattr(kinds, f"cudaMemcpy{from_}To{to}")
        self.runtime("cudaMemcpyAsync", address(target), address(source), size, kind, stream.handle)

    @property
    def captures(self) -> bool:
        return True

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
        made = self._open.add(CudaPythonGraph(runtime, self._open, executable))
        # Now, so that the first launch takes no longer than the others.
        runtime("cudaGraphUpload", executable, stream.handle)
        return made

    def _destroy(self, graph: Any) -> None:
        """A capture that went wrong may have left no graph at all."""
        if graph is not None and int(graph):
            self.runtime.release("cudaGraphDestroy", graph)
