"""The trained model as tests use it: exported once for a run of the tests, its reference computed once."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.verification.results import Verification

# What fetches and measures belongs to the benchmarks, which publish the same figures.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import assets
import parity_trained
import precision_goldens

# Deleted when the tests end.
_folder = tempfile.TemporaryDirectory(prefix="mrsep-deploy-trained-")


@functools.cache
def trained_bundle(layout: Layout) -> Path:
    """The bundle of the trained HTDemucs."""
    return parity_trained.export_trained(Path(_folder.name), layout)


@functools.cache
def excerpt_stems() -> dict[str, NDArray[np.float32]]:
    """The true stems of the excerpt."""
    return assets.read_excerpt()


def excerpt_mix() -> NDArray[np.float32]:
    """The excerpt: the sum of its true stems, ``[2, samples]``."""
    mix: NDArray[np.float32] = np.sum(list(excerpt_stems().values()), axis=0, dtype=np.float32)
    return mix


@functools.cache
def excerpt_reference() -> dict[str, NDArray[Any]]:
    """What the published demucs makes of the excerpt, in float64."""
    return parity_trained.separate_published(excerpt_mix())


def excerpt_in_float16() -> Verification:
    """The trained model by the default plan, on the excerpt, against float32."""
    bundle = Bundle.open(trained_bundle("split"))
    with tempfile.TemporaryDirectory(dir=_folder.name) as work:
        pair = precision_goldens.Pair(bundle, Path(work) / "low", 0)
        return pair.verify([precision_goldens.excerpt_track()])
