"""Bundles of the golden checkpoints, each exported once a session, whoever asks and in whatever process.

Processes of one session (pytest-xdist) share the folder; a lock for each bundle lets the first one export
while the others wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Layout

FOLDER = Path(__file__).parent / "golden"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.th")))
SONGS = {"htdemucs": "song_htdemucs", "htdemucs_n": "song_htdemucs_n", "htdemucs_nf": "song_htdemucs_nf"}
"""Whole songs, by the golden checkpoint that separated them."""


@dataclass(frozen=True)
class Golden:
    """A mix ``[C, L]`` and its exact stems ``[S, C, L]``; for a song, with the overlap of its segments."""

    mix: NDArray[np.float32]
    stems: NDArray[np.float32]
    overlap: float | None = None


def checkpoint(name: str) -> Path:
    """A package, or a state dict with its configuration beside it."""
    return next(path for suffix in (".th", ".ckpt") if (path := FOLDER / f"{name}{suffix}").exists())


def golden(name: str) -> Golden:
    """The reference of that name, of a checkpoint or of a song."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        overlap = float(arrays["overlap"]) if "overlap" in arrays else None
        return Golden(arrays["mix"], arrays["stems"], overlap)


Export = Callable[..., Bundle]
"""``export(name, layout="split")``, see :func:`exports`."""


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A function that gives the bundle of a golden checkpoint; bundles are shared, so do not change them."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder of its own below the session's
    folder = base / "goldens"
    folder.mkdir(exist_ok=True)
    opened: dict[str, Bundle] = {}

    def export(name: str, layout: Layout = "split") -> Bundle:
        key = f"{name}-{layout}"
        if key not in opened:
            (folder / key).parent.mkdir(exist_ok=True)  # of a name with a folder before it
            with FileLock(folder / f"{key}.lock"):
                if not (folder / key).exists():
                    _export(name, folder / key, layout)
            opened[key] = Bundle.open(folder / key)
        return opened[key]

    return export


def _export(name: str, target: Path, layout: Layout) -> None:
    from mrsep_deploy.export.exporter import ExportOptions, export_model
    from mrsep_deploy.export.load import load_model

    export_model(load_model(checkpoint(name)), Path(name).name, target, ExportOptions(layout))
