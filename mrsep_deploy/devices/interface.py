"""The small part of a device that scheduling needs: streams, events, buffers, copies, captured graphs.

Two kinds stand behind it. On CUDA a stream is the driver's: work is *enqueued* on it and runs later, in
order, beside other streams. On a CPU a stream is a worker thread with a queue, so the same words hold:
``stream.enqueue(f)`` returns at once, ``f`` runs after what was enqueued before it, events order streams
against each other, and ``synchronize`` waits and raises what went wrong.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

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


class Event(abc.ABC):
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

    @abc.abstractmethod
    def close(self) -> None:
        """Let the event go. Idempotent."""


class Stream(abc.ABC):
    """An ordered queue of work on one device."""

    @property
    @abc.abstractmethod
    def handle(self) -> int:
        """The driver's stream (``cudaStream_t``); 0 on a CPU."""

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

    @abc.abstractmethod
    def close(self) -> None:
        """Let the stream go; pending work is dropped or finished, never left behind. Idempotent."""


class Graph(abc.ABC):
    """A captured piece of work over several streams, launched as one."""

    @abc.abstractmethod
    def launch(self, stream: Stream) -> None:
        """Enqueue the whole of it on one stream."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let the graph go. Idempotent."""


class Memory(abc.ABC):
    """A block of memory on the device."""

    size: int

    @abc.abstractmethod
    def tensor(self, offset: int, shape: tuple[int, ...], dtype: str) -> TensorView:
        """A tensor ``offset`` bytes into the block."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free the block. Idempotent."""


Closable = Graph | Stream | Event | Memory
Made = TypeVar("Made", bound=Closable)

# Graphs and streams first: nothing may run any more when events and memory go.
_ORDER = (Graph, Stream, Event, Memory)


class OpenObjects:
    """What a device has made and nobody has closed yet: objects enter when they are made, and leave when closed."""

    def __init__(self) -> None:
        self._objects: dict[int, Closable] = {}

    def add(self, made: Made) -> Made:
        self._objects[id(made)] = made
        return made

    def remove(self, closed: Closable) -> None:
        self._objects.pop(id(closed), None)

    def streams(self) -> list[Stream]:
        return [each for each in list(self._objects.values()) if isinstance(each, Stream)]

    def memory_bytes(self) -> int:
        return sum(each.size for each in list(self._objects.values()) if isinstance(each, Memory))

    def close_all(self) -> None:
        for kind in _ORDER:
            for each in list(self._objects.values()):
                if isinstance(each, kind):
                    each.close()


class Device(abc.ABC):
    """One device. Everything made by it is closed by its user, or by ``close``."""

    kind: DeviceKind
    name: str

    def __init__(self) -> None:
        self._open = OpenObjects()

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

    @abc.abstractmethod
    def copy(self, target: TensorView, source: TensorView, stream: Stream) -> None:
        """Enqueue a copy: whole, contiguous tensors of equal size in bytes, host or device on either side.

        Both must live until the stream has passed the copy.
        """

    @property
    @abc.abstractmethod
    def captures(self) -> bool:
        """Whether work can be captured into a graph."""

    @abc.abstractmethod
    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Capture what ``work`` enqueues on ``stream`` and on streams forked from it and joined to it by events."""

    def synchronize(self) -> None:
        """Block the host until every stream of this object is empty; raises as a stream's does."""
        for stream in self._open.streams():
            stream.synchronize()

    def memory_used(self) -> int:
        """Bytes of device memory taken through this object and not yet given back."""
        return self._open.memory_bytes()

    def close(self) -> None:
        """Close what is still open, graphs and streams first. Idempotent."""
        self._open.close_all()
