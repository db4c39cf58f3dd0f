"""The project and a folder of wheels on a machine where neither is installed. Standard library only.

The packages ``mrsep_deploy.export`` and ``mrsep_deploy.engines`` lie in the top folders ``export`` and
``engines``; an installation maps them. Without one, a copy in the installed form does.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "mrsep_deploy": "mrsep_deploy",
    "mrsep_deploy/export": "export",
    "mrsep_deploy/engines": "engines",
}
"""Place of each package in the installed form, and the folder of the checkout it comes from."""


class SetUpError(RuntimeError):
    """Acceptance cannot begin; the message is one line."""


def map_project(target: Path) -> Path:
    """Copy the packages to ``target`` as an installation would lay them out.

    Returns:
        What to put on ``sys.path``.
    """
    for place, folder in PACKAGES.items():
        shutil.copytree(
            ROOT / folder, target / place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    return target


def install_wheels(wheels: Path, target: Path) -> list[str]:
    """Install every wheel of a folder to a private folder, from nowhere else and without what they need.

    Returns:
        The names of the wheels' files.

    Raises:
        SetUpError: there is no wheel, or pip fails.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise SetUpError(f"there is no wheel in {wheels}; make the folder with: gpu_acceptance.py prepare")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    more = ["--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(target)]
    done = subprocess.run([*pip, *more, *map(str, files)], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["pip gave no reason"]
        raise SetUpError(f"pip cannot install the wheels: {lines[-1]}")
    return [file.name for file in files]


def environment(mapped: Path, site: Path, home: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a process that measures.

    Args:
        mapped: the project in its installed form.
        site: what the wheels were installed to; it comes before what Python itself has.
        home: where engines are cached, so that nothing built earlier is taken for this machine's.
        given: the variables to start from.
    """
    folders = [str(mapped), str(site), str(ROOT / "benchmarks")]
    return {
        **given,
        "PYTHONPATH": os.pathsep.join(folders),
        "MRSEP_DEPLOY_HOME": str(home),
        "PYTHONSAFEPATH": "1",  # the checkout, where this may be run, holds the project unmapped
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def cuda_problem() -> str | None:
    """Why this machine has no GPU to accept, asked of the driver itself; None if it has one."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"there is no NVIDIA driver here ({name} cannot be loaded)"
    code = driver.cuInit(0)
    if code:
        return f"the NVIDIA driver does not start (cuInit returned {code})"
    count = ctypes.c_int(0)
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    return None if code == 0 and count.value else "the NVIDIA driver finds no GPU"
