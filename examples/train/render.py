"""Render the training and held-out songs into a store.

    python render.py STORE [--minutes 240] [--seed 42]

Every job is a song, a soundfont and a random variation; jobs come in a fixed random order, those already in
the store are skipped, so the command continues where it was stopped and more minutes only add to it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grooves
import numpy as np
from material import FONTS, HELD_OUT_SONGS, PACKAGES, Font, guitar_stems, midi_songs
from midi import GROUPS, Event, Variation, notes_by_group, read_events, vary
from numpy.typing import NDArray
from store import SAMPLE_RATE, entry_path, write_entry
from synthesis import Player
from voices import sing

from mrsep_deploy.audio.read import AudioSource

SECONDS = 60.0
HELD_OUT_SECONDS = 45.0
VOICES, VOICE_SECONDS = 40, 30.0
FEWEST_NOTES = 8
GROOVE_SONGS = 0.5  # share of the jobs that MMA plays
_MELODIC = ("fluid", "musescore", "fluid", "musescore", "csound", "opl3")
_DRUMS = ("fluid", "musescore", "csound", "opl3", "pearl", "zeppelin", "pearl", "zeppelin")


@dataclass(frozen=True)
class Job:
    """One rendering. ``fonts`` are the soundfonts of the stems."""

    name: str
    song: str
    fonts: dict[str, str]
    seed: tuple[int, ...]


class Renderer:
    """Renders jobs; soundfonts stay loaded."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.songs = midi_songs()
        self._players: dict[str, Player] = {}

    def render(self, job: Job, split: str, seconds: float, variation: Variation | None = None) -> bool:
        """Render and store a job, unless it is there; whether the store now has it."""
        if entry_path(self.store, split, job.name).exists():
            return True
        random = np.random.default_rng(job.seed)
        events = self._events(job, random)
        if min(notes_by_group(events).values()) < FEWEST_NOTES:
            return False
        variation = variation or vary(random)
        start = _start(events, seconds * variation.tempo, random if split == "train" else None)
        stems: dict[str, NDArray[np.float32]] = {}
        for group in GROUPS:
            player = self._player(FONTS[job.fonts[group]])
            stems[group] = player.render(events, group, start, seconds, variation)
        info = {"song": job.song, "fonts": job.fonts, "start": start, "variation": asdict(variation)}
        return write_entry(self.store, split, job.name, stems, whole=True, info=info)

    def _events(self, job: Job, random: np.random.Generator) -> list[Event]:
        if job.song in self.songs:
            return read_events(self.songs[job.song])
        style = job.song.removeprefix("mma-")
        return read_events(grooves.play(grooves.score(style, grooves.styles()[style], random)))

    def _player(self, font: Font) -> Player:
        if font.name not in self._players:
            self._players[font.name] = Player(font.path, font.drums_only)
        return self._players[font.name]


def _start(events: list[Event], seconds: float, random: np.random.Generator | None) -> float:
    """Where to begin: shortly before the first note, or at random, such that ``seconds`` are left."""
    notes = [event.seconds for event in events if event.kind == "on"]
    first, last = max(notes[0] - 0.1, 0.0), max(notes[-1] + 1 - seconds, 0.0)
    return first if random is None or last <= first else float(random.uniform(first, last))


def training_jobs(songs: list[str], seed: int) -> Iterator[Job]:
    """Endless jobs: composed songs in turn, and grooves between them."""
    random = np.random.default_rng(seed)
    styles = list(grooves.styles())
    for round_number in itertools.count():
        order = [song for song in random.permutation(songs) if song not in HELD_OUT_SONGS]
        for song in order:
            names = [str(song)]
            if random.random() < GROOVE_SONGS / (1 - GROOVE_SONGS):
                names.append(f"mma-{random.choice(styles)}")
            for name in names:
                font, drums = str(random.choice(_MELODIC)), str(random.choice(_DRUMS))
                fonts = {"drums": drums, "bass": font, "other": font}
                number = int(random.integers(2**31))
                label = f"{name}-{font}-{drums}-{round_number}-{zlib.crc32(str(number).encode()):08x}"
                yield Job(label, name, fonts, (seed, number))


def render_held_out(renderer: Renderer) -> None:
    """The held-out songs with the held-out soundfont, as they were composed."""
    font = next(font.name for font in FONTS.values() if font.held_out)
    for song in sorted(HELD_OUT_SONGS):
        job = Job(f"{song}-{font}", song, dict.fromkeys(GROUPS, font), (0,))
        if not renderer.render(job, "held_out", HELD_OUT_SECONDS, Variation()):
            raise SystemExit(
                f"{song} lacks drums, bass or other instruments, choose another song to hold out"
            )


def store_guitars(store: Path) -> None:
    """The recorded guitars, as material for ``other``."""
    package = "fretsonfire-songs-sectoid"
    for song, path in guitar_stems().items():
        name = f"guitar-{song.replace(' ', '_')}"
        if not entry_path(store, "train", name).exists():
            stem = AudioSource(path, SAMPLE_RATE, 2).read()
            info = {"song": song, "package": package, "licence": PACKAGES[package].licence}
            write_entry(store, "train", name, {"other": stem}, whole=False, info=info)


def store_voices(store: Path, seed: int) -> None:
    """Synthetic singing, as material for ``vocals``."""
    for number in range(VOICES):
        name = f"voice-{number:02d}"
        if not entry_path(store, "train", name).exists():
            stem = sing(VOICE_SECONDS, np.random.default_rng((seed, number)))
            write_entry(store, "train", name, {"vocals": stem}, whole=False, info={"song": name})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--minutes", type=float, default=240.0, help="of songs to train on")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    renderer = Renderer(options.store)
    render_held_out(renderer)
    store_guitars(options.store)
    store_voices(options.store, options.seed)
    began, done, refused = time.monotonic(), 0.0, 0
    for job in training_jobs(sorted(renderer.songs), options.seed):
        if done >= options.minutes:
            break
        try:
            stored = renderer.render(job, "train", SECONDS)
        except grooves.GrooveError as error:
            print(f"{job.name}: {error}", file=sys.stderr)
            stored = False
        done += stored * SECONDS / 60
        refused += not stored
        print(
            f"{done:.0f} of {options.minutes:.0f} min, {time.monotonic() - began:.0f} s, {refused} refused",
            end="\r",
        )
    print()


if __name__ == "__main__":
    main()
