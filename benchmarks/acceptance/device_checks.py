"""The device contract on a real GPU, in short: streams, events, copies, pinned memory, captured graphs.

Work that takes a while is a chain of matrix products that torch enqueues on the device's own stream.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from acceptance.rows import Unavailable, Values
from mrsep_deploy.devices.cuda import CudaDevice
from mrsep_deploy.devices.interface import DeviceTensor, Memory, Stream
from mrsep_deploy.errors import EngineError

Check = Callable[[CudaDevice], Values]

SHAPE = (1 << 22,)
BUSY = 4096
BUSY_PRODUCTS = 40


class Bench:
    """Busy work, its tensors allocated once so that nothing allocates while streams are watched."""

    def __init__(self) -> None:
        self.a = torch.randn(BUSY, BUSY, device="cuda")
        self.outs = [torch.empty_like(self.a) for _ in range(2)]
        torch.cuda.synchronize()

    def keep_busy(self, stream: Stream, products: int = BUSY_PRODUCTS, out: int = 0) -> None:
        """Enqueue work of tens of milliseconds."""

        def work() -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):  # type: ignore[no-untyped-call]
                for _ in range(products):
                    torch.mm(self.a, self.a, out=self.outs[out])

        stream.enqueue(work)


def require(holds: bool, otherwise: str) -> None:
    """Raise unless it holds."""
    if not holds:
        raise AssertionError(otherwise)


def _tensor(memory: Memory, offset: int = 0) -> DeviceTensor:
    tensor = memory.tensor(offset, SHAPE, "float32")
    assert isinstance(tensor, DeviceTensor)
    return tensor


def check_copies(device: CudaDevice) -> Values:
    """Pinned and ordinary arrays go there and back, through two places on the device."""
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    stream, memory = device.stream("copies"), device.allocate(2 * values.nbytes)
    pinned, back, ordinary = device.pinned(SHAPE, "float32"), device.pinned(SHAPE, "float32"), values.copy()
    require(not pinned.any(), "a pinned array is not zeroed")
    pinned[:] = values
    first, second = _tensor(memory), _tensor(memory, values.nbytes)
    device.copy(first, pinned, stream)
    device.copy(second, first, stream)
    device.copy(back, second, stream)
    stream.synchronize()
    require(np.array_equal(back, values), "pinned -> device -> device -> pinned changed the values")
    device.copy(ordinary, second, stream)
    stream.synchronize()
    require(np.array_equal(ordinary, values), "device -> ordinary array changed the values")
    return {"bytes": values.nbytes}


def check_streams(device: CudaDevice) -> Values:
    """Enqueueing returns at once; events hold a stream back; timed events take the time."""
    bench = Bench()
    one, two = device.stream("one"), device.stream("two")
    memory = device.allocate(4 * SHAPE[0])
    source, target = device.pinned(SHAPE, "float32"), device.pinned(SHAPE, "float32")
    before, after, ready = device.event(timed=True), device.event(timed=True), device.event()
    source[:] = 1
    bench.keep_busy(one, 2)
    one.synchronize()
    began = time.perf_counter()
    one.record(before)
    bench.keep_busy(one)
    device.copy(_tensor(memory), source, one)
    one.record(after)
    one.record(ready)
    two.wait(ready)
    device.copy(target, _tensor(memory), two)
    enqueued = time.perf_counter() - began
    two.synchronize()
    waited = time.perf_counter() - began
    busy = after.seconds_since(before)
    require(bool((target == 1).all()), "a stream did not wait for another's event")
    require(enqueued < waited / 2, f"enqueueing took {enqueued:.4f} of {waited:.4f} s")
    require(0 < busy <= 1.2 * waited, f"timed events say {busy:.4f} s, the host waited {waited:.4f} s")
    return {"enqueue_ms": 1e3 * enqueued, "host_ms": 1e3 * waited, "event_ms": 1e3 * busy}


def check_side_by_side(device: CudaDevice) -> Values:
    """A long copy and products on another stream overlap."""
    bench, size = Bench(), 1 << 28
    one, two, memory = device.stream("products"), device.stream("copy"), device.allocate(size)
    source = device.pinned((size,), "uint8")
    tensor = memory.tensor(0, (size,), "uint8")

    def seconds(products: bool, copy: bool) -> float:
        device.synchronize()
        began = time.perf_counter()
        if products:
            bench.keep_busy(one)
        if copy:
            device.copy(tensor, source, two)
        device.synchronize()
        return time.perf_counter() - began

    seconds(True, True)
    products, copies, both = seconds(True, False), seconds(False, True), seconds(True, True)
    limit = 0.85 * (products + copies) if min(products, copies) > 0.3 * max(products, copies) else None
    require(limit is None or both < limit, f"alone {products:.4f} and {copies:.4f} s, together {both:.4f} s")
    return {"products_ms": 1e3 * products, "copy_ms": 1e3 * copies, "both_ms": 1e3 * both}


def check_memory(device: CudaDevice) -> Values:
    """Memory is counted and bounded, more than there is fails as this package's error."""
    before = device.memory_used()
    memory = device.allocate(1 << 20)
    require(device.memory_used() - before == 1 << 20, "memory is not counted")
    require(_tensor_fails(memory), "a tensor may leave its block")
    pointer = memory.tensor(0, (1,), "uint8")
    require(isinstance(pointer, DeviceTensor) and pointer.pointer % 256 == 0, "a block is not aligned to 256")
    memory.close()
    memory.close()
    require(device.memory_used() == before, "closing a block does not give it back")
    try:
        device.allocate(2 * device.properties.total_bytes)
    except EngineError:
        return {"total_bytes": device.properties.total_bytes, "free_bytes": device.free_bytes()}
    raise AssertionError("twice the GPU's memory could be allocated")


