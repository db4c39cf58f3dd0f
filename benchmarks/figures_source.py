"""Where figures of pages come from: result files, and how their machine is called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from machine_info import RESULTS

Result = Mapping[str, Any]
MODELS = {"trained": "HTDemucs, trained", "htdemucs_n": "HTDemucs_n, untrained"}
SOURCES = ("drums", "bass", "other", "vocals")
ENGINES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}


def result(name: str) -> Result:
    """A file of ``benchmarks/results``."""
    found: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def machine(found: Result) -> str:
    """What it was measured on."""
    facts = found["machine"]
    return f"{facts['cores']} cores of an {facts['cpu']}".replace("(R)", "")


def interval(found: Mapping[str, float]) -> str:
    """A ratio with its 95 % interval."""
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
