"""A GPU through ``pycuda``: the CUDA driver API, for programs that are built on it already.

pycuda has no call for graphs, so nothing can be captured. The driver API works in the context on top of
the calling thread's stack: each call here pushes the device's primary context, the one that torch and
ONNX Runtime use, and pops it again, so that no order of opening and closing devices can confuse the stack.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.devices.cuda import (
    CONTEXT_LOST,
    INSTALL_DRIVER,
    NO_DRIVER,
    CudaDevice,
    CudaMemory,
    CudaProperties,
    version_text,
)
from mrsep_deploy.devices.interface import Closable, DeviceTensor, Event, Stream, TensorView, as_bytes
from mrsep_deploy.errors import DeviceLostError, EngineError, EngineUnavailableError
from mrsep_deploy.process.libraries import library

INSTALL = (
    'pip install "mrsep-deploy[pycuda]" (it is compiled on the spot and needs nvcc), or use cuda-python.'
)

# The driver's texts of errors after which no call works any more; pycuda's exceptions keep no code, and its
# LaunchError stands for harmless ones, too.
_LOST = re.compile(
    "illegal memory access|illegal instruction|misaligned address|unspecified launch failure|launch timed out|"
    "invalid program counter|hardware stack error|operation not supported on global/shared address space|"
    "device-side assert|uncorrectable ECC error"
)

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
    except driver.Error as error:
        if _LOST.search(str(error)):
            raise DeviceLostError(f"CUDA failed: {error}", CONTEXT_LOST) from error
        raise EngineError(f"CUDA failed: {error}") from error


class _Native(Closable):
    """pycuda's own object, which its destructor gives back."""

    def __init__(self, device: PyCudaDevice, make: Callable[..., Any], *arguments: Any) -> None:
        self.device = device
        with device.current():
            self.native: Any = make(*arguments)
        super().__init__(device)

    def _release(self) -> None:
        # The destructor needs the context. One that is lost was reported by the call that lost it.
        with contextlib.suppress(EngineError), self.device.current():
            self.native = None
        self.native = None


class PyCudaEvent(_Native, Event):
    """``pycuda.driver.Event``; its end is the driver's ``cuEventDestroy``."""

    def synchronize(self) -> None:
        with self.device.current():
            self.native.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, PyCudaEvent)
        with self.device.current():
            return float(self.native.time_since(earlier.native)) / 1e3


class PyCudaStream(_Native, Stream):
    """``pycuda.driver.Stream``, non-blocking: it and the legacy default stream do not wait for each other.

    What is enqueued when it is closed still runs to its end.
    """

    @property
    def usable(self) -> Any:
        """pycuda's own object, unless it is closed."""
        if self.native is None:
            raise EngineError("a closed stream was used")
        return self.native

    @property
    def handle(self) -> int:
        return int(self.usable.handle)

    def enqueue(self, work: Callable[[], None]) -> None:
        assert self.handle
        with self.device.current():
            work()

    def record(self, event: Event) -> None:
        assert isinstance(event, PyCudaEvent)
        with self.device.current():
            event.native.record(self.usable)

    def wait(self, event: Event) -> None:
        assert isinstance(event, PyCudaEvent)
        with self.device.current():
            self.usable.wait_for_event(event.native)

    def synchronize(self) -> None:
        with self.device.current():
            self.usable.synchronize()


class PyCudaMemory(_Native, CudaMemory):
    """A block of ``cuMemAlloc``."""

    def __init__(self, device: PyCudaDevice, size: int) -> None:
        self.size = size
        super().__init__(device, device.driver.mem_alloc, max(size, 1))


class PyCudaDevice(CudaDevice):
    """A GPU through pycuda, which ties its objects to the thread that made them: open, use and close one in
    the same thread."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.driver = load_driver()
        with _mapped(self.driver):
            self._context: Any = _primary_context(self.driver, index)

    @classmethod
    def probe(cls) -> list[CudaProperties]:
        driver = load_driver()
        with _mapped(driver):
            newest = version_text(driver.get_driver_version())
            built_for = ".".join(str(part) for part in driver.get_version()[:2])
            devices = [driver.Device(index) for index in range(driver.Device.count())]
            return [
                CudaProperties(d.name(), tuple(d.compute_capability()), d.total_memory(), newest, built_for)
                for d in devices
            ]

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """With this device's context on top of the thread's stack, and pycuda's errors mapped."""
        if self._context is None:
            raise EngineError(f"{self.name} was used after it was closed")
        with _mapped(self.driver):
            self._context.push()
            try:
                yield
            finally:
                self.driver.Context.pop()

    def stream(self, name: str) -> PyCudaStream:
        return PyCudaStream(self, self.driver.Stream, CU_STREAM_NON_BLOCKING)

    def event(self, timed: bool = False) -> PyCudaEvent:
        flags = self.driver.event_flags
        flag = int(flags.BLOCKING_SYNC) | (0 if timed else int(flags.DISABLE_TIMING))
        return PyCudaEvent(self, self.driver.Event, flag)

    def allocate(self, size: int) -> PyCudaMemory:
        try:
            return PyCudaMemory(self, size)
        except EngineError as error:
            if isinstance(error.__cause__, self.driver.MemoryError):
                raise self.out_of_memory(size) from error
            raise

    def free_bytes(self) -> int:
        with self.current():
            return int(self.driver.mem_get_info()[0])

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        with self.current():
            array: NDArray[Any] = self.driver.pagelocked_empty(shape, np.dtype(dtype))
        array[...] = 0
        return array

    def _copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        assert isinstance(stream, PyCudaStream)
        driver = self.driver
        with self.current():
            if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
                driver.memcpy_dtod_async(target.pointer, source.pointer, target.nbytes, stream.usable)
            elif isinstance(target, DeviceTensor):
                driver.memcpy_htod_async(target.pointer, source, stream.usable)
            elif isinstance(source, DeviceTensor):
                driver.memcpy_dtoh_async(target, source.pointer, stream.usable)
            else:
                # pycuda has no call that enqueues a copy inside the host: wait, and copy here.
                stream.usable.synchronize()
                np.copyto(as_bytes(target), as_bytes(source))

    def close(self) -> None:
        if self._context is not None:
            super().close()
            self._context = None
