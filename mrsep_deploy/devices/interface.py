"""The small part of a device that scheduling needs (streams, events, buffers, copies, captured graphs), and runners.

Two kinds stand behind it. On CUDA a stream is the driver's: work is *enqueued* on it and runs later, in
order, beside other streams. On a CPU a stream is a worker thread with a queue, so the same words hold:
``stream.enqueue(f)`` returns at once, ``f`` runs after what was enqueued before it, events order streams
against each other, and ``synchronize`` waits and raises what went wrong.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.errors import EngineError

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in device memory: address, shape and NumPy element type. Owns nothing."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


TensorView = NDArray[Any] | DeviceTensor
"""What a runner reads and writes: an array on the CPU, an address on CUDA."""

Tensors = Mapping[str, TensorView]


class Closable(abc.ABC):
    """What a device makes: its user closes it, or else the device at its own end."""

    def __init__(self, device: Device) -> None:
        self._owner = device
        device.open_objects[self] = None

    def close(self) -> None:
        """Let it go. Idempotent. A stream's pending work is dropped or finished, never left behind."""
        if self in self._owner.open_objects:
            self._owner.open_objects.pop(self, None)
            self._release()

    @abc.abstractmethod
    def _release(self) -> None:
        """Give back what it holds; called once."""


class Event(Closable):
    """A point in a stream that other streams, or the host, can wait for. Reusable.

    A wait means the most recent record at the time of the call, and nothing if there is none; a record
    made later does not move it.
    """

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Block the host until the recorded point is reached."""

    @abc.abstractmethod
    def seconds_since(self, earlier: Event) -> float:
        """Seconds between the points of two timed events, both of them reached."""


class Stream(Closable):
    """An ordered queue of work on one device."""

    @property
    def handle(self) -> int:
        """The driver's stream (``cudaStream_t``); 0 on a CPU."""
        return 0

    @abc.abstractmethod
    def enqueue(self, work: Callable[[], None]) -> None:
        """Run ``work`` after everything enqueued before it. On CUDA ``work`` itself only enqueues kernels."""

    @abc.abstractmethod
    def record(self, event: Event) -> None:
        """Mark the point after everything enqueued so far."""

    @abc.abstractmethod
    def wait(self, event: Event) -> None:
        """Let everything enqueued from now on wait for ``event``'s most recent record."""

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Block the host until the queue is empty; raises the first error of its work."""


class Graph(Closable):
    """A captured piece of work over several streams, launched as one."""

    @abc.abstractmethod
    def launch(self, stream: Stream) -> None:
        """Enqueue the whole of it on one stream."""


class Memory(Closable):
    """A block of ``size`` bytes on the device."""

    size: int

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: str) -> TensorView:
        """A tensor ``offset`` bytes into the block."""
        found = DeviceTensor(offset, tuple(shape), np.dtype(dtype))
        if offset < 0 or offset + found.nbytes > self.size:
            raise EngineError(
                f"a tensor of {found.nbytes} bytes at {offset} leaves its block of {self.size} bytes"
            )
        return self._placed(found)

    @abc.abstractmethod
    def _placed(self, tensor: DeviceTensor) -> TensorView:
        """The tensor whose ``pointer`` counts from the beginning of the block."""


class Device(abc.ABC):
    """One device. Everything made by it is closed by its user, or by ``close``.

    Attributes:
        captures: whether work can be captured into a graph.
        open_objects: what was made and is not closed yet, in the order of making; a set in order.
    """

    kind: DeviceKind
    name: str
    captures: bool = False

    def __init__(self) -> None:
        self.open_objects: dict[Closable, None] = {}

    def current(self) -> contextlib.AbstractContextManager[object]:
        """While this lasts, the device on which libraries load and build what this thread asks them for."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def stream(self, name: str) -> Stream:
        """A new stream; ``name`` is for traces and thread names."""

    @abc.abstractmethod
    def event(self, timed: bool = False) -> Event:
        """A new event.

        Args:
            timed: for :meth:`Event.seconds_since`. Inside a capture a timed event takes the time of every
                launch, and orders nothing.
        """

    @abc.abstractmethod
    def allocate(self, size: int) -> Memory:
        """``size`` bytes of any content, aligned to at least 256.

        Raises:
            EngineError: there is not so much.
        """

    @abc.abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed host array that copies to and from the device can overlap with (page-locked on CUDA).

        Its memory lives as long as the array or a view of it does, the device's end included.
        """

    def copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        """Enqueue a copy: whole, contiguous tensors of equal size in bytes, host or device on either side.

        Both must live until the stream has passed the copy.

        Raises:
            EngineError: they differ in size, or an array is not contiguous.
        """
        if target.nbytes != source.nbytes:
            raise EngineError(f"a copy of {source.nbytes} bytes was asked for into {target.nbytes} bytes")
        for tensor in (target, source):
            if isinstance(tensor, np.ndarray) and not tensor.flags.c_contiguous:
                raise EngineError(f"a copy needs a contiguous array, found strides {tensor.strides}")
        self._copy(target, source, stream)

    @abc.abstractmethod
    def _copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        """Enqueue a copy between tensors that fit."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Capture what ``work`` enqueues on ``stream`` and on streams forked from it and joined to it by events."""
        raise EngineError(
            f"{self.name} cannot capture work into a graph here", "Choose --mode sequential or concurrent."
        )

    def synchronize(self) -> None:
        """Block the host until every stream of this object is empty; raises as a stream's does."""
        for each in list(self.open_objects):
            if isinstance(each, Stream):
                each.synchronize()

    def memory_used(self) -> int:
        """Bytes of device memory taken through this object and not yet given back."""
        return sum(each.size for each in list(self.open_objects) if isinstance(each, Memory))

    def close(self) -> None:
        """Close what is still open. Idempotent."""
        # Graphs before the runners that were captured, these before the streams they run on and the memory they
        # point into: nothing may run any more when events and memory go.
        for kind in (Graph, Runner, Stream, Event, Memory):
            for each in list(self.open_objects):
                if isinstance(each, kind):
                    each.close()


class Runner(abc.ABC):
    """One stage of a bundle, ready to run on the stream it was made for; engines and host transforms make them.

    Tensors are contiguous, of the shapes and element types the manifest declares: arrays on a CPU, addresses on
    CUDA. A runner allocates no results and keeps no reference to a tensor after it returns. Its work is in order
    with the rest of its stream. It is closed before the stream is, and before its workspace; where a library keeps
    something on the device it is ``Closable`` too, so that the device closes it in its turn if nobody has.
    """

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory to be given before the first run; 0 for none."""
        return 0

    def set_workspace(self, memory: TensorView) -> None:
        """Use this memory, ``uint8 [workspace_bytes]``, from the next run on; it must outlive the runner."""
        raise ValueError(f"{type(self).__name__} needs no workspace, found {memory.nbytes} bytes")

    def uncapturable(self) -> str:
        """Why its runs cannot be captured in a CUDA graph, empty where they can; to be asked after the first run."""
        return ""

    @abc.abstractmethod
    def __call__(self, tensors: Tensors) -> None:
        """Compute the stage's outputs from its inputs, all by name; tensors of other stages are left alone.

        On a CPU this returns when the outputs are there; on CUDA it has enqueued its work on the stream.

        Raises:
            EngineError: the stage failed; the message names it.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of sessions and memory. Idempotent."""


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A contiguous array's memory."""
    return array.reshape(-1).view(np.uint8)
