"""A MIDI song as timed events, and the groups of instruments its stems are made of."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import mido
import numpy as np

DRUM_CHANNEL = 9
BASS_PROGRAMS = range(32, 40)  # General MIDI: acoustic, electric, slap and synth basses
FAMILY = 8  # General MIDI groups its 128 programs by eights
GROUPS = ("drums", "bass", "other")


@dataclass(frozen=True)
class Event:
    """``kind`` is ``on``, ``off``, ``program``, ``control`` or ``bend``, ``a`` and ``b`` its data."""

    seconds: float
    kind: str
    channel: int
    a: int
    b: int = 0


@dataclass(frozen=True)
class Variation:
    """How a rendering departs from the file.

    Attributes:
        tempo: factor on the speed.
        transpose: semitones, of all but the drums.
        loudness: exponent on the velocities (as fractions of 127); below 1 is louder and flatter.
        programs: instruments that stand for the file's.
        kit: the drum kit, as a program of the drum bank.
    """

    tempo: float = 1.0
    transpose: int = 0
    loudness: float = 1.0
    programs: dict[int, int] = field(default_factory=dict)
    kit: int = 0


def read_events(data: bytes) -> list[Event]:
    """The events of a MIDI file in order of time; notes of velocity zero end notes."""
    song = mido.MidiFile(file=io.BytesIO(data), clip=True)
    events: list[Event] = []
    seconds = 0.0
    for message in song:
        seconds += message.time
        if message.type == "note_on" and message.velocity:
            events.append(Event(seconds, "on", message.channel, message.note, message.velocity))
        elif message.type in ("note_on", "note_off"):
            events.append(Event(seconds, "off", message.channel, message.note))
        elif message.type == "program_change":
            events.append(Event(seconds, "program", message.channel, message.program))
        elif message.type == "control_change":
            events.append(Event(seconds, "control", message.channel, message.control, message.value))
        elif message.type == "pitchwheel":
            events.append(Event(seconds, "bend", message.channel, message.pitch + 8192))
    return events


def group_of(channel: int, program: int) -> str:
    """The stem that a channel playing a program belongs to."""
    if channel == DRUM_CHANNEL:
        return "drums"
    return "bass" if program in BASS_PROGRAMS else "other"


def notes_by_group(events: list[Event]) -> dict[str, int]:
    """How many notes each stem has."""
    count = dict.fromkeys(GROUPS, 0)
    program = [0] * 16
    for event in events:
        if event.kind == "program":
            program[event.channel] = event.a
        elif event.kind == "on":
            count[group_of(event.channel, program[event.channel])] += 1
    return count


def vary(random: np.random.Generator) -> Variation:
    """A random variation: other basses for basses, and for a third of the rest any of their family."""
    programs = {program: int(random.integers(32, 40)) for program in BASS_PROGRAMS}
    for program in range(112):
        if program not in BASS_PROGRAMS and random.random() < 0.35:
            programs[program] = program // FAMILY * FAMILY + int(random.integers(FAMILY))
    return Variation(
        tempo=float(random.uniform(0.85, 1.2)),
        transpose=int(random.integers(-4, 5)),
        loudness=float(random.uniform(0.5, 1.4)),
        programs=programs,
        kit=int(random.choice([0, 0, 8, 16, 24, 25, 32, 40])),
    )
