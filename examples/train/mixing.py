"""Random training mixtures: crops of stems, of one song or of several, each changed on its own.

A mixture is made from ``(seed, number)`` alone, so a run that is resumed sees the mixtures it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import effects
import numpy as np
import torch
from numpy.typing import NDArray
from store import SAMPLE_RATE, SOURCES, Entry
from torch import Tensor
from torch.utils.data import Dataset

_LEVEL = 0.1  # root mean square that a stem from another song is brought to
_TRIES = 8


@dataclass(frozen=True)
class MixingPlan:
    """Chances and ranges.

    Attributes:
        whole: a mixture keeps to the stems of one song.
        absent: a source is silent, by source.
        decibels: standard deviation of a stem's gain; half of it within one song.
        speed: largest change of speed and pitch together, as a factor above one.
        equalise, reverberate, drive: a stem gets the effect.
    """

    whole: float = 0.4
    absent: tuple[float, ...] = (0.08, 0.08, 0.05, 0.6)
    decibels: float = 6.0
    speed: float = 1.12
    equalise: float = 0.5
    reverberate: float = 0.15
    drive: float = 0.2


class MixtureDataset(Dataset[Tensor]):
    """Mixtures number ``first`` and on, as stems ``[sources, 2, samples]`` whose sum has unit deviation."""

    def __init__(
        self, entries: Sequence[Entry], samples: int, first: int, count: int, seed: int, plan: MixingPlan
    ) -> None:
        self.samples, self.first, self.count, self.seed, self.plan = samples, first, count, seed, plan
        self.whole = _Shelf([entry for entry in entries if entry.whole])
        self.by_source = {
            source: _Shelf([entry for entry in entries if source in entry.stems]) for source in SOURCES
        }
        if not self.whole.entries:
            raise ValueError("the store holds no songs to train on, expected some; run render.py first")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        for attempt in range(_TRIES):
            random = np.random.default_rng((self.seed, self.first + index, attempt))
            stems = self._mix(random)
            deviation = float(stems.sum(axis=0).std())
            if deviation > 1e-3:
                return torch.from_numpy(stems / np.float32(deviation))
        raise ValueError(
            f"{_TRIES} random mixtures in a row were silent, expected music; is the store empty?"
        )

    def _mix(self, random: np.random.Generator) -> NDArray[np.float32]:
        plan, samples = self.plan, self.samples
        stems = np.zeros((len(SOURCES), 2, samples), np.float32)
        song = self.whole.pick(random) if random.random() < plan.whole else None
        speed = plan.speed ** random.uniform(-1, 1)
        span = int(np.ceil(samples * speed)) + 1
        start = 0 if song is None else _offset(song, span, random)
        for index, source in enumerate(SOURCES):
            # A stem that the song does not have may come from elsewhere: there is no song with vocals.
            others = self.by_source[source]
            inside = song is not None and (source in song.stems or not others.entries)
            if random.random() < plan.absent[index] or not (inside or others.entries):
                continue
            entry = song if inside and song is not None else others.pick(random)
            at = start if inside else _offset(entry, span, random)
            stem = entry.read(source, at, span)
            gain = plan.decibels / (2 if inside else 1) * random.standard_normal()
            if not inside:
                gain += 20 * np.log10(_LEVEL / max(entry.levels[source], 1e-3))
            elif song is not None:
                gain += 20 * np.log10(2 * _LEVEL / max(song.levels.values()))
            stems[index] = self._change(stem, speed, float(gain), random)
        return stems

    def _change(
        self, stem: NDArray[np.float32], speed: float, decibels: float, random: np.random.Generator
    ) -> NDArray[np.float32]:
        plan = self.plan
        stem = effects.change_speed(stem, speed, self.samples) * np.float32(10 ** (decibels / 20))
        if random.random() < plan.equalise:
            stem = effects.equalise(stem, random)
        if random.random() < plan.reverberate:
            stem = effects.reverberate(stem, random)
        if random.random() < plan.drive:
            stem = effects.drive(stem, random)
        if random.random() < 0.5:
            stem = stem[::-1]
        stem = effects.widen(stem, random)
        return -stem if random.random() < 0.5 else stem


class _Shelf:
    """Entries to pick from, each as likely as it is long: every second is heard as often as any other."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.ends = np.cumsum([entry.frames for entry in entries], dtype=np.int64)

    def pick(self, random: np.random.Generator) -> Entry:
        return self.entries[int(np.searchsorted(self.ends, random.integers(self.ends[-1]), side="right"))]


def _offset(entry: Entry, span: int, random: np.random.Generator) -> int:
    return int(random.integers(max(entry.frames - span, 0) + 1))


def validation_items(entries: Sequence[Entry], seconds: float, per_entry: int) -> list[Tensor]:
    """Fixed crops of held-out songs at even distances, as stems of unit mixture deviation."""
    samples, items = round(seconds * SAMPLE_RATE), []
    for entry in entries:
        for number in range(per_entry):
            start = (entry.frames - samples) * (number + 1) // (per_entry + 1)
            stems = np.stack([entry.read(source, max(start, 0), samples) for source in SOURCES])
            deviation = float(stems.sum(axis=0).std())
            if deviation > 1e-3:
                items.append(torch.from_numpy(stems / np.float32(deviation)))
    return items


def describe(plan: MixingPlan) -> dict[str, Any]:
    """The plan as plain values, for the checkpoint."""
    return dict(vars(plan))
