"""A CUDA driver in plain Python that really runs asynchronously, and refuses what the real one refuses.

A stream is a thread with a queue, memory is host bytes behind invented addresses (so that nothing but a
kernel or a copy can touch it), an event means its most recent record at the time of the wait. Capturing
records a graph of operations; a launch runs them in a random order that the graph allows. What breaks a
rule fails with CUDA's own error, and what CUDA or a library leaves undefined is noted in ``violations``:

    memory is freed while work under way uses it, or used after it was freed
        https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html
    a kernel is launched on a stream of another device than the thread's current one
        https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#stream-and-event-behavior
    an execution context runs on another device than it was made on
        https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/troubleshooting.html (FAQs, several GPUs)
    a stream is destroyed before a graph that was captured on it, which CUDA allows and this package does not
    what a library holds (``Holder``) breaks a rule of TensorRT's, which ``fake_tensorrt`` lists

A kernel is a Python function: ``driver.launch(stream.handle, function, touched)``. The faces of the driver,
``cuda.bindings.runtime`` and ``pycuda.driver``, are in ``fake_cuda_modules``.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIMEOUT = 30.0
DEVICE_ADDRESSES = 0x7F00_0000_0000_0000  # no host address is as high
GAP = 4096


class CudaFault(Exception):
    """A call failed; ``code`` is the runtime API's name of the error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Mark:
    """One record of an event."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.time = 0.0

    def reach(self) -> None:
        self.time = time.perf_counter()
        self.reached.set()


class Block:
    def __init__(self, pointer: int, size: int) -> None:
        # Fresh device memory holds anything; as floats these bytes are not a number.
        self.pointer, self.data = pointer, np.full(size, 0xFF, np.uint8)
        self.alive, self.in_use = True, 0


class Node:
    """One operation: what runs, the blocks it touches, and inside a capture what it comes after."""

    def __init__(self, run: Callable[[], None], blocks: Iterable[Block] = ()) -> None:
        self.run, self.blocks = run, tuple(blocks)
        self.after: frozenset[Node] = frozenset()
        self.external_event: Event | None = None
        self.holder: Holder | None = None
        self.scratch = range(0)


class Holder:
    """What a library holds on a device, as an execution context does.

    Attributes:
        device: that it was made on.
        scratch: the addresses it was given to work in.
        ran: it has run outside of a capture.
        captured: the capture that has its kernels.
    """

    def __init__(self, device: int) -> None:
        self.device, self.scratch = device, range(0)
        self.ran = False
        self.captured: Capture | None = None


class Capture:
    def __init__(self, origin: Stream, mode: str) -> None:
        self.origin, self.mode, self.thread = origin, mode, threading.get_ident()
        self.nodes: list[Node] = []
        self.frontiers: dict[Stream, frozenset[Node]] = {origin: frozenset()}
        self.active, self.invalid = True, False


class Event:
    def __init__(self, timed: bool) -> None:
        self.timed = timed
        self.mark: Mark | None = None
        self.captured: tuple[Capture, frozenset[Node]] | None = None


class Stream:
    def __init__(self, driver: FakeDriver) -> None:
        self.driver, self.capture = driver, None  # type: FakeDriver, Capture | None
        self.device = driver.current
        self.queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="fake cuda stream", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (item := self.queue.get()) is not None:
            item()


class Graph:
    def __init__(self, nodes: list[Node], streams: Iterable[Stream]) -> None:
        self.nodes, self.streams = nodes, frozenset(streams)


class FakeDriver:
    """The driver of a machine with ``devices`` equal GPUs of ``total`` bytes each.

    Attributes:
        calls: how often each call was made.
        violations: undefined behaviour that was met; a good program leaves it empty.
        lost: the error of a kernel that failed; every call returns it from then on.
        pageable_copies: copies that had to wait because their host side was not pinned.
    """

    def __init__(self, devices: int = 1, total: int = 1 << 26, seed: int = 0) -> None:
        self.devices, self.total, self.random = devices, total, random.Random(seed)
        self.driver_version = self.runtime_version = 13000
        self.calls: dict[str, int] = {}
        self.violations: list[str] = []
        self.lost: str | None = None
        self.pageable_copies = 0
        self._faults: dict[str, list[str]] = {}
        self._handles = itertools.count(0x1000, 0x10)
        self._addresses = DEVICE_ADDRESSES
        self._objects: dict[int, Stream | Event | Graph | NDArray[Any]] = {}
        self._executables: dict[int, Graph] = {}
        self._blocks: list[Block] = []
        self._captures: dict[int, Capture] = {}
        self._holders: list[Holder] = []
        self._scratch: list[range] = []
        self._thread = threading.local()
        self._lock = threading.RLock()

    @property
    def current(self) -> int:
        """The calling thread's device."""
        return getattr(self._thread, "device", 0)

    @current.setter
    def current(self, device: int) -> None:
        self._thread.device = device

    # --- for tests

    def inject(self, call: str, code: str) -> None:
        """Let the next call of that name fail."""
        self._faults.setdefault(call, []).append(code)

    def alive(self) -> dict[str, int]:
        """What has been made and not given back, by kind; empty if nothing leaks."""
        found: dict[str, int] = {}
        for each in self._objects.values():
            kind = "Pinned" if isinstance(each, np.ndarray) else type(each).__name__
            found[kind] = found.get(kind, 0) + 1
        found["Executable"], found["Block"] = len(self._executables), sum(b.alive for b in self._blocks)
        return {kind: count for kind, count in found.items() if count}

    def array(self, tensor: Any) -> NDArray[Any]:
        """What a kernel sees of a tensor (``pointer``, ``shape``, ``dtype``)."""
        size = int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
        block = self._block(tensor.pointer, size)
        start = tensor.pointer - block.pointer
        return block.data[start : start + size].view(tensor.dtype).reshape(tensor.shape)

    def launch(
        self,
        stream: int,
        kernel: Callable[[], None],
        touched: Iterable[Any] = (),
        holder: Holder | None = None,
    ) -> None:
        """Enqueue a kernel, as a library does on the stream it was given."""
        self.enter("cudaLaunchKernel")
        found = self._stream(stream)
        if found.device != self.current:
            raise CudaFault("cudaErrorInvalidResourceHandle")
        blocks = [self._block(tensor.pointer, 1) for tensor in touched]
        node = Node(kernel, blocks)
        if holder is not None:
            self._check_holder(holder, found)
            node.holder, node.scratch = holder, holder.scratch
        self._enqueue(found, node)

    # --- what libraries hold

    def held_by(self, owner: Any) -> Holder:
        """What a library's object holds until it is gone."""
        holder = Holder(self.current)
        self._holders.append(holder)
        weakref.finalize(owner, self._gone, holder).atexit = False
        return holder

    def _gone(self, holder: Holder) -> None:
        self._holders.remove(holder)
        if any(node.holder is holder for graph in self._executables.values() for node in graph.nodes):
            self.violations.append("an execution context went before the graph that was captured from it")

    def _check_holder(self, holder: Holder, stream: Stream) -> None:
        capture = stream.capture
        if stream.device != holder.device:
            self.violations.append(f"an execution context of GPU {holder.device} ran on GPU {stream.device}")
        if capture is None:
            holder.ran = True
            return
        if not holder.ran:
            self.violations.append("an execution context was captured before it had run")
        if holder.captured not in (None, capture):
            self.violations.append("two graphs were captured from one execution context")
        holder.captured = capture

    def _check_scratch(self, nodes: list[Node]) -> None:
        """Kernels of a graph that share scratch memory have an order."""
        for number, one in enumerate(nodes):
            for other in nodes[:number]:
                if _overlap(one.scratch, other.scratch) and other not in _closure([one]):
                    self.violations.append("execution contexts that may run at once share scratch memory")

    def end(self) -> None:
        """The end of the process: streams of a lost context can be destroyed by nothing else."""
        for each in self._objects.values():
            if isinstance(each, Stream):
                each.queue.put(None)
                each.thread.join(TIMEOUT)

    # --- entering a call

    def enter(self, call: str, unsafe: bool = False) -> None:
        """Every call begins here: count, faults to order, the lost context, rules of captures."""
        with self._lock:
            self.calls[call] = self.calls.get(call, 0) + 1
            if self._faults.get(call):
                raise CudaFault(self._faults[call].pop(0))
            if self.lost is not None:
                raise CudaFault(self.lost)
            capture = self._captures.get(threading.get_ident())
            if unsafe and capture is not None and capture.mode != "Relaxed":
                capture.invalid = True
                raise CudaFault("cudaErrorStreamCaptureUnsupported")

    def _new(self, made: Any) -> int:
        with self._lock:
            handle = next(self._handles)
            self._objects[handle] = made
            return handle

    def _object(self, handle: int, kind: type) -> Any:
        found = self._objects.get(int(handle))
        if not isinstance(found, kind):
            raise CudaFault("cudaErrorInvalidResourceHandle")
        return found

    def _stream(self, handle: int) -> Stream:
        found: Stream = self._object(handle, Stream)
        return found

    # --- streams

    def stream_create(self) -> int:
        return self._new(Stream(self))

    def stream_destroy(self, handle: int) -> None:
        stream = self._stream(handle)
        if any(stream in graph.streams for graph in self._executables.values()):
            self.violations.append("a stream went before the graph that was captured on it")
        if stream.capture is not None:
            self.violations.append("a capturing stream was destroyed")
        del self._objects[int(handle)]
        stream.queue.put(None)
        stream.thread.join(TIMEOUT)

    def stream_synchronize(self, handle: int) -> None:
        stream = self._stream(handle)
        if stream.capture is not None:
            stream.capture.invalid = True
            raise CudaFault("cudaErrorStreamCaptureUnsupported")
        mark = Mark()
        stream.queue.put(mark.reach)
        self._await(mark)

    def _await(self, mark: Mark) -> None:
        if not mark.reached.wait(TIMEOUT):
            self.violations.append("deadlock")
        if self.lost is not None:
            raise CudaFault(self.lost)

    def _enqueue(self, stream: Stream, node: Node) -> None:
        if stream.capture is not None:
            self._add_node(stream, stream.capture, node)
            return
        self._hold(node)
        stream.queue.put(lambda: self._run(node))

    def _hold(self, node: Node) -> None:
        with self._lock:
            for block in node.blocks:
                block.in_use += 1

    def _run(self, node: Node) -> None:
        with self._lock:
            if any(_overlap(node.scratch, busy) for busy in self._scratch):
                self.violations.append("execution contexts that run at once share scratch memory")
            self._scratch.append(node.scratch)
        try:
            if self.lost is None:
                node.run()
        except BaseException as error:
            self.lost = "cudaErrorLaunchFailure"
            if isinstance(error, CudaFault):
                self.violations.append(f"a kernel met {error.code}")
        finally:
            with self._lock:
                self._scratch.remove(node.scratch)
                for block in node.blocks:
                    block.in_use -= 1

    # --- events

    def event_create(self, timed: bool) -> int:
        return self._new(Event(timed))

    def event_destroy(self, handle: int) -> None:
        self._object(handle, Event)
        del self._objects[int(handle)]

    def event_record(self, handle: int, stream_handle: int, external: bool = False) -> None:
        event, stream = self._object(handle, Event), self._stream(stream_handle)
        if stream.capture is None:
            if external:
                raise CudaFault("cudaErrorInvalidValue")
            event.mark, event.captured = mark, _ = Mark(), None
            stream.queue.put(mark.reach)
            return
        if external:
            node = Node(lambda: event.mark.reach())
            node.external_event, event.captured = event, None
            self._add_node(stream, stream.capture, node)
        else:
            self._check_capture(stream.capture)
            event.mark, event.captured = None, (stream.capture, stream.capture.frontiers[stream])

    def event_wait(self, stream_handle: int, handle: int) -> None:
        event, stream = self._object(handle, Event), self._stream(stream_handle)
        if event.captured is not None:
            capture, nodes = event.captured
            if not capture.active:
                raise CudaFault("cudaErrorCapturedEvent")
            if stream.capture not in (None, capture):
                capture.invalid = True
                raise CudaFault("cudaErrorStreamCaptureMerge")
            self._check_capture(capture)
            stream.capture = capture
            capture.frontiers[stream] = capture.frontiers.get(stream, frozenset()) | nodes
        elif stream.capture is not None:
            stream.capture.invalid = True
            raise CudaFault("cudaErrorStreamCaptureIsolation")
        elif event.mark is not None:
            mark: Mark = event.mark
            stream.queue.put(lambda: self._hold_back(mark))

    def _hold_back(self, mark: Mark) -> None:
        if not mark.reached.wait(TIMEOUT):
            self.violations.append("deadlock")

    def event_synchronize(self, handle: int) -> None:
        event = self._object(handle, Event)
        if event.captured is not None:
            raise CudaFault("cudaErrorCapturedEvent")
        if event.mark is not None:
            self._await(event.mark)

    def event_elapsed(self, start: int, end: int) -> float:
        first, last = self._object(start, Event), self._object(end, Event)
        for event in (first, last):
            if not event.timed or event.mark is None:
                raise CudaFault("cudaErrorInvalidResourceHandle")
            if not event.mark.reached.is_set():
                raise CudaFault("cudaErrorNotReady")
        return float(last.mark.time - first.mark.time) * 1e3

    # --- captures and graphs

    def capture_begin(self, handle: int, mode: str) -> None:
        stream = self._stream(handle)
        if stream.capture is not None:
            raise CudaFault("cudaErrorIllegalState")
        stream.capture = self._captures[threading.get_ident()] = Capture(stream, mode)

    def is_capturing(self, handle: int) -> bool:
        return self._stream(handle).capture is not None

    def _check_capture(self, capture: Capture) -> None:
        if capture.invalid:
            raise CudaFault("cudaErrorStreamCaptureInvalidated")

    def _add_node(self, stream: Stream, capture: Capture, node: Node) -> None:
        self._check_capture(capture)
        node.after = capture.frontiers[stream]
        capture.nodes.append(node)
        capture.frontiers[stream] = frozenset([node])

    def capture_end(self, handle: int) -> int:
        stream = self._stream(handle)
        capture = stream.capture
        if capture is None:
            raise CudaFault("cudaErrorIllegalState")
        if capture.origin is not stream:
            raise CudaFault("cudaErrorStreamCaptureUnmatched")
        if capture.thread != threading.get_ident() and capture.mode != "Relaxed":
            raise CudaFault("cudaErrorStreamCaptureWrongThread")
        capture.active = False
        del self._captures[capture.thread]
        for each in capture.frontiers:
            each.capture = None
        self._check_capture(capture)
        joined = _closure(capture.frontiers[stream])
        if any(not frontier <= joined for frontier in capture.frontiers.values()):
            raise CudaFault("cudaErrorStreamCaptureUnjoined")
        self._check_scratch(capture.nodes)
        return self._new(Graph(capture.nodes, capture.frontiers))

    def graph_instantiate(self, handle: int) -> int:
        graph = self._object(handle, Graph)
        executable = next(self._handles)
        self._executables[executable] = Graph(list(graph.nodes), graph.streams)
        return executable

    def graph_destroy(self, handle: int) -> None:
        self._object(handle, Graph)
        del self._objects[int(handle)]

    def executable(self, handle: int) -> Graph:
        if int(handle) not in self._executables:
            raise CudaFault("cudaErrorInvalidResourceHandle")
        return self._executables[int(handle)]

    def executable_destroy(self, handle: int) -> None:
        self.executable(handle)
        del self._executables[int(handle)]

    def graph_launch(self, handle: int, stream_handle: int) -> None:
        graph, stream = self.executable(handle), self._stream(stream_handle)
        order = _random_order(graph.nodes, self.random)
        for node in order:
            self._hold(node)
            if node.external_event is not None:
                node.external_event.mark = Mark()
        # A timed event's mark is this launch's, whatever is launched before this one runs.
        marks = {node: node.external_event.mark for node in order if node.external_event is not None}

        def run() -> None:
            for node in order:
                mark = marks.get(node)
                self._run(Node(mark.reach) if mark is not None else node)

        stream.queue.put(run)

    # --- memory

    def allocate(self, size: int) -> int:
        with self._lock:
            used = sum(block.data.size for block in self._blocks if block.alive)
            if used + size > self.total:
                raise CudaFault("cudaErrorMemoryAllocation")
            block = Block(self._addresses, size)
            self._addresses += -(-size // GAP) * GAP + GAP
            self._blocks.append(block)
            return block.pointer

    def free(self, pointer: int) -> None:
        block = self._block(pointer, 0)
        if block.pointer != pointer:
            raise CudaFault("cudaErrorInvalidValue")
        if block.in_use:
            self.violations.append("memory was freed while work under way uses it")
        addresses = range(pointer, pointer + block.data.size)
        if any(_overlap(holder.scratch, addresses) for holder in self._holders):
            self.violations.append("memory was freed while an execution context points into it")
        block.alive, block.data = False, np.empty(0, np.uint8)

    def memory_info(self) -> tuple[int, int]:
        used = sum(block.data.size for block in self._blocks if block.alive)
        return self.total - used, self.total

    def host_allocate(self, size: int) -> int:
        array = np.full(size, 0xFF, np.uint8)
        pointer = int(array.ctypes.data)
        self._objects[pointer] = array
        return pointer

    def host_free(self, pointer: int) -> None:
        self._object(pointer, np.ndarray)
        del self._objects[int(pointer)]

    def _block(self, pointer: int, size: int) -> Block:
        at = bisect.bisect_right(self._blocks, pointer, key=lambda block: block.pointer) - 1
        if at < 0:
            raise CudaFault("cudaErrorInvalidValue")
        block = self._blocks[at]
        if not block.alive:
            self.violations.append("memory was used after it was freed")
            raise CudaFault("cudaErrorIllegalAddress")
        if pointer + size > block.pointer + block.data.size:
            raise CudaFault("cudaErrorInvalidValue")
        return block

    def _is_pinned(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + each.size
            for start, each in list(self._objects.items())
            if isinstance(each, np.ndarray)
        )

    def copy(self, target: int, source: int, size: int, kind: str, stream_handle: int) -> None:
        """``kind`` is ``HostToDevice`` and so on, and has to be true."""
        stream = self._stream(stream_handle)
        from_, to = kind.split("To")
        views, blocks, pinned = [], [], True
        for place, address in ((to, target), (from_, source)):
            if (address >= DEVICE_ADDRESSES) != (place == "Device"):
                raise CudaFault("cudaErrorInvalidValue")
            if place == "Device":
                block = self._block(address, size)
                blocks.append(block)
                views.append(block.data[address - block.pointer :][:size])
            else:
                pinned = pinned and self._is_pinned(address, size)
                views.append(np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8))
        node = Node(lambda: np.copyto(views[0], views[1]), blocks)
        if pinned:
            self._enqueue(stream, node)
        elif stream.capture is not None:
            stream.capture.invalid = True
            raise CudaFault("cudaErrorStreamCaptureUnsupported")
        else:
            # Memory that may be swapped out is staged: the call returns when the caller may change it.
            self.pageable_copies += 1
            self._enqueue(stream, node)
            self.stream_synchronize(stream_handle)

    def synchronize(self) -> None:
        for handle, each in list(self._objects.items()):
            if isinstance(each, Stream):
                self.stream_synchronize(handle)


def _overlap(one: range, other: range) -> bool:
    return bool(one) and bool(other) and one.start < other.stop and other.start < one.stop


def _closure(nodes: Iterable[Node]) -> set[Node]:
    """The nodes and all they come after."""
    found: set[Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(node.after)
    return found


def _random_order(nodes: list[Node], source: random.Random) -> list[Node]:
    """Any order in which every node comes after what it must."""
    left, done, order = list(nodes), set(), []  # type: list[Node], set[Node], list[Node]
    while left:
        ready = [node for node in left if node.after <= done]
        chosen = source.choice(ready)
        left.remove(chosen)
        done.add(chosen)
        order.append(chosen)
    return order
