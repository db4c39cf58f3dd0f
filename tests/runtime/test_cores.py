"""The budget of cores: never more than there are, and nobody is overtaken."""

from __future__ import annotations

import threading
import time

import pytest

from mrsep_deploy.runtime.runners import Cores


def test_no_more_than_there_are() -> None:
    cores, lock, held, most = Cores(3), threading.Lock(), 0, 0

    def stage(count: int) -> None:
        nonlocal held, most
        for _ in range(20):
            with cores.taken(count):
                with lock:
                    held += count
                    most = max(most, held)
                time.sleep(0.0002)
                with lock:
                    held -= count

    workers = [threading.Thread(target=stage, args=(count,)) for count in (1, 1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)
    assert 1 < most <= 3


def test_a_stage_that_needs_all_is_not_overtaken() -> None:
    """While small stages keep coming it is next, not last."""
    cores, order = Cores(2), []
    begun, release = threading.Event(), threading.Event()

    def small() -> None:
        with cores.taken(1):
            begun.set()
            release.wait(20)

    def named(name: str, count: int) -> threading.Thread:
        def stage() -> None:
            with cores.taken(count):
                order.append(name)

        worker = threading.Thread(target=stage)
        worker.start()
        while len(cores._queue) == waiting:
            time.sleep(0.0005)
        return worker

    first = threading.Thread(target=small)
    first.start()
    begun.wait(20)
    waiting = 0
    big = named("big", 2)
    waiting = 1
    late = named("late", 1)
    release.set()
    for worker in (first, big, late):
        worker.join(20)
    assert order == ["big", "late"]


def test_more_than_there_are_is_all() -> None:
    with Cores(2).taken(5):
        pass


def test_an_interrupted_wait_gives_up_its_place() -> None:
    """A stage that waits and is interrupted is not waited for by those behind it."""
    cores, begun, release, passed = Cores(2), threading.Event(), threading.Event(), threading.Event()

    def holding() -> None:
        with cores.taken(1):
            begun.set()
            release.wait(20)

    holder = threading.Thread(target=holding)
    holder.start()
    begun.wait(20)

    def interrupted(_predicate: object) -> bool:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt), cores.taken(2):
            raise AssertionError("there are not two cores")

    def small() -> None:
        with cores.taken(1):
            passed.set()

    behind = threading.Thread(target=small, daemon=True)
    behind.start()
    assert passed.wait(10)
    release.set()
    holder.join(20)
    behind.join(20)