def _tensor_fails(memory: Memory) -> bool:
    try:
        memory.tensor(1, (memory.size,), "uint8")
    except EngineError:
        return True
    return False


def check_pinned_lifetime(device: CudaDevice) -> Values:
    """A view keeps a pinned array's memory after the array itself has gone."""
    view = device.pinned(SHAPE, "float32")[16:]
    gc.collect()
    view[:] = 3
    require(float(view.sum()) == 3.0 * (SHAPE[0] - 16), "a pinned array's memory went before its view")
    return {}


def check_graph(device: CudaDevice) -> Values:
    """A fork and a join in one capture; launches see new inputs, and streams outside wait for them."""
    if not device.captures:
        raise Unavailable("this implementation cannot capture graphs", "Use cuda-python.")
    main, side = device.stream("main"), device.stream("side")
    size = 4 * SHAPE[0]
    memory = device.allocate(3 * size)
    source, left, right = (_tensor(memory, index * size) for index in range(3))
    given, got = device.pinned(SHAPE, "float32"), [device.pinned(SHAPE, "float32") for _ in range(2)]
    fork, join = device.event(), device.event()
    before, after = device.event(timed=True), device.event(timed=True)

    def work() -> None:
        main.record(before)
        device.copy(source, given, main)
        main.record(fork)
        side.wait(fork)
        device.copy(right, source, side)
        device.copy(got[1], right, side)
        side.record(join)
        device.copy(left, source, main)
        device.copy(got[0], left, main)
        main.wait(join)
        main.record(after)

    work()
    main.synchronize()
    graph = device.capture(main, work)
    for value in (1.0, 2.0, 3.0):
        given[:] = value
        graph.launch(main)
        main.synchronize()
        require(all(bool((each == value).all()) for each in got), f"launch {value:.0f} gave something else")
    seconds = after.seconds_since(before)
    require(seconds > 0, "timed events inside of a graph took no time")
    graph.close()
    graph.close()
    return {"launch_ms": 1e3 * seconds}


CHECKS: Mapping[str, Check] = {
    "copies": check_copies,
    "streams and events": check_streams,
    "side by side": check_side_by_side,
    "memory": check_memory,
    "pinned lifetime": check_pinned_lifetime,
    "graph with fork and join": check_graph,
}
