"""Random time shifts: the song is separated several times, each time a little later, and the results averaged.

A model's answer depends on where in a segment a sound falls; averaging over positions makes it depend less
(the "shift trick" of Demucs, Défossez et al. 2019). As in Demucs, half a second of silence goes before and
after the normalised song, which is then read from a random point of the first half second on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mrsep_deploy.audio.blocks import BlockQueue, Float32
from mrsep_deploy.errors import UsageError


def draw_leads(shifts: int, sample_rate: int, source: random.Random) -> tuple[int, ...]:
    """Samples of silence before the song, one number for each time it is separated.

    They are drawn as Demucs draws them. (After ``random.seed(n)`` it draws the same first number; its model draws
    from the same source before the second one.)

    Args:
        shifts: how often to separate; 0 for once, from the first sample on.
        source: drawn from ``shifts`` times.

    Raises:
        UsageError: ``shifts`` is negative.
    """
    if shifts < 0:
        raise UsageError(f"{shifts} shifts were asked for", "Give 0 (none) or more.")
    longest = sample_rate // 2
    return tuple(longest - source.randint(0, longest) for _ in range(shifts)) or (0,)


class TakeAverage:
    """Averages the takes of one song as they come, each at its own pace.

    Args:
        early: for each take, how many of its first samples come before the song.
        frames: samples of the song; what a take has beyond them is left out.
    """

    def __init__(self, early: Sequence[int], frames: int) -> None:
        self._early = list(early)
        self._missing = [frames] * len(early)
        self._held = [BlockQueue() for _ in early]

    def add(self, take: int, done: Float32) -> Float32 | None:
        """Append samples ``[S, C, n]`` to a take; returns the average of what all takes have, if any."""
        skipped = min(self._early[take], done.shape[-1])
        self._early[take] -= skipped
        done = done[..., skipped : skipped + self._missing[take]]
        self._missing[take] -= done.shape[-1]
        if not done.shape[-1]:
            return None
        if len(self._held) == 1:
            return done
        self._held[take].push(done)
        ready = min(map(len, self._held))
        if not ready:
            return None
        total, *others = (held.take(ready) for held in self._held)
        for other in others:
            total += other
        total /= len(self._held)
        return total
