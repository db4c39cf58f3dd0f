"""Contexts, graphs, streams and memory of TensorRT: one context for each graph, and all closed in order.

The fakes know NVIDIA's rules (``fake_cuda``, ``fake_tensorrt``); the fixtures fail where one was broken.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRt
from fake_tensorrt_engine import Make, bundle, driver, library, make, stage, with_transforms
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines import engine_class
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import EngineError
from mrsep_deploy.runtime.schedule import MODES, Mode
from mrsep_deploy.runtime.scheduler import SLOTS, Scheduler

__all__ = ["bundle", "driver", "library", "make", "stage"]

modes = pytest.mark.parametrize("mode", MODES)


def mixes(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((count, 1, 2, 64)).astype(np.float32)


@modes
def test_segments_under_way_at_once_give_their_own_stems(make: Make, bundle: Bundle, mode: Mode) -> None:
    """Both slots' graphs, in turns: stems are those of the engine on the CPU, whichever slot they were in."""
    given = mixes(6)
    with closing(Scheduler(bundle, engine_class("ort")(EngineOptions()))) as reference:
        expected = [reference.run(mix).copy() for mix in given]
    with closing(Scheduler(with_transforms(bundle), make(), mode)) as scheduler:
        tickets = [scheduler.submit(mix) for mix in given[:SLOTS]]
        for number, stems in enumerate(expected):
            np.testing.assert_allclose(scheduler.result(tickets[number]), stems, atol=1e-5)
            if len(tickets) < len(given):
                tickets.append(scheduler.submit(given[len(tickets)]))


@pytest.mark.parametrize(("mode", "contexts"), [("sequential", 1), ("concurrent", 1), ("graph", SLOTS)])
def test_every_graph_has_contexts_of_its_own(
    make: Make, library: FakeTensorRt, bundle: Bundle, mode: Mode, contexts: int
) -> None:
    """They share the engine, whose weights are loaded once, and the scratch memory, which is there once."""
    complete = with_transforms(bundle)
    with closing(Scheduler(complete, make(), mode)) as scheduler:
        for mix in mixes(2):
            scheduler.run(mix)
    stages = len(complete.manifest.stages)
    assert len(library.of("load")) == stages
    assert len(library.of("context")) == contexts * stages
    places = {(name, pointer) for name, pointer, _ in library.of("memory")}
    assert len(places) == stages


@modes
def test_closing_the_engine_first_closes_what_runs_on_it(
    make: Make, driver: FakeDriver, bundle: Bundle, mode: Mode
) -> None:
    engine = make()
    scheduler = Scheduler(with_transforms(bundle), engine, mode)
    scheduler.run(mixes(1)[0])
    engine.close()
    assert driver.violations == []
    scheduler.close()
    assert driver.alive().keys() <= {"Pinned"}


@modes
def test_a_context_that_cannot_be_had_leaves_nothing_open(
    make: Make, library: FakeTensorRt, driver: FakeDriver, bundle: Bundle, mode: Mode
) -> None:
    """The error is still held, and with it all that was on the way to it."""
    library.fails.add("fourth context")
    with pytest.raises(EngineError, match="makes no execution context for stage") as caught:
        Scheduler(with_transforms(bundle), make(), mode)
    assert caught.value.__traceback__ is not None
    assert driver.alive() == {}
