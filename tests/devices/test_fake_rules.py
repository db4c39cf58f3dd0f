"""Of the fake driver: a program that breaks a rule of CUDA's or TensorRT's is found out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from fake_cuda import CudaFault, FakeDriver, Holder

pytestmark = pytest.mark.timeout(60)


class Context:
    """What a library makes of an engine: it holds something on the device as long as it lives."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver, self.holder = driver, driver.held_by(self)

    def run(self, stream: int, kernel: Callable[[], None] = lambda: None) -> None:
        self.driver.launch(stream, kernel, (), self.holder)

    def captured(self, stream: int) -> int:
        self.driver.capture_begin(stream, "ThreadLocal")
        self.run(stream)
        return self.driver.graph_instantiate(self.driver.capture_end(stream))


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    made = FakeDriver(devices=2)
    yield made
    made.end()


def test_a_good_program_breaks_none(driver: FakeDriver) -> None:
    stream, memory, context = driver.stream_create(), driver.allocate(512), Context(driver)
    context.holder.scratch = range(memory, memory + 512)
    context.run(stream)
    graph = context.captured(stream)
    driver.graph_launch(graph, stream)
    driver.stream_synchronize(stream)
    driver.executable_destroy(graph)
    del context
    driver.free(memory)
    driver.stream_destroy(stream)
    assert driver.violations == []


def test_memory_that_a_context_points_into(driver: FakeDriver) -> None:
    memory, context = driver.allocate(512), Context(driver)
    context.holder.scratch = range(memory + 256, memory + 512)
    driver.free(memory)
    assert driver.violations == ["memory was freed while an execution context points into it"]


def test_a_stream_before_its_graph(driver: FakeDriver) -> None:
    stream, context = driver.stream_create(), Context(driver)
    context.run(stream)
    context.captured(stream)
    driver.stream_destroy(stream)
    assert driver.violations == ["a stream went before the graph that was captured on it"]


def test_a_context_before_its_graph(driver: FakeDriver) -> None:
    stream, context = driver.stream_create(), Context(driver)
    context.run(stream)
    context.captured(stream)
    driver.stream_synchronize(stream)
    del context
    assert driver.violations == ["an execution context went before the graph that was captured from it"]


def test_two_graphs_of_one_context(driver: FakeDriver) -> None:
    stream, context = driver.stream_create(), Context(driver)
    context.run(stream)
    context.captured(stream)
    context.captured(stream)
    assert driver.violations == ["two graphs were captured from one execution context"]


def test_a_capture_before_the_first_run(driver: FakeDriver) -> None:
    Context(driver).captured(driver.stream_create())
    assert "an execution context was captured before it had run" in driver.violations


def test_scratch_memory_that_two_use_at_once(driver: FakeDriver) -> None:
    both, one, other = threading.Barrier(2, timeout=20), Context(driver), Context(driver)
    for context in (one, other):
        context.holder.scratch = range(256, 512)
        context.run(driver.stream_create(), lambda: (both.wait(), None)[1])
    driver.synchronize()
    assert driver.violations == ["execution contexts that run at once share scratch memory"]


def test_another_device(driver: FakeDriver) -> None:
    context = Context(driver)
    driver.current = 1
    stream = driver.stream_create()
    context.run(stream)
    assert driver.violations == ["an execution context of GPU 0 ran on GPU 1"]
    driver.current = 0
    with pytest.raises(CudaFault, match="InvalidResourceHandle"):
        driver.launch(stream, lambda: None)


def test_what_is_held_until_its_owner_goes(driver: FakeDriver) -> None:
    context = Context(driver)
    assert isinstance(context.holder, Holder)
    memory = driver.allocate(256)
    context.holder.scratch = range(memory, memory + 256)
    del context
    driver.free(memory)
    assert driver.violations == []
