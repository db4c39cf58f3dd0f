"""What every device promises: the CPU, and CUDA through either package over a driver that enforces its rules."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_cuda_modules import install
from numpy.typing import NDArray

from mrsep_deploy.devices import CUDA_PYTHON, PYCUDA, open_cuda
from mrsep_deploy.devices.cpu import CpuDevice
from mrsep_deploy.devices.interface import Device, Memory, Stream, TensorView
from mrsep_deploy.errors import EngineError

pytestmark = pytest.mark.timeout(60)


@dataclass
class Bench:
    """A device and how to run a function as work of its streams."""

    device: Device
    driver: FakeDriver | None

    def run(self, stream: Stream, work: Callable[[], None], *touched: TensorView) -> None:
        """Enqueue ``work`` as a stage would: a kernel on CUDA, the function itself on a CPU."""
        driver = self.driver
        if driver is None:
            stream.enqueue(work)
        else:
            stream.enqueue(lambda: driver.launch(stream.handle, work, touched))

    def array(self, tensor: TensorView) -> NDArray[Any]:
        """What work sees of a tensor."""
        return tensor if isinstance(tensor, np.ndarray) else self.driver.array(tensor)  # type: ignore[union-attr]


def open_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if kind == "cpu":
        return Bench(CpuDevice(), None)
    driver = FakeDriver()
    install(monkeypatch, driver)
    return Bench(open_cuda(0, kind), driver)


@pytest.fixture(params=["cpu", CUDA_PYTHON, PYCUDA])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Whatever a test leaves open, closing the device gives back."""
    before = threading.active_count()
    opened = open_device(request.param, monkeypatch)
    yield opened
    opened.device.close()
    if opened.driver is not None and opened.driver.alive():
        gc.collect()
    assert opened.device.memory_used() == 0
    assert threading.active_count() == before
    if opened.driver is not None:
        assert opened.driver.alive() == {}
        assert opened.driver.violations == []
        assert sys.modules["pycuda.driver"].context_depth() == 0


def numbers(memory: Memory, offset: int = 0, count: int = 8) -> TensorView:
    return memory.tensor(offset, (count,), "float32")


# --- order -------------------------------------------------------------------------------------------------


def test_a_stream_keeps_its_order(bench: Bench) -> None:
    stream, seen = bench.device.stream("one"), []
    for number in range(50):
        bench.run(stream, lambda number=number: seen.append(number))
    stream.synchronize()
    assert seen == list(range(50))


def test_enqueueing_does_not_wait(bench: Bench) -> None:
    stream, gate = bench.device.stream("one"), threading.Event()
    bench.run(stream, lambda: wait_for(gate))
    gate.set()
    stream.synchronize()


def wait_for(gate: threading.Event) -> None:
    assert gate.wait(20)


def test_streams_run_side_by_side(bench: Bench) -> None:
    """Each waits for the other: one after the other, that would never end."""
    one, two = bench.device.stream("one"), bench.device.stream("two")
    first, second = threading.Event(), threading.Event()
    bench.run(one, lambda: (first.set(), wait_for(second))[0])
    bench.run(two, lambda: (second.set(), wait_for(first))[0])
    bench.device.synchronize()


def test_an_event_orders_streams(bench: Bench) -> None:
    one, two = bench.device.stream("one"), bench.device.stream("two")
    event, seen = bench.device.event(), []
    for number in range(10):
        bench.run(one, lambda number=number: (time.sleep(0.001), seen.append(("write", number)))[0])
        one.record(event)
        two.wait(event)
        bench.run(two, lambda number=number: seen.append(("read", number)))
    bench.device.synchronize()
    for number in range(10):
        assert seen.index(("write", number)) < seen.index(("read", number))


def test_a_wait_means_the_last_record_before_it(bench: Bench) -> None:
    """A later record, behind a closed gate, does not hold up who waited for the earlier one."""
    one, two = bench.device.stream("one"), bench.device.stream("two")
    event, gate, passed = bench.device.event(), threading.Event(), threading.Event()
    one.record(event)
    two.wait(event)
    bench.run(one, lambda: wait_for(gate))
    one.record(event)
    bench.run(two, passed.set)
    two.synchronize()
    assert passed.is_set()
    gate.set()
    event.synchronize()


def test_an_event_that_was_never_recorded_holds_nobody(bench: Bench) -> None:
    stream, event = bench.device.stream("one"), bench.device.event()
    stream.wait(event)
    stream.synchronize()
    event.synchronize()


def test_the_host_waits_for_an_event(bench: Bench) -> None:
    stream, event, seen = bench.device.stream("one"), bench.device.event(), []
    bench.run(stream, lambda: (time.sleep(0.01), seen.append(1))[0])
    stream.record(event)
    event.synchronize()
    assert seen == [1]


def test_timed_events(bench: Bench) -> None:
    stream = bench.device.stream("one")
    before, after = bench.device.event(timed=True), bench.device.event(timed=True)
    stream.record(before)
    bench.run(stream, lambda: time.sleep(0.02))
    stream.record(after)
    after.synchronize()
    assert 0.015 < after.seconds_since(before) < 5


# --- memory and copies -------------------------------------------------------------------------------------


def test_copies_there_and_back(bench: Bench) -> None:
    device, stream = bench.device, bench.device.stream("one")
    memory = device.allocate(1024)
    first, second = numbers(memory), numbers(memory, 256)
    given, found = device.pinned((8,), "float32"), device.pinned((8,), "float32")
    assert not given.any()
    given[:] = np.arange(8)
    device.copy(first, given, stream)
    device.copy(second, first, stream)
    device.copy(found, second, stream)
    stream.synchronize()
    np.testing.assert_array_equal(found, given)


