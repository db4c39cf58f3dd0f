"""What became of each song, and of all of them, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mrsep_deploy.errors import DONE, FAILED, PARTIAL, MrsepError, first_line
from mrsep_deploy.songs.tracks import Track

Status = Literal["done", "failed", "skipped", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """What became of one song.

    Attributes:
        status: ``unfinished`` if the run was interrupted before its end.
        outputs: its files.
        seconds: its length.
        elapsed: from its first segment to its last file; songs overlap, so these do not add up.
        error: why it failed.
        remarks: how what was separated differs from what is in the file, and stems from what is in their files;
            see ``AudioSource`` and ``SongWriter``.
        gains: what its outputs were multiplied by to keep them from clipping, in dB by their names.
        segments, in_float32: how many were computed, and how many of them in float32 where the others were of lower
            precision.
    """

    track: Track
    status: Status
    outputs: tuple[Path, ...] = ()
    seconds: float = 0.0
    elapsed: float = 0.0
    error: Exception | None = None
    remarks: tuple[str, ...] = ()
    gains: Mapping[str, float] = field(default_factory=dict)
    segments: int = 0
    in_float32: int = 0

    @property
    def speed(self) -> float:
        """Times real time."""
        return self.seconds / self.elapsed if self.elapsed else 0.0

    @property
    def gain(self) -> str:
        """The gains that are not 0 dB, for people; empty if there is none."""
        changed = {name: gain for name, gain in self.gains.items() if gain}
        if len(self.gains) == len(changed) > 1 and len(set(changed.values())) == 1:
            return f"all stems {next(iter(changed.values())):+.1f} dB"
        return ", ".join(f"{name} {gain:+.1f} dB" for name, gain in changed.items())

    @property
    def reason(self) -> str:
        """Why it failed, in one line; empty if it did not."""
        if self.error is None:
            return ""
        if isinstance(self.error, MrsepError):
            return str(self.error)
        first = first_line(self.error, "no message")
        return f"{type(self.error).__name__}: {first}. This is a bug; a run of this file alone shows more"

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        tree: dict[str, object] = {"track": str(self.track.path), "status": self.status}
        if self.status in ("done", "skipped"):
            tree["outputs"] = [str(path) for path in self.outputs]
        if self.status == "done":
            tree |= {"seconds": round(self.seconds, 3), "elapsed": round(self.elapsed, 3)}
            tree["gains_db"] = dict(self.gains)
            tree |= {"segments": self.segments, "segments_in_float32": self.in_float32}
        if self.remarks:
            tree["remarks"] = list(self.remarks)
        if self.error is not None:
            tree["error"] = self.reason
        return tree


@dataclass(frozen=True)
class Summary:
    """What became of a run.

    Attributes:
        elapsed: the wall clock's, in seconds.
        interrupted: it was ended before its end.
    """

    outcomes: tuple[Outcome, ...]
    elapsed: float
    interrupted: bool = False

    def of(self, status: Status) -> Sequence[Outcome]:
        """The songs that ended so, in the order they ended."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def seconds(self) -> float:
        """Of music separated."""
        return sum(outcome.seconds for outcome in self.of("done"))

    @property
    def segments(self) -> int:
        """Computed, of all songs that are done."""
        return sum(outcome.segments for outcome in self.of("done"))

    @property
    def in_float32(self) -> int:
        """Of those, the ones that ran in float32 where the others were of lower precision."""
        return sum(outcome.in_float32 for outcome in self.of("done"))

    @property
    def exit_code(self) -> int:
        failed = len(self.of("failed"))
        if not failed:
            return DONE
        return PARTIAL if failed < len(self.outcomes) else FAILED

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            **{status: len(self.of(status)) for status in get_args(Status)},
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "elapsed": round(self.elapsed, 3),
            "segments": self.segments,
            "segments_in_float32": self.in_float32,
            "tracks": [outcome.as_json() for outcome in self.outcomes],
        }

    def __str__(self) -> str:
        counts = [f"{len(self.of(s))} {s}" for s in ("done", "skipped", "failed", "unfinished") if self.of(s)]
        speed = f", {self.seconds / self.elapsed:.2f} x realtime" if self.elapsed and self.seconds else ""
        gated = f", {in_float32(self)}" if self.in_float32 else ""
        found = (
            f"{', '.join(counts) or 'nothing to do'}: {self.seconds:.1f} s of music in {self.elapsed:.1f} s"
        )
        return f"{found}{speed}{gated}"


def in_float32(found: Outcome | Summary) -> str:
    """For people: how many segments ran in float32."""
    return f"{found.in_float32} of {found.segments} segments in float32"
