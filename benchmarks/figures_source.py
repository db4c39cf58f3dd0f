"""Where figures of pages come from: result files, and how their machine is called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from machine_info import RESULTS

Result = Mapping[str, Any]


def result(name: str) -> Result:
    """A file of ``benchmarks/results``."""
    found: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def machine(found: Result) -> str:
    """What it was measured on."""
    facts = found["machine"]
    return f"{facts['cores']} cores of an {facts['cpu']}".replace("(R)", "")