def test_copies_of_ordinary_arrays(bench: Bench) -> None:
    device, stream = bench.device, bench.device.stream("one")
    tensor = numbers(device.allocate(256))
    given, found, again = np.arange(8, dtype=np.float32), np.zeros(8, np.float32), np.zeros(8, np.float32)
    device.copy(tensor, given, stream)
    device.copy(found, tensor, stream)
    device.copy(again, found, stream)
    stream.synchronize()
    np.testing.assert_array_equal(again, given)


def test_copies_keep_the_streams_order(bench: Bench) -> None:
    device, stream = bench.device, bench.device.stream("one")
    tensor = numbers(device.allocate(256))
    found = device.pinned((8,), "float32")
    bench.run(stream, lambda: (time.sleep(0.01), bench.array(tensor).fill(3))[0], tensor)
    device.copy(found, tensor, stream)
    stream.synchronize()
    np.testing.assert_array_equal(found, np.full(8, 3, np.float32))


def test_copies_that_do_not_fit(bench: Bench) -> None:
    device, stream = bench.device, bench.device.stream("one")
    tensor = numbers(device.allocate(256))
    with pytest.raises(EngineError, match="32 bytes"):
        device.copy(tensor, np.zeros(9, np.float32), stream)
    with pytest.raises(EngineError, match="contiguous"):
        device.copy(tensor, np.zeros(16, np.float32)[::2], stream)


def test_tensors_stay_in_their_block(bench: Bench) -> None:
    memory = bench.device.allocate(256)
    assert memory.tensor(128, (2, 4, 4), "float32").nbytes == 128
    with pytest.raises(EngineError, match="leaves its block"):
        memory.tensor(128, (33,), "float32")


def test_memory_is_counted(bench: Bench) -> None:
    device = bench.device
    blocks = [device.allocate(size) for size in (256, 1000)]
    assert device.memory_used() == 1256
    blocks[0].close()
    blocks[0].close()
    assert device.memory_used() == 1000


def test_an_empty_block(bench: Bench) -> None:
    assert bench.device.allocate(0).size == 0


def test_blocks_are_aligned(bench: Bench) -> None:
    for size in (1, 100, 4096):
        tensor = bench.device.allocate(size).tensor(0, (1,), "uint8")
        address = tensor.ctypes.data if isinstance(tensor, np.ndarray) else tensor.pointer
        assert address % 256 == 0


def test_pinned_arrays_outlive_the_device(bench: Bench) -> None:
    array = bench.device.pinned((3, 4), "float32")
    view = array[1:]
    bench.device.close()
    del array
    gc.collect()
    view[...] = 5
    assert view.sum() == 40


# --- errors ------------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


def fail() -> None:
    raise Broken("the stage broke")


def test_an_error_is_raised_once_and_the_stream_works_again(bench: Bench) -> None:
    """On a CPU where the host waits, on CUDA (where work only enqueues) at once."""
    stream, seen = bench.device.stream("one"), []

    def failing() -> None:
        stream.enqueue(fail)
        stream.synchronize()

    with pytest.raises(Broken):
        failing()
    bench.run(stream, lambda: seen.append(1))
    stream.synchronize()
    assert seen == [1]


def test_a_closed_stream_takes_no_work(bench: Bench) -> None:
    stream = bench.device.stream("one")
    stream.close()
    for use in (
        lambda: stream.enqueue(fail),
        stream.synchronize,
        lambda: stream.record(bench.device.event()),
    ):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_closing_is_idempotent(bench: Bench) -> None:
    device = bench.device
    made: list[Any] = [device.stream("one"), device.event(), device.event(timed=True), device.allocate(256)]
    for _ in range(2):
        for each in made:
            each.close()
    for _ in range(2):
        device.close()


def test_closing_the_device_closes_what_is_open(bench: Bench) -> None:
    """The fixture looks for what is left."""
    device = bench.device
    stream, tensor = device.stream("one"), numbers(device.allocate(512))
    bench.run(stream, lambda: (time.sleep(0.01), bench.array(tensor).fill(1))[0], tensor)
    stream.record(device.event())


# --- graphs ------------------------------------------------------------------------------------------------


def test_a_captured_fork_and_join(bench: Bench) -> None:
    device = bench.device
    main, side = device.stream("main"), device.stream("side")
    if not device.captures:
        with pytest.raises(EngineError, match="graph"):
            device.capture(main, lambda: None)
        return
    memory = device.allocate(1024)
    a, b, c = (numbers(memory, 256 * i) for i in range(3))
    given, found = device.pinned((8,), "float32"), device.pinned((8,), "float32")
    forked, joined = device.event(), device.event()
    before, after = device.event(timed=True), device.event(timed=True)

    def work() -> None:
        main.record(before)
        device.copy(a, given, main)
        main.record(forked)
        side.wait(forked)
        bench.run(side, lambda: (time.sleep(0.005), np.copyto(bench.array(b), bench.array(a) * 2))[0], a, b)
        side.record(joined)
        main.wait(joined)
        bench.run(main, lambda: np.copyto(bench.array(c), bench.array(a) + bench.array(b)), a, b, c)
        device.copy(found, c, main)
        main.record(after)

    graph = device.capture(main, work)
    main.synchronize()
    assert not found.any()  # capturing runs nothing
    for number in range(5):
        given[:] = number + 1
        graph.launch(main)
        main.synchronize()
        np.testing.assert_array_equal(found, np.full(8, 3 * (number + 1), np.float32))
        assert 0.004 < after.seconds_since(before) < 5
    graph.close()
    graph.close()
    with pytest.raises(EngineError, match="closed graph"):
        graph.launch(main)
