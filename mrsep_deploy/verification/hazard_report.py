"""Predicted hazards, for people and for programs: those that are left, and those that a plan averts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec.structs import asdict as fields_of
from rich.console import Console

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.files.strict_json import plain
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
    left: Sequence[Hazard]
    averted: Sequence[Hazard]

    def to_plain(self) -> Any:
        """Returns plain values for ``--json``."""
        return plain(
            {
                "model": self.model,
                "precision": self.precision,
                "signals": self.calibration.signals,
                "hazards": self.left,
                "averted": self.averted,
                "numbers": KINDS,
                "ranges": {
                    stage: {name: fields_of(each) for name, each in tensors.items()}
                    for stage, tensors in self.calibration.ranges.items()
                },
            }
        )


def prediction(bundle: Bundle, plan: PrecisionPlan, calibration: Calibration) -> Prediction:
    """Returns what a plan leaves and averts in a float32 bundle."""
    left = predict(bundle, plan, calibration)
    names = {(hazard.stage, hazard.tensor, hazard.kind) for hazard in left}
    every = predict(bundle, replace(plan, rules=(), keep={}), calibration)
    averted = [hazard for hazard in every if (hazard.stage, hazard.tensor, hazard.kind) not in names]
    return Prediction(bundle.manifest.name, plan.precision, calibration, left, averted)


def print_prediction(screen: Console, found: Prediction) -> None:
    """Prints two tables and what their numbers are."""
    signals = found.calibration.signals
    screen.print(f"{found.model}: {found.precision} predicted from float32", style="bold", soft_wrap=True)
    screen.print(f"{sum(signals.values())} batches of segments: {', '.join(signals)}", soft_wrap=True)
    for title, hazards in (("Hazards", found.left), ("Averted by the plan", found.averted)):
        screen.print(f"\n{title}: {len(hazards) or 'none'}", style="bold")
        if hazards:
            shown = table("stage", "node", "tensor", "hazard", "number", right=("number",))
            for each in hazards[:SHOWN]:
                shown.add_row(each.stage, each.node, each.tensor, each.kind, f"{each.number:.3g}")
            screen.print(shown)
        if len(hazards) > SHOWN:
            screen.print(f"and {len(hazards) - SHOWN} more, see --json", style="dim")
    kinds = {hazard.kind for hazard in (*found.left, *found.averted)}
    for kind, number in KINDS.items():
        if kind in kinds:
            screen.print(f"{kind}: {number}.", style="dim", soft_wrap=True)
