"""Values to places on an axis, and where its ticks are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mrsep_deploy.pages.blocks import Mark, Tick

FEWEST_TICKS = 3


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high``."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float], zero: bool = True) -> Scale:
        """Over all finite values, from 0 where ``zero`` says so, and a little beyond.

        >>> Scale.over([2.0, 4.0])
        Scale(low=0.0, high=4.1)
        """
        known = [value for value in values if math.isfinite(value)]
        low, high = min(known, default=0.0), max(known, default=1.0)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if high <= low:
            high = low + 1.0
        room = (high - low) / 40
        return cls(low if low == 0 else low - room, high if high == 0 else high + room)

    def at(self, value: float) -> float:
        """The place in percent; what lies outside stands at the edge."""
        share = (value - self.low) / (self.high - self.low) if math.isfinite(value) else float(value > 0)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    def bar(self, value: float, colour: int = 0) -> Mark:
        """A bar from 0 to a value."""
        start, end = sorted((self.at(0.0), self.at(value)))
        return Mark("bar", start, end, colour)

    def ticks(self, words: Callable[[float], str] = lambda value: f"{value:g}") -> list[Tick]:
        """Ticks at 1, 2 or 5 times a power of ten: 3 to 7 of them.

        >>> [tick.text for tick in Scale(0.0, 4.1).ticks()]
        ['0', '1', '2', '3', '4']
        """
        most = (self.high - self.low) / FEWEST_TICKS
        power = 10.0 ** math.floor(math.log10(most))
        step = max(power * factor for factor in (1, 2, 5) if factor * power <= most * (1 + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(n * step), words(round(n * step, 10))) for n in range(first, last + 1)]
