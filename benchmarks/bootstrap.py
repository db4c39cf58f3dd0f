"""A virtual environment with this project in it, from nothing but Python and pip.

Standard library only: this runs before anything is installed. The environment is ``.venv`` in the
project's folder; it is made once and brought up to date whenever ``pyproject.toml`` changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
# A plain "torch" means gigabytes of CUDA libraries on some platforms; the exact version is what is tested.
TORCH = "torch==2.13.0"
MINIMUM = (3, 10)


def venv_python() -> Path:
    """The environment's interpreter, whether or not it exists yet."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def enter(extras: str) -> None:
    """Go on inside the environment, with the given extras installed; returns at once if already there.

    Args:
        extras: comma-separated, as in ``pip install project[extras]``.
    """
    if sys.version_info < MINIMUM:
        sys.exit(f"Python {sys.version.split()[0]} found, {'.'.join(map(str, MINIMUM))} or newer needed")
    if Path(sys.prefix).resolve() != VENV.resolve():
        _create()
        _install(extras)
        os.environ.pop("PYTHONHOME", None)
        command = [str(venv_python()), *sys.argv]
        # Replacing the process keeps signals and the exit code; Windows has no such thing.
        if os.name == "nt":
            sys.exit(subprocess.call(command))
        os.execv(command[0], command)


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


def _install(extras: str) -> None:
    stamp = VENV / f"installed-{extras.replace(',', '-')}"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Installing {TORCH} and mrsep-deploy[{extras}] (a few minutes the first time)", flush=True)
    pip = [str(venv_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in ([TORCH], ["--editable", f"{ROOT}[{extras}]"]):
        if subprocess.call([*pip, *arguments]):
            sys.exit(f"pip could not install {' '.join(arguments)}; its message is above")
    stamp.write_text(wanted)
