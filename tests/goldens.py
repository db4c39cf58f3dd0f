"""Bundles of the golden checkpoints, each exported and converted once a run of the tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import once
import pytest
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.precision.names import Low

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

Lower = Callable[..., Bundle]
"""``lower(name, precision="float16", layout="split")``, see :func:`lowered`."""


@pytest.fixture(scope="session")
def exports() -> Export:
    """A function that gives the bundle of a golden checkpoint; bundles are shared, so do not change them."""
    return _exported


@pytest.fixture(scope="session")
def lowered() -> Lower:
    """The same for bundles of lower precision, converted by the default plan."""
    return _lowered


@functools.cache
def _exported(name: str, layout: Layout = "split") -> Bundle:
    from mrsep_deploy.export.exporter import ExportOptions, export_model
    from mrsep_deploy.export.load import load_model

    def export(path: Path) -> None:
        export_model(load_model(checkpoint(name)), Path(name).name, path, ExportOptions(layout))

    return Bundle.open(once.made(f"{name}-{layout}", export))


@functools.cache
def _lowered(name: str, precision: Low = "float16", layout: Layout = "split") -> Bundle:
    from mrsep_deploy.precision.convert_bundle import convert_bundle
    from mrsep_deploy.precision.plan import default_plan

    bundle = _exported(name, layout)
    plan = default_plan(precision, bundle.manifest.float32)
    return Bundle.open(
        once.made(f"{name}-{layout}-{precision}", lambda path: convert_bundle(bundle, plan, path))
    )
