"""The CPU as a device: streams are worker threads, memory is NumPy's, copies are copies."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.devices.denormals import flush_denormals
from mrsep_deploy.devices.interface import (
    Device,
    DeviceKind,
    DeviceTensor,
    Event,
    Memory,
    Stream,
    TensorView,
    as_bytes,
)
from mrsep_deploy.errors import EngineError
from mrsep_deploy.process.interrupts import wait_for

ALIGNMENT = 256


class Mark:
    """One record of an event: when it was reached, and the error of the work before it, if any."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.failed: BaseException | None = None
        self.time = 0.0


class CpuEvent(Event):
    """A flag raised by the worker that reaches the record. Each record makes a fresh flag."""

    def __init__(self, device: CpuDevice) -> None:
        super().__init__(device)
        self.mark = Mark()
        self.mark.reached.set()

    def synchronize(self) -> None:
        wait_for(self.mark.reached)
        if self.mark.failed is not None:
            raise self.mark.failed

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, CpuEvent)
        return self.mark.time - earlier.mark.time

    def _release(self) -> None:
        """An event holds nothing on a CPU."""


class CpuStream(Stream):
    """A worker thread that runs what is enqueued, in order.

    After an error the rest of the queue is skipped, and streams that wait for this one's events skip
    too, until ``synchronize`` has raised it: no work ever sees the output of work that failed.
    """

    def __init__(self, device: CpuDevice, name: str) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._closed = False
        self._worker = threading.Thread(target=self._work, name=f"stream {name}", daemon=True)
        self._worker.start()
        super().__init__(device)

    def enqueue(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            if self._error is not None or self._closed:
                return
            try:
                work()
            except BaseException as error:  # raised again where the host synchronizes
                self._error = error

        self._put(guarded)

    def record(self, event: Event) -> None:
        assert isinstance(event, CpuEvent)
        mark = event.mark = Mark()

        def reach() -> None:
            mark.failed = self._error
            mark.time = time.perf_counter()
            mark.reached.set()

        self._put(reach)

    def wait(self, event: Event) -> None:
        assert isinstance(event, CpuEvent)
        mark = event.mark

        def hold() -> None:
            mark.reached.wait()
            if self._error is None:
                self._error = mark.failed

        self._put(hold)

    def synchronize(self) -> None:
        if self._worker is threading.current_thread():  # which collects what nobody has closed
            return
        done = threading.Event()
        error: list[BaseException | None] = []

        def finish() -> None:
            error.append(self._error)
            self._error = None
            done.set()

        self._put(finish)
        wait_for(done)
        if error[0] is not None:
            raise error[0]

    def _release(self) -> None:
        # Work that has begun is finished, the rest of the queue is dropped.
        self._closed = True
        self._queue.put(None)
        if self._worker is not threading.current_thread():  # as when it collects what nobody has closed
            self._worker.join()

    def _put(self, item: Callable[[], None]) -> None:
        if self._closed:
            raise EngineError("work was enqueued on a closed stream")
        self._queue.put(item)

    def _work(self) -> None:
        flush_denormals()
        while (item := self._queue.get()) is not None:
            item()


class CpuMemory(Memory):
    """A block of zeroed host memory."""

    def __init__(self, device: CpuDevice, size: int) -> None:
        self.size = size
        try:
            block = np.zeros(size + ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise EngineError(
                f"there is no memory for {size / 1e6:,.0f} MB of buffers",
                "Take a smaller batch (--batch), or close other programs.",
            ) from error
        skip = -block.ctypes.data % ALIGNMENT
        self._block: NDArray[np.uint8] | None = block[skip : skip + size]
        super().__init__(device)

    def _placed(self, tensor: DeviceTensor) -> NDArray[Any]:
        assert self._block is not None, "the block is closed"
        part = self._block[tensor.pointer : tensor.pointer + tensor.nbytes]
        return part.view(tensor.dtype).reshape(tensor.shape)

    def _release(self) -> None:
        self._block = None  # the memory itself goes with the last tensor in it


class CpuDevice(Device):
    """The processor this runs on."""

    kind: DeviceKind = "cpu"
    name = "CPU"

    def stream(self, name: str) -> CpuStream:
        return CpuStream(self, name)

    def event(self, timed: bool = False) -> CpuEvent:
        return CpuEvent(self)

    def allocate(self, size: int) -> CpuMemory:
        return CpuMemory(self, size)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def _copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        assert isinstance(target, np.ndarray)
        assert isinstance(source, np.ndarray)
        to, from_ = as_bytes(target), as_bytes(source)
        stream.enqueue(lambda: np.copyto(to, from_))
