"""Finds the crest factor above which segments have to run in float32, on made-up segments and on songs.

Each segment runs in lower precision and in float32. It fails if a stem's error passes neither by the stem nor by the
mix (``measuring.limits``), both ``SONG_DB`` lower than for a song: a segment is one of many.
The gate is just below the lowest crest factor of a made-up segment that fails. How far that can be trusted is asked of
segments it has not seen: the gate of one half is tried on the other, and what it lets pass and fails there is missed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mrsep_deploy.bundle import Bundle, rewrite_bundle
from mrsep_deploy.bundle.manifest import Gate, Manifest
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.measuring.limits import BELOW_MIX_DB, Limit, Powers, limit_for
from mrsep_deploy.precision.convert_bundle import derived_bundle
from mrsep_deploy.precision.names import ARITHMETIC
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.separation.gate import crest_factor
from mrsep_deploy.separation.segments import SongStatistics, applied
from mrsep_deploy.terminal.tables import decibels, table
from mrsep_deploy.verification.chain import Chain
from mrsep_deploy.verification.made_up import MadeUp, Music, made_up, music_of, probe_music
from mrsep_deploy.verification.tracks import Progress, Track, batches, silent

Float32 = NDArray[np.float32]

COUNT = 60
"""Made-up segments."""
SONG_DB = 10.0
"""How many dB more a segment may lose than a whole song, whose error is that of ten such segments or more."""
MARGIN = 0.95
"""The gate over the lowest crest factor that failed."""
LEAST_CREST = 6.0
"""Below it lies most music: a gate there would be none. What fails there is no matter of the crest factor."""
HIGHEST = 4
"""Segments of a song with the highest crest factors, which are tried besides some from all over it."""
SECONDS = 60.0
"""Of each song, from its middle, that made-up segments take their music from."""
SHOWN = (5, 7, 8, 10, 12, 15, 20, 30, 50, 100)
"""Crest factors between which tables add up."""


@dataclass(frozen=True)
class Tried:
    """One segment.

    Attributes:
        title: what it is.
        made_up: or of a song.
        crest: of its mix.
        snr: of the worst stem in dB, by the stem's own level; of those that do not pass by the mix, if there are any.
        passes: every stem does.
    """

    title: str
    made_up: bool
    crest: float
    snr: float
    passes: bool


@dataclass(frozen=True)
class GateCalibration:
    """What was tried, and the gate that follows.

    Attributes:
        limit: the least SNR of a stem in a segment, in dB.
        crests: of all segments of every song, by its name.
    """

    precision: str
    limit: float
    tried: tuple[Tried, ...]
    crests: Mapping[str, tuple[float, ...]]

    @property
    def gate(self) -> Gate:
        """The gate; ``missed`` of ``tried`` as found on segments that it was not made of."""
        own = [each for each in self.tried if each.made_up]
        songs = [each for each in self.tried if not each.made_up]
        halves = own[::2], own[1::2]
        seen = [
            each
            for half, other in (halves, halves[::-1])
            for each in (*other, *songs)
            if each.crest <= _crest(half)
        ]
        return Gate(_crest(own), len(seen), sum(not each.passes for each in seen))

    def redone(self) -> Mapping[str, float]:
        """Share of every song's segments that the gate has run in float32."""
        crest = self.gate.crest
        return {name: float(np.mean(np.array(found) > crest)) for name, found in self.crests.items()}

    def plain(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "precision": self.precision,
            "limit_db": self.limit,
            "gate": plain(self.gate),
            "segments": [plain(each) for each in self.tried],
            "in_float32": dict(self.redone()),
        }


def _crest(made_up: Sequence[Tried]) -> float:
    failed = [each.crest for each in made_up if not each.passes]
    highest = max((each.crest for each in made_up), default=0.0)
    found = MARGIN * min(failed) if failed else highest
    return round(max(found, LEAST_CREST), 2)


