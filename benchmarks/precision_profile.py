"""Where float16 loses the stems that do not pass: each stage alone in float16, on the segments that cost most.

    python benchmarks/precision_profile.py [--threads 2]

Takes the trained HTDemucs and the stems of whole songs that ``precision_trained.json`` says fail. Of each such stem it
finds the ``WORST`` segments with most error, and runs them with one stage after the other in float16 and all others
in float32. Beside it stands what the stem would have if every segment that fails by itself ran in float32, and how
many segments of the song those are. Writes ``benchmarks/results/precision_profile.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures_source
import numpy as np
from assets import songs
from machine_info import machine_info, write_result
from numpy.typing import NDArray
from parity_trained import export_trained

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import STEMS
from mrsep_deploy.measuring.deviation import ratio_db
from mrsep_deploy.measuring.limits import Powers, limit_for
from mrsep_deploy.precision.convert_bundle import VERSION
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.separation.gate import DEFAULT_BURSTINESS, burstiness_of
from mrsep_deploy.separation.segments import SongStatistics, applied
from mrsep_deploy.verification.gate_calibration import Trial
from mrsep_deploy.verification.tracks import Track, batches

NAME = "precision_profile"
WORST = 3

Array = NDArray[Any]


@dataclass(frozen=True)
class Heard:
    """A segment of a song: its mix ``[C, L]``, and mean squares of the mix, and of every stem and its error ``[S]``."""

    number: int
    mix: Array
    power: float
    stems: Array
    errors: Array


class Profile(Trial):
    """The trained model in float32 and in float16, stage by stage."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        super().__init__(bundle, default_plan("float16", bundle.manifest.float32), threads=threads)
        self.manifest = bundle.manifest

    def heard(self, track: Track) -> Iterator[Heard]:
        """The segments of a song that the gate leaves in float16."""
        items = (item for batch in batches(track, self.manifest) for item in batch.mix[: len(batch.segments)])
        for number, item in enumerate(items):
            if burstiness_of(item) <= DEFAULT_BURSTINESS:
                exact, rounded = (chain.stems(item[None])[0] for chain in (self.high, self.low))
                yield Heard(number, item.copy(), _power(item), _powers(exact), _powers(rounded - exact))

    def alone(self, mix: Array) -> dict[str, Array]:
        """Mean squares of every stem's error ``[S]`` with one stage in float16, by stage."""
        exact, stages = self.high.run(mix[None]), self.manifest.stages
        return {
            stage.name: _powers(self._behind(index, exact)[STEMS][0] - exact[STEMS][0])
            for index, stage in enumerate(stages)
            if stage in self.manifest.graph_stages
        }

    def _behind(self, index: int, exact: dict[str, Array]) -> dict[str, Array]:
        stages = self.manifest.stages
        tensors = exact | self.low.stage(stages[index].name, exact)
        return self.high.resume(tensors, stages[index + 1 :])


def _power(samples: Array) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


def _powers(stems: Array) -> Array:
    return np.array([_power(stem) for stem in stems])


def judged(heard: list[Heard], source: int, redone: frozenset[int] = frozenset()) -> dict[str, Any]:
    """A song's stem, of which some segments ran in float32: in dB, and what it passes by."""
    signal, mix = (
        sum(each) for each in zip(*((part.stems[source], part.power) for part in heard), strict=True)
    )
    error = sum(part.errors[source] for part in heard if part.number not in redone)
    found = limit_for("float16").judge(Powers(signal, error, mix))
    return {
        "snr_db": round(found.powers.snr, 1),
        "below_mix_db": round(found.powers.below_mix, 1),
        "passes_by": found.passes_by,
    }


def failing(heard: list[Heard], count: int) -> frozenset[int]:
    """Numbers of the segments in which a stem fails by itself, as a song's would."""
    limit = limit_for("float16")
    return frozenset(
        part.number
        for part in heard
        if any(
            limit.judge(Powers(part.stems[source], part.errors[source], part.power)).passes_by is None
            for source in range(count)
        )
    )


def measured(profile: Profile, track: Track, source: str) -> dict[str, Any]:
    """One stem of a song."""
    sources = profile.manifest.model.sources
    index, heard = sources.index(source), list(profile.heard(track))
    redone = failing(heard, len(sources))
    worst = sorted(heard, key=lambda part: -float(part.errors[index]))[:WORST]
    return {
        "segments": len(heard),
        "in_float16": judged(heard, index),
        "failing_segments": len(redone),
        "with_those_in_float32": judged(heard, index, redone),
        "worst": [
            {
                "segment": part.number + 1,
                "stem_below_mix_db": round(ratio_db(part.power, part.stems[index]), 1),
                "below_mix_db": round(ratio_db(part.power, part.errors[index]), 1),
                "alone_below_mix_db": {
                    stage: round(ratio_db(part.power, errors[index]), 1)
                    for stage, errors in profile.alone(part.mix).items()
                },
            }
            for part in worst
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="the trained HTDemucs, if it is exported already"
    )
    parser.add_argument("--threads", type=int, default=2)
    asked, machine = parser.parse_args(), machine_info()
    tracks = figures_source.result("precision_trained")["models"]["htdemucs"]
    found = []
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-profile-") as folder:
        bundle = Bundle.open(asked.bundle or export_trained(Path(folder) / "trained", "split"))
        profile = Profile(bundle, asked.threads)
        with profile:
            for song in songs():
                statistics = applied(SongStatistics.measure(song.blocks()), profile.application)
                for source, stem in tracks[song.name]["stems"].items():
                    if stem["passes_by"] is None:
                        entry = measured(profile, Track(song.name, statistics, song.blocks), source)
                        found.append({"song": song.name, "source": source, **entry})
                        print(found[-1], flush=True)
    print(write_result(NAME, {"machine": machine, "conversion": VERSION, "stems": found}))


if __name__ == "__main__":
    main()
