"""The gate: segments that lower precision would lose run in float32.

A model scales each segment by its own spread. Where a segment is almost silent but for a brief sound, the sound is
scaled up far beyond what the model was trained on, and the roundings of float16 with it, until nothing is left of the
stems. The crest factor of a segment's mix tells so before the first stage. What still comes out with NaN or infinity is
computed again, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.blocks import Float32
from mrsep_deploy.bundle.manifest import Gate, Manifest
from mrsep_deploy.separation.stream import Runs

log = logging.getLogger(__name__)

DEFAULT_CREST = 7.5
"""Of bundles that were never calibrated, as the trained HTDemucs needs it. Most music lies between 4 and 7."""

Rows = NDArray[np.bool_]
"""Which segments of a batch ``[b]``."""


def gate_of(manifest: Manifest) -> Gate:
    """The gate of a bundle's precision: what a calibration has found, or the default."""
    return manifest.gates.get(manifest.precision, Gate(DEFAULT_CREST))


def crest_factor(mix: Float32) -> float:
    """Peak over standard deviation of a segment ``[C, L]``, all channels together; 0 for silence."""
    flat = mix.reshape(-1)
    centred = flat - flat.mean()
    power = float(np.dot(centred, centred)) / centred.size
    return max(float(centred.max()), -float(centred.min())) / power**0.5 if power > 0 else 0.0


def fragile(mix: Float32, crest: float) -> Rows:
    """Which segments of a batch ``[b, C, L]`` have a crest factor above ``crest``."""
    return np.array([crest_factor(item) > crest for item in mix], np.bool_)


def broken(stems: Float32) -> Rows:
    """Which segments of a batch have NaN or infinity in their stems ``[b, S, C, L]``."""
    flat = stems.reshape(len(stems), -1)
    # The energy is one pass, and not finite if a number is not.
    return np.array([not np.isfinite(np.dot(item, item)) for item in flat], np.bool_)


@dataclass(eq=False)
class GatedTicket:
    """A batch under way.

    Attributes:
        mix: its segments ``[b, C, L]``.
        rows: which of them run in float32.
        low, high: tickets of those in lower precision, and of those in float32.
        done: stems of those in float32, once they had to make room.
    """

    mix: Float32
    rows: Rows
    low: Any
    high: Any
    done: Float32 | None = None

    @property
    def in_float32(self) -> int:
        """How many segments run in float32; once there is a result, those that had to be computed again too."""
        return int(self.rows.sum())


class GatedRuns:
    """Runs segments in lower precision, and those that it would lose in float32.

    Args:
        low: runs them in lower precision.
        crest: see ``Gate``.
        twin: makes what runs them in float32, when it is first needed; None where there are no float32 graphs.
    """

    def __init__(self, low: Runs, crest: float, twin: Callable[[], Runs] | None) -> None:
        self.capacity = low.capacity
        self._low, self._crest, self._make_twin = low, crest, twin
        self._high: Runs | None = None
        self._open: list[GatedTicket] = []
        self._warned = False

    def submit(self, mix: Float32) -> GatedTicket:
        """Starts segments ``[b, C, L]``."""
        rows = fragile(mix, self._crest)
        if rows.any() and self._make_twin is None:
            self._warn()
            rows[:] = False
        low = None if rows.all() else self._low.submit(mix[~rows] if rows.any() else mix)
        high = self._twin().submit(mix[rows]) if rows.any() else None
        ticket = GatedTicket(mix, rows, low, high)
        self._open = [*(each for each in self._open if each.high is not None), ticket][-self.capacity :]
        return ticket

    def result(self, ticket: GatedTicket) -> Float32:
        """The stems ``[b, S, C, L]`` of a batch; with one that fails all that is under way is lost."""
        try:
            return self._result(ticket)
        except BaseException:
            self._open.clear()
            raise

    def _result(self, ticket: GatedTicket) -> Float32:
        if ticket.low is None:
            return self._in_float32(ticket)
        rows, stems = ticket.rows, self._low.result(ticket.low)
        lost = broken(stems)
        if lost.any() and self._make_twin is None:
            self._warn()
            lost[:] = False
        if ticket.high is None and not lost.any():
            return stems
        whole = np.empty((len(rows), *stems.shape[1:]), np.float32)
        whole[~rows] = stems
        if rows.any():
            whole[rows] = self._in_float32(ticket)
        if lost.any():
            again = np.flatnonzero(~rows)[lost]
            whole[again] = self._again(ticket.mix[again])
            rows[again] = True
        return whole

    def _in_float32(self, ticket: GatedTicket) -> Float32:
        if ticket.done is None:
            ticket.done, ticket.high = self._twin().result(ticket.high), None
        return ticket.done

    def _again(self, mix: Float32) -> Float32:
        """Computes segments out of turn, for which those under way make room."""
        for ticket in self._open:
            if ticket.high is not None:
                ticket.done = self._in_float32(ticket).copy()
        self._open.clear()
        twin = self._twin()
        return twin.result(twin.submit(mix))

    def _twin(self) -> Runs:
        if self._high is None:
            assert self._make_twin is not None
            self._high = self._make_twin()
        return self._high

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "a segment is almost silent but for a brief sound (crest factor above %g), and lower precision loses "
                "it; this bundle has no float32 graphs to run it with: export the checkpoint again",
                self._crest,
            )
