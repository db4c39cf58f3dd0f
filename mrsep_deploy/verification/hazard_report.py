"""Predicted hazards, as plain values and for people: those that are left, and those that a plan averts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msgspec.structs import asdict as fields_of
from rich.console import Console

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.precision.hazards import predict
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.precision.proof_record import KINDS
from mrsep_deploy.precision.ranges import Calibration
from mrsep_deploy.terminal.tables import table

SHOWN = 20
"""Rows of a table; ``--json`` has all."""


def prediction(bundle: Bundle, plan: PrecisionPlan, calibration: Calibration) -> dict[str, Any]:
    """Returns, as plain values, the hazards that a plan leaves in a float32 bundle, and those that it averts.

    These there would be with everything in low precision. The infinite error of a constant beyond the largest number
    is None.
    """
    left = predict(bundle, plan, calibration)
    names = {(hazard.stage, hazard.tensor, hazard.kind) for hazard in left}
    every = predict(bundle, replace(plan, rules=(), keep={}), calibration)
    made: dict[str, Any] = plain(
        {
            "model": bundle.manifest.name,
            "precision": plan.precision,
            "signals": calibration.signals,
            "hazards": left,
            "averted": [each for each in every if (each.stage, each.tensor, each.kind) not in names],
            "numbers": KINDS,
            "ranges": {
                stage: {name: fields_of(each) for name, each in tensors.items()}
                for stage, tensors in calibration.ranges.items()
            },
        }
    )
    return made


def print_prediction(screen: Console, found: Mapping[str, Any]) -> None:
    """Prints two tables and what their numbers are."""
    signals = found["signals"]
    screen.print(
        f"{found['model']}: {found['precision']} predicted from float32", style="bold", soft_wrap=True
    )
    screen.print(f"{sum(signals.values())} batches of segments: {', '.join(signals)}", soft_wrap=True)
    for title, hazards in (("Hazards", found["hazards"]), ("Averted by the plan", found["averted"])):
        screen.print(f"\n{title}: {len(hazards) or 'none'}", style="bold")
        if hazards:
            shown = table("stage", "node", "tensor", "hazard", "number", right=("number",))
            for each in hazards[:SHOWN]:
                number = math.inf if each["number"] is None else each["number"]
                shown.add_row(each["stage"], each["node"], each["tensor"], each["kind"], f"{number:.3g}")
            screen.print(shown)
        if len(hazards) > SHOWN:
            screen.print(f"and {len(hazards) - SHOWN} more, see --json", style="dim")
    kinds = {each["kind"] for each in (*found["hazards"], *found["averted"])}
    for kind, number in found["numbers"].items():
        if kind in kinds:
            screen.print(f"{kind}: {number}.", style="dim", soft_wrap=True)
