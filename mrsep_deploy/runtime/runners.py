"""Runners of all stages, and the threads they share out among them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import Runner, Stream
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.errors import EngineError, MrsepError, named_line
from mrsep_deploy.process.machine import release_heap
from mrsep_deploy.runtime.memory import place_workspaces
from mrsep_deploy.runtime.schedule import HEAD, TAIL, Schedule
from mrsep_deploy.transforms.host import host_runner


@dataclass(frozen=True)
class Prepared:
    """A runner and the CPU threads it may use."""

    runner: Runner
    threads: int


def prepare_runners(
    bundle: Bundle,
    engine: Engine,
    schedule: Schedule,
    lanes: Sequence[Mapping[str, Stream]],
    stack: contextlib.ExitStack,
    slots: int = 1,
) -> list[list[dict[str, Prepared]]]:
    """Prepare every stage of a schedule for each of several segments in parallel.

    Args:
        lanes: the streams of each segment, by the schedule's names.
        stack: closes the runners, then their scratch memory; it closes the streams later.
        slots: runners of a lane for each stage; what is captured in one CUDA graph must not be captured in another.

    Returns:
        For each lane and each of its slots the runners, by the names of their stages.

    Raises:
        EngineError: a stage cannot be prepared.
    """
    budget = engine.options.budget // len(lanes)
    side_by_side = len({step.stream for step in schedule.steps if step.part == "body" and not step.exclusive})
    share = max(1, budget // max(side_by_side, 1))
    engine.get_ready(bundle, [step.stage for step in schedule.steps if engine.takes(step.stage)])
    workspaces = stack.enter_context(contextlib.ExitStack())
    prepared: list[list[dict[str, Prepared]]] = [[{} for _ in range(slots)] for _ in lanes]
    places = [place for lane in prepared for place in lane]
    for step in schedule.steps:
        stage, threads = step.stage, budget if step.exclusive else share
        if step.stream in (HEAD, TAIL):  # of their own: they run beside bodies
            threads = 1
        streams = [lane[step.stream] for lane in lanes for _ in range(slots)]
        if engine.takes(stage):
            runners = engine.prepare_lanes(bundle, stage, threads, streams)
        else:
            runners = [host_runner(stage, bundle.manifest.branches, threads) for _ in streams]
        for found, runner in zip(places, runners, strict=True):
            stack.callback(runner.close)
            found[stage.name] = Prepared(runner, threads)
    for lane in prepared:
        by_name = [{name: each.runner for name, each in found.items()} for found in lane]
        place_workspaces(engine.device, schedule, by_name, workspaces)
    release_heap()  # before the buffers and the first run
    return prepared


class Cores:
    """A CPU's thread budget, shared by stages that run side by side.

    First come, first served: otherwise a stage that needs every core would wait as long as small ones of other
    segments keep coming. A stage that holds cores waits for nothing else, and none gets more than there are, so
    there is no deadlock.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Hold ``count`` cores, or all of them if there are fewer."""
        count = min(count, self._count)
        place = object()
        with self._changed:
            self._queue.append(place)
            try:
                self._changed.wait_for(lambda: self._queue[0] is place and self._free >= count)
                self._free -= count
            finally:  # an interrupted wait gives its place up, too
                self._queue.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()


@contextlib.contextmanager
def named(stage: Stage) -> Iterator[None]:
    """Raise errors that are not this package's own as one that names the stage."""
    try:
        yield
    except MrsepError:
        raise
    except Exception as error:
        raise EngineError(f"stage {stage.name} failed: {named_line(error)}") from error


def rest(stream: Stream) -> None:
    """Wait until a stream is empty; its error is forgotten, an interruption is raised."""
    with contextlib.suppress(Exception, SystemExit):  # raised by the results that it spoils
        stream.synchronize()
