"""Accompaniments in many styles over random chords, played by MMA (Musical MIDI Accompaniment).

MMA knows about 1100 grooves (drums, bass, chords) in some 110 styles. A song here takes up to three grooves of
one style, and a chord progression in a random key.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from material import fetched

BARS = 48
_DEFINED = re.compile(r"^\s*DefGroove\s+(\S+)", re.MULTILINE)
_UNMUSICAL = ("metronome", "none")
_NOTES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_MAJOR = (
    (0, ("", "M7", "6")),
    (2, ("m", "m7")),
    (4, ("m", "m7")),
    (5, ("", "M7")),
    (7, ("", "7")),
    (9, ("m", "m7")),
)
_MINOR = (
    (0, ("m", "m7")),
    (3, ("", "M7")),
    (5, ("m", "m7")),
    (7, ("m", "7")),
    (8, ("", "M7")),
    (10, ("", "7")),
)
_SECONDS = 60


class GrooveError(RuntimeError):
    """MMA could not play a song."""


def styles() -> dict[str, list[str]]:
    """The grooves of every style of the standard library."""
    found: dict[str, list[str]] = {}
    for path in sorted((_home() / "lib/stdlib").glob("*.mma")):
        grooves = _DEFINED.findall(path.read_text(errors="replace"))
        if grooves and not path.stem.startswith(_UNMUSICAL):
            found[path.stem] = grooves
    return found


def score(style: str, grooves: list[str], random: np.random.Generator) -> str:
    """A song in MMA's language: ``BARS`` bars over phrases of four chords that return."""
    key = int(random.integers(12))
    scale = _MAJOR if random.random() < 0.6 else _MINOR
    phrases = [
        [_chord(key, *scale[i], random) for i in (0, *random.integers(len(scale), size=3))] for _ in range(2)
    ]
    parts = list(random.choice(grooves, size=3))
    lines = [f"Tempo {random.integers(80, 150)}"]
    for bar in range(BARS):
        if bar % (BARS // 3) == 0:
            lines.append(f"Groove stdlib/{style}:{parts[bar * 3 // BARS]}")
        lines.append(f"{bar + 1} {phrases[bar // 8 % 2][bar % 4]}")
    return "\n".join(lines) + "\n"


def play(score_text: str) -> bytes:
    """The song as a MIDI file.

    Raises:
        GrooveError: MMA refuses it, or needs too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "song.mma"), Path(folder, "song.mid")
        source.write_text(score_text)
        command = [sys.executable, str(fetched("mma") / "usr/bin/mma"), "-f", str(target), str(source)]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "MMA_HOME": str(_home())},
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise GrooveError(f"MMA took more than {_SECONDS} s") from error
        if done.returncode or not target.exists():
            raise GrooveError(f"MMA ended with code {done.returncode}: {done.stdout.strip()[-300:]}")
        return target.read_bytes()


def _home() -> Path:
    return fetched("mma") / "usr/share/mma"


def _chord(key: int, degree: int, kinds: tuple[str, ...], random: np.random.Generator) -> str:
    return _NOTES[(key + degree) % 12] + str(random.choice(kinds))
