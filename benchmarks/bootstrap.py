"""A virtual environment with this project in it, from nothing but Python and pip.

Standard library only: this runs before anything is installed. The environment is ``.venv`` in the
project's folder; it is made once and brought up to date whenever ``pyproject.toml`` changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
# A plain "torch" means gigabytes of CUDA libraries on some platforms; the exact version is what is tested.
TORCH = "torch==2.13.0"
MINIMUM = (3, 10)
PROJECT = "mrsep-deploy"
_OF_EXTRA = re.compile(
    r"(?P<name>[\w.-]+)(?:\[(?P<extras>[^\]]+)\])?[^;\[]*;\s*extra\s*==\s*[\"'](?P<extra>[\w.-]+)[\"']"
)
"""A requirement of one extra in a distribution's metadata."""


def venv_python() -> Path:
    """The environment's interpreter, whether or not it exists yet."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def enter(extras: str) -> None:
    """Goes on inside the environment, with the given extras installed; returns at once if all of that is so already.

    Args:
        extras: comma-separated, as in ``pip install project[extras]``.
    """
    if sys.version_info < MINIMUM:
        sys.exit(f"Python {sys.version.split()[0]} found, {'.'.join(map(str, MINIMUM))} or newer needed")
    if Path(sys.prefix).resolve() != VENV.resolve():
        _create()
        if not _is_up_to_date(extras):
            _install(extras)
    elif not missing(extras):
        return
    else:
        _install(extras)
        if lacking := missing(extras):
            sys.exit(f"{VENV.name} still lacks {', '.join(lacking)}, which [{extras}] asks for")
    os.environ.pop("PYTHONHOME", None)
    command = [str(venv_python()), *sys.argv]
    # Replacing the process keeps signals and the exit code; Windows has no such thing.
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)


def missing(extras: str) -> list[str]:
    """Returns what this interpreter lacks of the project and of extras: names of distributions, or of extras.

    Versions, and requirements of some systems only, are left to pip.
    """
    try:
        known = metadata(PROJECT).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return [PROJECT]
    lacking = []
    for extra in extras.split(","):
        if extra not in known:
            lacking.append(extra)
            continue
        for found in map(_OF_EXTRA.fullmatch, requires(PROJECT) or []):
            if found is None or found["extra"] != extra:
                continue
            if found["name"] == PROJECT:
                lacking += missing(found["extras"])
            elif not _is_installed(found["name"]):
                lacking.append(found["name"])
    return lacking


def _is_installed(name: str) -> bool:
    try:
        metadata(name)
    except PackageNotFoundError:
        return False
    return True


def _create() -> None:
    if venv_python().exists():
        return
    print(f"Making {VENV.name} with Python {sys.version.split()[0]}", flush=True)
    result = subprocess.run(
        [sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines()
        sys.exit(
            "\n".join(
                ["Python cannot make a virtual environment (on Debian: apt install python3-venv):", *lines]
            )
        )


def _stamp(extras: str) -> tuple[Path, str]:
    """Returns the file that says what these extras were installed by, and what it says if that is today's project."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return VENV / f"installed-{extras.replace(',', '-')}", wanted


def _is_up_to_date(extras: str) -> bool:
    stamp, wanted = _stamp(extras)
    return stamp.exists() and stamp.read_text() == wanted


def _install(extras: str) -> None:
    print(f"Installing {TORCH} and mrsep-deploy[{extras}] (a few minutes the first time)", flush=True)
    pip = [str(venv_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in ([TORCH], ["--editable", f"{ROOT}[{extras}]"]):
        if subprocess.call([*pip, *arguments]):
            sys.exit(f"pip could not install {' '.join(arguments)}; its message is above")
    stamp, wanted = _stamp(extras)
    stamp.write_text(wanted)
