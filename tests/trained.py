"""The trained model as tests use it: its bundles and its reference, each made once a run of the tests."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import once
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Layout

# What fetches and measures belongs to the benchmarks, which publish the same figures.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import assets
import parity_trained
import precision_goldens


@functools.cache
def trained_bundle(layout: Layout) -> Path:
    """The bundle of the trained HTDemucs."""
    return once.made(f"trained/{layout}", lambda path: parity_trained.export_trained(path.parent, layout))


@functools.cache
def trained_in_float16() -> Path:
    """The same by the default plan."""
    bundle = Bundle.open(trained_bundle("split"))
    return once.made("trained/float16", lambda path: precision_goldens.halved(bundle, path))


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
    return once.computed("trained/excerpt", lambda: parity_trained.separate_published(excerpt_mix()))
