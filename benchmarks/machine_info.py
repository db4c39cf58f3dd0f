"""What a figure was measured on, and the files figures are kept in."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import mrsep_deploy
from mrsep_deploy.machine import cpu_budget, cpu_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_DISTRIBUTIONS = ("torch", "onnxruntime", "openvino", "numpy", "scipy", "onnx", "demucs")


def machine_info() -> dict[str, object]:
    """The machine, the software and the moment; neither names of hosts nor paths.

    Call it before measuring: ``load_before`` tells whether the machine was quiet.
    """
    return {
        "cpu": cpu_model(),
        "cores": cpu_budget(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"mrsep-deploy": mrsep_deploy.__version__, **_versions()},
        "commit": commit(),
        "load_before": load_average(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def memory_gib() -> float | None:
    """Memory of the machine, or None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def commit() -> str | None:
    """The commit, with ``+`` where files differ from it; None outside a repository."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    # A result that is being replaced does not make the code another one.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    installed = {name: list(importlib.metadata.distributions(name=name)) for name in _DISTRIBUTIONS}
    return {name: found[0].version for name, found in installed.items() if found}


def write_result(name: str, result: Mapping[str, object]) -> Path:
    """Write ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
