"""A GPU through ``pycuda``: the CUDA driver API, for programs that are built on it already.

pycuda has no call for graphs, so nothing can be captured. The driver API works in the context on top of
the calling thread's stack: each call here pushes the device's primary context, the one that torch and
ONNX Runtime use, and pops it again, so that no order of opening and closing devices can confuse the stack.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.devices.cuda import (
    CONTEXT_LOST,
    INSTALL_DRIVER,
    NO_DRIVER,
    CudaDevice,
    CudaProperties,
    check_index,
    slice_block,
    version_text,
)
from mrsep_deploy.devices.interface import DeviceTensor, Event, Graph, Memory, Stream, TensorView
from mrsep_deploy.devices.views import as_bytes, check_copy
from mrsep_deploy.errors import EngineError, EngineUnavailableError
from mrsep_deploy.process.libraries import library

INSTALL = "pip install pycuda (it is compiled on the spot and needs nvcc), or use cuda-python."

CU_STREAM_NON_BLOCKING = 1  # pycuda exports no name for it


def load_driver() -> Any:
    """``pycuda.driver``, initialised.

    Raises:
        EngineUnavailableError: there is no pycuda or no driver.
    """
    try:
        driver: Any = library("pycuda.driver")
    except ImportError as error:
        raise EngineUnavailableError(f"pycuda cannot be imported ({error})", INSTALL) from error
    try:
        driver.init()
    except driver.Error as error:
        raise EngineUnavailableError(f"{NO_DRIVER} that works: {error}", INSTALL_DRIVER) from error
    return driver


def probe() -> list[CudaProperties]:
    """All GPUs, without making a context on any.

    Raises:
        EngineUnavailableError: there is no pycuda or no driver.
    """
    driver = load_driver()
    with _mapped(driver):
        newest = version_text(driver.get_driver_version())
        built_for = ".".join(str(part) for part in driver.get_version()[:2])
        devices = [driver.Device(index) for index in range(driver.Device.count())]
        return [
            CudaProperties(d.name(), tuple(d.compute_capability()), d.total_memory(), newest, built_for)
            for d in devices
        ]


@functools.cache
def _primary_context(driver: Any, index: int) -> Any:
    """A GPU's primary context, held until the process ends, as the runtime API does.

    Pinned arrays may outlive the device object and need it to be freed. At the end ``detach`` is called
    on it: pycuda's destructor would use the call for contexts of another kind.
    """
    context = driver.Device(index).retain_primary_context()

    def release() -> None:
        with contextlib.suppress(driver.Error):
            context.push()
            context.detach()

    atexit.register(release)
    return context


@contextlib.contextmanager
def _mapped(driver: Any) -> Iterator[None]:
    """Raise pycuda's errors as this package's."""
    try:
        yield
    except driver.LaunchError as error:
        raise EngineError(f"CUDA failed: {error}", CONTEXT_LOST) from error
    except driver.Error as error:
        raise EngineError(f"CUDA failed: {error}") from error


class PyCudaEvent(Event):
    """``pycuda.driver.Event``; its end is the driver's ``cuEventDestroy``."""

    def __init__(self, device: PyCudaDevice, timed: bool) -> None:
        self._device = device
        flags = device.driver.event_flags
        with device.active():
            self._event: Any = device.driver.Event(
                int(flags.BLOCKING_SYNC) | (0 if timed else int(flags.DISABLE_TIMING))
            )

    def synchronize(self) -> None:
        with self._device.active():
            self._event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, PyCudaEvent)
        with self._device.active():
            return float(self._event.time_since(earlier._event)) / 1e3

    def close(self) -> None:
        if self._event is not None:
            self._device.let_go(self, "_event")


