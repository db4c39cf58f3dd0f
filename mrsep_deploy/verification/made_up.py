"""Made-up segments: music in all but silence, as intros, endings, fades, pauses and sound effects have it.

Rounding errors grow with a segment's crest factor, and songs hold too few segments of a high one to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import ModelInfo
from mrsep_deploy.measuring.probe import probe_signal

Float32 = NDArray[np.float32]
Music = Callable[[np.random.Generator, int], Float32]
"""Gives so many samples of music ``[C, n]``, drawn at random."""

SEED = 20262
NOISE = 1e-5
"""Standard deviation of what is all but silence, -100 dBFS: half a bit of 16-bit audio."""
SHORTEST = 0.005
"""Seconds of music in a segment, and no less: crest factors up to about 150."""
SHARES = (0.05, 0.8)
"""Of a segment, that is music in every other one: crest factors of 5 to 20, where gates come to lie."""
PLACES = ("at the start", "in the middle", "at the end", "across the start", "across the end")
SHAPES = ("as it is", "fading in", "fading out", "in pieces")


@dataclass(frozen=True)
class MadeUp:
    """A segment ``[C, L]``, and what it is, for people."""

    title: str
    mix: Float32


def made_up(model: ModelInfo, music: Music, count: int, seed: int = SEED) -> Iterator[MadeUp]:
    """Yields segments, always the same for a seed: every place, shape and background in turn.

    Args:
        model: tells their length, rate and channels.
        music: what sounds in them.
    """
    random = np.random.default_rng(seed)
    channels, samples = model.audio_channels, model.segment_samples
    for index in range(count):
        long, longest = (int(share * samples) for share in SHARES)
        shortest = long if index % 2 else min(max(int(SHORTEST * model.sample_rate), 16), long)
        length = int(shortest * (longest / shortest) ** random.random())
        sound = _shaped(music(random, length), SHAPES[index // 5 % 4], random)
        sided = channels > 1 and index % 3 == 0
        if sided:  # in one channel only
            sound[np.arange(channels) != index % channels] = 0
        digital = index % 4 == 0
        mix = random.standard_normal((channels, samples), np.float32) * np.float32(0 if digital else NOISE)
        start = _start(PLACES[index % 5], samples, length, random)
        lo, hi = max(start, 0), min(start + length, samples)
        mix[:, lo:hi] += sound[:, lo - start : hi - start]
        title = f"{1000 * length / model.sample_rate:.0f} ms of music {SHAPES[index // 5 % 4]} {PLACES[index % 5]}"
        title += f", in {'digital silence' if digital else 'noise'}{', one channel' if sided else ''}"
        yield MadeUp(title, mix)


def _shaped(sound: Float32, shape: str, random: np.random.Generator) -> Float32:
    """Fades over the whole length, or leaves pieces of a random pattern."""
    length = sound.shape[1]
    rising = (np.arange(1, length + 1) / length) ** random.uniform(1, 8)
    if shape == "fading in":
        return np.asarray(sound * rising, np.float32)
    if shape == "fading out":
        return np.asarray(sound * rising[::-1], np.float32)
    if shape == "in pieces":
        pattern = random.random(8) < 0.5
        pattern[random.integers(8)] = True
        return np.asarray(sound * np.repeat(pattern, -(-length // 8))[:length], np.float32)
    return sound.copy()


def _start(place: str, samples: int, length: int, random: np.random.Generator) -> int:
    """The first sample; across a border, half to nine tenths of the sound lie outside the segment."""
    outside = int(length * random.uniform(0.5, 0.9))
    starts = {
        "at the start": 0,
        "in the middle": int(random.integers(samples - length + 1)),
        "at the end": samples - length,
        "across the start": -outside,
        "across the end": samples - length + outside,
    }
    return starts[place]


def probe_music(model: ModelInfo) -> Music:
    """Excerpts of the built-in plucked music."""
    whole = probe_signal(model.audio_channels, 2 * model.segment_samples, model.sample_rate)
    return lambda random, length: _excerpt(whole, random, length)


def music_of(songs: list[Float32]) -> Music:
    """Excerpts of songs ``[C, n]`` held in memory."""
    return lambda random, length: _excerpt(songs[int(random.integers(len(songs)))], random, length)


def _excerpt(song: Float32, random: np.random.Generator, length: int) -> Float32:
    """Not of the song's first and last twentieth, where it may be silent; songs that are too short are repeated."""
    edge = song.shape[1] // 20
    inner = song[:, edge : song.shape[1] - edge]
    if inner.shape[1] < length:
        inner = np.tile(inner, -(-length // inner.shape[1]))
    start = int(random.integers(inner.shape[1] - length + 1))
    return inner[:, start : start + length]
