"""Describes where something was measured: machine, software, commit, moment. No names of hosts, no paths."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import mrsep_deploy
from mrsep_deploy.process.machine import cpu_budget, cpu_model

ROOT = Path(mrsep_deploy.__file__).resolve().parents[1]
DISTRIBUTIONS = (
    "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-libs", "numpy",
    "scipy", "onnx", "demucs", "nvidia-ml-py",
)  # fmt: skip


def machine_info(root: Path = ROOT) -> dict[str, object]:
    """Returns the machine, the software with the commit of the clone at ``root``, and the moment.

    Call it before measuring: ``load_before`` shows whether the machine was quiet.
    """
    return {
        "cpu": cpu_model(),
        "cores": cpu_budget(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"mrsep-deploy": mrsep_deploy.__version__, **_versions()},
        "commit": commit(root),
        "load_before": load_average(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _memory_gib() -> float | None:
    """Returns the memory of the machine, or None where the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def load_average() -> float | None:
    """Returns the number of processes ready to run, averaged over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str]:
    """Returns the versions of the installed packages that decide how fast something is."""
    installed = {name: list(importlib.metadata.distributions(name=name)) for name in DISTRIBUTIONS}
    return {name: found[0].version for name, found in installed.items() if found}


def commit(root: Path = ROOT) -> str | None:
    """Returns the commit, with ``+`` where files differ from it; None where ``root`` is no clone."""
    if not (root / ".git").exists():
        return None  # installed, perhaps below the clone of something else

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout

    try:
        head = git("rev-parse", "--short=12", "HEAD").strip()
        # A result that is being replaced does not make the code another one.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")
