"""Rendering the stems of a MIDI song with a soundfont."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tinysoundfont
from midi import DRUM_CHANNEL, Event, Variation, group_of
from numpy.typing import NDArray

SAMPLE_RATE = 44100
CHANNELS = 16
TAIL = 1.5  # seconds for the last notes to fade
_RESET = ((121, 0), (7, 100), (10, 64), (11, 127), (0, 0), (32, 0))
_DRUM_BANK = 128


class Player:
    """A soundfont that plays. The drums of a font with nothing else are in bank 0."""

    def __init__(self, font: Path, drums_only: bool = False) -> None:
        self.drums_only = drums_only
        self._synth = tinysoundfont.Synth(samplerate=SAMPLE_RATE, gain=-8)
        self._font = self._synth.sfload(str(font), max_voices=128)

    def render(
        self, events: Sequence[Event], group: str, start: float, seconds: float, variation: Variation
    ) -> NDArray[np.float32]:
        """One stem of the song, ``[2, samples]``.

        Args:
            group: the stem; notes of the others are left out.
            start: where in the song to begin, in seconds of the file.
            seconds: length of what comes back; the song may end before it.
        """
        self._reset(variation)
        program = [0] * CHANNELS
        total = round(seconds * SAMPLE_RATE)
        blocks: list[NDArray[np.float32]] = []
        done = 0
        for event in events:
            at = round((event.seconds - start) / variation.tempo * SAMPLE_RATE)
            if at >= total:
                break
            if at > done:
                blocks.append(self._generate(at - done))
                done = at
            if event.kind == "program":
                program[event.channel] = event.a
            of_group = group_of(event.channel, program[event.channel]) == group
            if event.kind == "program":
                self._program(event.channel, event.a, variation)
            elif event.kind not in ("on", "off") or (of_group and at >= 0):
                self._play(event, variation)
        blocks.append(self._generate(total - done))
        return np.concatenate(blocks, axis=1)

    def _reset(self, variation: Variation) -> None:
        self._synth.sounds_off()
        for channel in range(CHANNELS):
            self._program(channel, 0, variation)
            for controller, value in _RESET:
                self._synth.control_change(channel, controller, value)
            self._synth.pitchbend(channel, 8192)
        self._generate(256)  # the voices' last samples

    def _program(self, channel: int, program: int, variation: Variation) -> None:
        if self.drums_only:
            self._synth.program_select(channel, self._font, 0, 0, False)
        elif channel == DRUM_CHANNEL:
            has_kit = self._synth.sfpreset_name(self._font, _DRUM_BANK, variation.kit)
            kit = variation.kit if has_kit else 0
            self._synth.program_select(channel, self._font, _DRUM_BANK, kit, True)
        else:
            chosen = variation.programs.get(program, program)
            if self._synth.sfpreset_name(self._font, 0, chosen) is None:
                chosen = program
            self._synth.program_select(channel, self._font, 0, chosen, False)

    def _play(self, event: Event, variation: Variation) -> None:
        note = event.a + (0 if event.channel == DRUM_CHANNEL else variation.transpose)
        if event.kind == "on" and 0 <= note < 128:
            velocity = round(127 * (event.b / 127) ** variation.loudness)
            self._synth.noteon(event.channel, note, max(velocity, 1))
        elif event.kind == "off" and 0 <= note < 128:
            self._synth.noteoff(event.channel, note)
        elif event.kind == "control" and event.a not in (0, 32, 120, 121, 123):
            self._synth.control_change(event.channel, event.a, event.b)
        elif event.kind == "bend":
            self._synth.pitchbend(event.channel, event.a)

    def _generate(self, samples: int) -> NDArray[np.float32]:
        played = np.frombuffer(bytes(self._synth.generate(samples)), np.float32)
        return played.reshape(-1, 2).T.copy()