class PyCudaStream(Stream):
    """``pycuda.driver.Stream``, non-blocking: it and the legacy default stream do not wait for each other."""

    def __init__(self, device: PyCudaDevice) -> None:
        self._device = device
        with device.active():
            self._stream: Any = device.driver.Stream(CU_STREAM_NON_BLOCKING)

    @property
    def native(self) -> Any:
        """pycuda's own object."""
        if self._stream is None:
            raise EngineError("a closed stream was used")
        return self._stream

    @property
    def handle(self) -> int:
        return int(self.native.handle)

    def enqueue(self, work: Callable[[], None]) -> None:
        assert self.handle
        with self._device.active():
            work()

    def record(self, event: Event) -> None:
        assert isinstance(event, PyCudaEvent)
        with self._device.active():
            event._event.record(self.native)

    def wait(self, event: Event) -> None:
        assert isinstance(event, PyCudaEvent)
        with self._device.active():
            self.native.wait_for_event(event._event)

    def synchronize(self) -> None:
        with self._device.active():
            self.native.synchronize()

    def close(self) -> None:
        """What is enqueued still runs to its end; the driver lets go of the stream after it."""
        if self._stream is not None:
            self._device.let_go(self, "_stream")


class PyCudaMemory(Memory):
    """A block of ``cuMemAlloc``."""

    def __init__(self, device: PyCudaDevice, size: int) -> None:
        self.size = size
        self._device = device
        with device.active():
            try:
                self._block: Any = device.driver.mem_alloc(max(size, 1))
            except device.driver.MemoryError as error:
                raise device.out_of_memory(size) from error

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        assert self._block is not None, "the block is closed"
        return slice_block(int(self._block), self.size, offset, shape, dtype)

    def close(self) -> None:
        if self._block is not None:
            self._device.let_go(self, "_block")


class PyCudaDevice(CudaDevice):
    """GPU ``index`` through pycuda.

    pycuda ties its objects to the thread that made them: open, use and close one in the same thread.

    Raises:
        EngineUnavailableError: there is no pycuda, no driver or no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        found = probe()
        check_index(index, len(found))
        super().__init__(index, found[index])
        self.driver = load_driver()
        with _mapped(self.driver):
            self._context: Any = _primary_context(self.driver, index)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """With this device's context on top of the thread's stack, and pycuda's errors mapped."""
        if self._context is None:
            raise EngineError(f"{self.name} was used after it was closed")
        with _mapped(self.driver):
            self._context.push()
            try:
                yield
            finally:
                self.driver.Context.pop()

    def let_go(self, made: Stream | Event | Memory, attribute: str) -> None:
        """Drop pycuda's object, whose destructor gives it back and needs the context for that.

        A context that is lost was reported by the call that lost it; there is nothing to give back then.
        """
        with contextlib.suppress(EngineError), self.active():
            setattr(made, attribute, None)
        setattr(made, attribute, None)
        self._open.remove(made)

    def stream(self, name: str) -> PyCudaStream:
        return self._open.add(PyCudaStream(self))

    def event(self, timed: bool = False) -> PyCudaEvent:
        return self._open.add(PyCudaEvent(self, timed))

    def allocate(self, size: int) -> PyCudaMemory:
        return self._open.add(PyCudaMemory(self, size))

    def free_bytes(self) -> int:
        with self.active():
            return int(self.driver.mem_get_info()[0])

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        with self.active():
            array: NDArray[Any] = self.driver.pagelocked_empty(shape, np.dtype(dtype))
        array[...] = 0
        return array

    def copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        assert isinstance(stream, PyCudaStream)
        size = check_copy(target, source)
        driver = self.driver
        with self.active():
            if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
                driver.memcpy_dtod_async(target.pointer, source.pointer, size, stream.native)
            elif isinstance(target, DeviceTensor):
                driver.memcpy_htod_async(target.pointer, source, stream.native)
            elif isinstance(source, DeviceTensor):
                driver.memcpy_dtoh_async(target, source.pointer, stream.native)
            else:
                # pycuda has no call that enqueues a copy inside the host: wait, and copy here.
                stream.native.synchronize()
                np.copyto(as_bytes(target), as_bytes(source))

    @property
    def captures(self) -> bool:
        return False

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        raise EngineError("pycuda cannot capture work into a graph", "Use cuda-python, or another --mode.")

    def close(self) -> None:
        if self._context is not None:
            super().close()
            self._context = None
