"""Predicted hazards, for people and for programs: those that are left, and those that a plan averts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from msgspec.structs import asdict as fields_of
from rich.console import Console
from rich.table import Table

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.precision.hazards import KINDS, Hazard, predict
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.precision.ranges import Calibration
from mrsep_deploy.terminal.tables import table

SHOWN = 20
"""Rows of a table; ``--json`` has all."""


@dataclass(frozen=True)
class Prediction:
    """Attributes:
    model, precision: of what was predicted.
    calibration: what it was predicted from.
    left: hazards that the plan leaves.
    averted: those there would be with everything in low precision, and are not.
    """

    model: str
    precision: str
    calibration: Calibration
    left: tuple[Hazard, ...]
    averted: tuple[Hazard, ...]


def prediction(bundle: Bundle, plan: PrecisionPlan, calibration: Calibration) -> Prediction:
    """What a plan leaves and averts in a float32 bundle."""
    left = tuple(predict(bundle, plan, calibration))
    names = {(hazard.stage, hazard.tensor, hazard.kind) for hazard in left}
    every = predict(bundle, replace(plan, rules=(), keep={}), calibration)
    averted = tuple(h for h in every if (h.stage, h.tensor, h.kind) not in names)
    return Prediction(bundle.manifest.name, plan.precision, calibration, left, averted)


def print_prediction(screen: Console, found: Prediction) -> None:
    """Two tables and what their numbers are."""
    signals = found.calibration.signals
    screen.print(f"{found.model}: {found.precision} predicted from float32", style="bold", soft_wrap=True)
    screen.print(f"{sum(signals.values())} batches of segments: {', '.join(signals)}", soft_wrap=True)
    for title, hazards in (("Hazards", found.left), ("Averted by the plan", found.averted)):
        screen.print(f"\n{title}: {len(hazards) or 'none'}", style="bold")
        if hazards:
            screen.print(hazard_table(hazards[:SHOWN]))
        if len(hazards) > SHOWN:
            screen.print(f"and {len(hazards) - SHOWN} more, see --json", style="dim")
    for kind in sorted({hazard.kind for hazard in (*found.left, *found.averted)}, key=list(KINDS).index):
        screen.print(f"{kind}: {KINDS[kind]}.", style="dim", soft_wrap=True)


def hazard_table(hazards: Sequence[Hazard]) -> Table:
    """Stage, node, tensor, what happens to it, and the number that says so."""
    made = table("stage", "node", "tensor", "hazard", "number", right=("number",))
    for hazard in hazards:
        made.add_row(hazard.stage, hazard.node, hazard.tensor, hazard.kind, f"{hazard.number:.3g}")
    return made


def prediction_to_plain(found: Prediction) -> dict[str, object]:
    """As plain values for ``--json``."""
    return {
        "model": found.model,
        "precision": found.precision,
        "signals": dict(found.calibration.signals),
        "hazards": [asdict(hazard) for hazard in found.left],
        "averted": [asdict(hazard) for hazard in found.averted],
        "numbers": dict(KINDS),
        "ranges": {
            stage: {name: fields_of(each) for name, each in tensors.items()}
            for stage, tensors in found.calibration.ranges.items()
        },
    }
