"""The files that figures are kept in, and what they were measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mrsep_deploy.measuring import surroundings
from mrsep_deploy.measuring.surroundings import load_average

__all__ = ["RESULTS", "ROOT", "load_average", "machine_info", "write_result"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine_info() -> dict[str, object]:
    """The machine, the software and the moment; call it before measuring."""
    return surroundings.machine_info(ROOT)


def write_result(name: str, result: Mapping[str, object]) -> Path:
    """Write ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
