"""What takes long to make is made once a run of the tests, by whichever of its processes asks first.

The processes of a run (pytest-xdist) share a folder; a lock for each thing in it lets the first one make it while the
others wait. The folder goes when the run ends: the next one makes everything again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

_FOLDER = "TESTS_OF_MRSEP_DEPLOY"
"""The environment variable that tells workers where. Those that begin with MRSEP_DEPLOY are options of the program."""


def begin() -> None:
    """Makes the folder of a run; its first process does that."""
    os.environ[_FOLDER] = tempfile.mkdtemp(prefix="mrsep-deploy-tests-")


def end() -> None:
    """Deletes the folder of a run."""
    shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)


def made(name: str, make: Callable[[Path], object]) -> Path:
    """The shared file or folder of that name, which ``make`` is given the path to write it at. Do not change it."""
    path = Path(os.environ[_FOLDER]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as work:
                make(Path(work) / path.name)
                os.replace(Path(work) / path.name, path)
    return path


def computed(name: str, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The shared arrays of that name, which ``compute`` gives."""

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # a name without a suffix gets one
            np.savez(file, **compute())

    with np.load(made(name, write)) as arrays:
        return dict(arrays)


def number(name: str, compute: Callable[[], float]) -> float:
    """The shared number of that name."""
    return float(computed(name, lambda: {"number": np.float64(compute())})["number"])
