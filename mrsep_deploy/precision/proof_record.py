"""What a converted bundle records of its proof: SNR on the probe, and the hazards that its plan leaves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.bundle.provenance import within
from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.files.typed_json import typed
from mrsep_deploy.precision.names import Low

LEAST_DB = 40.0
"""A stage below it is warned of: well below what the rules leave (50 dB and more), well above what breaks."""

EXACT_DB = 120.0
"""Results that are nearer than float32 tells apart count as exact; opposites of it as nothing but error."""

ONE_ROUNDING_DB: dict[Low, float] = {"float16": 71.0, "bfloat16": 52.9}
"""What one rounding leaves: 6.02 dB for each of 11 and 8 bits, and 4.8 dB as errors are uniform within half a step."""

LARGEST: dict[Low, float] = {"float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127}
"""The largest number of each type."""

Kind = Literal["overflow", "near overflow", "underflow", "constant", "cancellation"]
KINDS: dict[Kind, str] = {
    "overflow": "largest magnitude, beyond the largest number",
    "near overflow": "largest magnitude, within a factor of four of the largest number",
    "underflow": "RMS of the quietest segment, below the smallest normal number: bits are lost, or all of it",
    "constant": "relative error of a constant that does not survive rounding",
    "cancellation": "times that rounding errors of the factors are amplified, because terms cancel",
}
"""What the number beside each kind of hazard is."""


@dataclass(frozen=True)
class Hazard:
    """One tensor or constant that a node of low precision computes or reads.

    Attributes:
        node: the first node of low precision that is concerned.
        number: see ``KINDS``; None where it is infinite.
        signals: what it was found on: ``probe``, ``calibration``, or ``graph`` for what holds on any signal.
    """

    stage: str
    node: str
    tensor: str
    kind: Kind
    number: float | None
    signals: Literal["probe", "calibration", "graph"] = "calibration"


@dataclass(frozen=True)
class StageProof:
    """The SNR in dB of a stage's worst output, on exact inputs; below ``LEAST_DB``, the node that loses most."""

    snr_db: float
    weakest: str | None = None


@dataclass(frozen=True)
class Proof:
    """What a conversion costs on the probe, in dB against the float32 graphs, from -``EXACT_DB`` to ``EXACT_DB``.

    Attributes:
        stages: by graph stage.
        stems: SNR of every source, through all stages.
        hazards: what may break on other signals: overflow, a margin of less than four, and lost constants.
        signal: the probe, in words.
    """

    stages: Mapping[str, StageProof]
    stems: Mapping[str, float]
    hazards: tuple[Hazard, ...] = ()
    signal: str = "seeded music-like probe, one segment, every rounding emulated; SNR in dB against float32"

    def to_json(self) -> dict[str, object]:
        """Returns the proof as the ``checks`` of a manifest."""
        made: dict[str, object] = plain(self)
        return made

    def warnings(self, precision: Low) -> list[str]:
        """Returns a line for every stage that loses too much, and for every stage's hazards of one kind."""
        lines = [
            f"stage {name} keeps {stage.snr_db:.0f} dB on the probe, expected at least {LEAST_DB:.0f}; most is lost "
            f"at {stage.weakest}"
            for name, stage in self.stages.items()
            if stage.snr_db < LEAST_DB
        ]
        groups: dict[tuple[str, str, str], list[Hazard]] = {}
        for hazard in self.hazards:
            groups.setdefault((hazard.stage, hazard.kind, hazard.signals), []).append(hazard)
        return lines + [_line(group, LARGEST[precision]) for group in groups.values()]


def _line(hazards: list[Hazard], largest: float) -> str:
    """The worst of the hazards of one stage and kind, and how many more there are."""
    worst, stage = hazards[0], f"stage {hazards[0].stage}"
    more = f", and {len(hazards) - 1} more there" if len(hazards) > 1 else ""
    signals = {"probe": "on the probe", "calibration": "by the calibrated ranges", "graph": ""}[worst.signals]
    if worst.kind == "constant":
        return f"{stage} loses the constant {worst.tensor} at {worst.node}{more}"
    beyond = "overflows" if worst.kind == "overflow" else "comes near overflow"
    return f"{stage} {beyond} at {worst.node}: {worst.number:.3g} {signals}, the largest number is {largest:.3g}{more}"


def read_proof(manifest: Manifest) -> Proof | None:
    """Reads the proof in a converted bundle's ``checks``; any other bundle has none."""
    if within(manifest.provenance, "precision") is None:
        return None
    with suppress(FormatError):
        return typed(manifest.checks, Proof, "checks", "")
    return None
