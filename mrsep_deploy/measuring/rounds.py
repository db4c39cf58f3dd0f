"""Times contenders in interleaved rounds; every tool that times something uses this loop.

Each round runs every contender once, in an order drawn anew, so that a slow moment of the machine affects all of
them and no contender always follows the same one. Times of one round are pairs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Turn = Callable[[int], float]
"""Runs on the input of a round, counted from 0, and returns the seconds that it took."""


@dataclass
class Race:
    """The times of a race.

    Attributes:
        times: seconds by contender, one for every complete round; contenders that failed have none.
        failed: the errors of contenders that failed.
        interrupted: whether Ctrl-C ended it; the rounds before it are complete.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def rounds(self) -> int:
        """Complete rounds."""
        return max(map(len, self.times.values()), default=0)


def clocked(work: Callable[[int], object]) -> Turn:
    """Returns a turn that is timed by the host's clock."""

    def turn(number: int) -> float:
        began = time.perf_counter()
        work(number)
        return time.perf_counter() - began

    return turn


def race(
    contenders: Mapping[str, Turn],
    rounds: int,
    *,
    warm_up: int = 1,
    seconds: float | None = None,
    seed: int = 0,
    through: tuple[type[BaseException], ...] = (),
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Race:
    """Runs contenders in interleaved rounds.

    Args:
        contenders: what runs, by name.
        rounds: how many at most.
        warm_up: turns of each before the first round; their times count for nothing.
        seconds: start no round after so long, the first one excepted.
        seed: of the order.
        through: errors that end the race instead of a contender's part in it.
        progress: called with the rounds done and the rounds there will be at most.
    """
    found = Race({name: [] for name in contenders})
    order = random.Random(seed)

    def run(name: str, turn: int) -> float | None:
        try:
            return contenders[name](turn)
        except through:
            raise
        except Exception as error:
            found.failed[name] = error
            del found.times[name]
            return None

    try:
        for turn in range(warm_up):
            for name in list(found.times):
                run(name, turn)
        began = time.perf_counter()
        for turn in range(rounds):
            if not found.times or (turn and seconds is not None and time.perf_counter() - began >= seconds):
                break
            progress(turn, rounds)
            names = list(found.times)
            order.shuffle(names)
            # the times of a round count only once it is complete
            for name, taken in [(name, run(name, turn)) for name in names]:
                if taken is not None:
                    found.times[name].append(taken)
    except KeyboardInterrupt:
        found.interrupted = True
    return found