def calibrate_gate(
    bundle: Bundle,
    plan: PrecisionPlan,
    tracks: Sequence[Track],
    limit: float | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> GateCalibration:
    """Tries segments in the precision of a plan, each alone.

    Args:
        bundle: in float32.
        plan: what stays in float32.
        tracks: songs; a few segments of each are tried, and made-up ones take their music from them. Without any, from
            the built-in music.
        limit, threads: see ``Trial``.
    """
    manifest = bundle.manifest
    chosen = {track.name: list(_chosen(track, manifest)) for track in tracks}
    total = COUNT + sum(len(segments) for segments in chosen.values())
    found: list[Tried] = []
    with Trial(bundle, plan, limit, threads) as trial:
        for each in made_up(manifest.model, music_from(tracks, manifest), COUNT):
            progress(each.title, len(found), total)
            found.append(trial.made_up(each))
        for track in tracks:
            for number, mix in chosen[track.name]:
                title = f"{track.name}, segment {number + 1}"
                progress(title, len(found), total)
                found.append(trial.run(title, mix, track.statistics.scale))
    progress("done", total, total)
    crests = {track.name: tuple(_crests(track, manifest)) for track in tracks}
    return GateCalibration(plan.precision, trial.limit.decibels, tuple(found), crests)


def music_from(tracks: Sequence[Track], manifest: Manifest) -> Music:
    """What made-up segments take their music from: songs, or without any the built-in music."""
    return music_of([_middle(track, manifest) for track in tracks]) if tracks else probe_music(manifest.model)


class Trial:
    """A bundle in lower precision beside itself in float32, segment by segment.

    Args:
        bundle: in float32.
        plan: what stays in float32.
        limit: the least SNR of a whole song's stem in dB; by default the precision's.
        threads: CPU threads, 0 for all.

    Attributes:
        limit: that of a segment.
    """

    def __init__(
        self, bundle: Bundle, plan: PrecisionPlan, limit: float | None = None, threads: int = 0
    ) -> None:
        self.limit = Limit(limit_for(plan.precision, limit).decibels - SONG_DB, "one segment of a song")
        self.application = bundle.manifest.application
        with contextlib.ExitStack() as stack:
            options = EngineOptions(threads, precision=ARITHMETIC[plan.precision])
            engine = stack.enter_context(contextlib.closing(choose("ort", options).engine))
            self.low = stack.enter_context(Chain(derived_bundle(bundle, plan), engine))
            self.high = stack.enter_context(Chain(bundle, engine.at_precision("fp32")))
            self._cleanup = stack.pop_all()

    def made_up(self, segment: MadeUp) -> Tried:
        """Tries a made-up segment, as a song of its own."""
        song = applied(SongStatistics.measure([segment.mix]), self.application)
        found = self.run(segment.title, next(song.normalised([segment.mix])), song.scale)
        return replace(found, made_up=True)

    def run(self, title: str, mix: Float32, scale: float) -> Tried:
        """Tries one segment ``[C, L]``, normalised as the model takes it; ``scale`` undoes that."""
        exact, rounded = self.high.stems(mix[None])[0], self.low.stems(mix[None])[0]
        return Tried(title, False, crest_factor(mix), *_judged(exact, rounded, mix, scale, self.limit))

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._cleanup.close()


def _judged(
    exact: Float32, rounded: Float32, given: Float32, scale: float, bound: Limit
) -> tuple[float, bool]:
    """The worst SNR of those stems ``[S, C, L]`` that do not pass by the mix, and whether every stem passes."""
    mix = _power(given) * scale**2
    judgements = [
        bound.judge(Powers(_power(stem) * scale**2, _power(low - stem.astype(np.float64)) * scale**2, mix))
        for stem, low in zip(exact, rounded, strict=True)
    ]
    counting = [each.powers.snr for each in judgements if each.passes_by in ("SNR", None)]
    return min(counting, default=math.inf), all(each.passes_by for each in judgements)


def _power(samples: NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        power = float(np.mean(np.square(samples, dtype=np.float64)))
    return power if math.isfinite(power) else math.inf


def _crests(track: Track, manifest: Manifest) -> Iterator[float]:
    for batch in batches(track, manifest):
        for item in batch.mix[: len(batch.segments)]:
            yield crest_factor(item)


def _chosen(track: Track, manifest: Manifest) -> Iterator[tuple[int, Float32]]:
    """Segments of a song ``[C, L]`` with their numbers: some from all over it, and those of the highest crest."""
    crests = list(_crests(track, manifest))
    highest = set(sorted(range(len(crests)), key=crests.__getitem__)[-HIGHEST:])
    number = 0
    for batch in batches(track, manifest):
        for item in batch.mix[: len(batch.segments)]:
            if batch.isolated or number in highest:
                yield number, item.copy()
            number += 1


def _middle(track: Track, manifest: Manifest) -> Float32:
    """Up to ``SECONDS`` of a song ``[C, n]``."""
    frames, wanted = track.statistics.frames, int(SECONDS * manifest.model.sample_rate)
    start = max(frames - wanted, 0) // 2
    held, position = [], 0
    for block in track.blocks():
        lo, hi = max(start - position, 0), min(start + wanted - position, block.shape[1])
        if lo < hi:
            held.append(block[:, lo:hi])
        position += block.shape[1]
    return np.concatenate(held, axis=1)


def store_gate(bundle: Bundle, found: GateCalibration) -> Bundle:
    """Writes a gate into a bundle's folder, in place of an older one.

    Raises:
        UsageError: the bundle is an archive.
        OutputError: it cannot be written; nothing has changed then.
    """
    gates = {**bundle.manifest.gates, found.precision: found.gate}
    return rewrite_bundle(bundle, replace(bundle.manifest, gates=gates))


def print_gate(screen: Console, found: Mapping[str, Any]) -> None:
    """Prints how segments fare by their crest factor, the gate, and what it costs."""
    gate = found["gate"]
    shown = table(
        "crest factor", "segments", "failed", "worst SNR", right=("segments", "failed", "worst SNR")
    )
    for low, high in zip((0, *SHOWN), (*SHOWN, math.inf), strict=True):
        part = [each for each in found["segments"] if low < each["crest"] <= high]
        if part:
            worst = min(math.inf if each["snr"] is None else each["snr"] for each in part)
            failed = str(sum(not each["passes"] for each in part))
            name = f"{low:g} to {high:g}" if math.isfinite(high) else f"above {low:g}"
            shown.add_row(name, str(len(part)), failed, decibels(worst))
    screen.print(shown)
    screen.print(
        f"A segment fails if a stem's error lies neither {found['limit_db']:g} dB below it nor "
        f"{found['limit_db'] + BELOW_MIX_DB:g} dB below the mix. The SNR is that of stems that do not pass by the mix.",
        style="dim", soft_wrap=True,
    )  # fmt: skip
    screen.print(
        f"\n{found['precision']}: segments of a crest factor above {gate['crest']:g} run in float32. "
        f"Of {gate['tried']} segments that a gate made of others lets pass, {gate['missed']} failed.",
        soft_wrap=True,
    )
    for name, share in found["in_float32"].items():
        screen.print(f"{name}: {100 * share:.1f} % of the segments run in float32", soft_wrap=True)
