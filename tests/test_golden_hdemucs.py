"""Whole songs of HDemucs and Demucs are those of the package demucs in float64, alone and as a bag of four kinds.

demucs runs these models at whatever length a segment has; a bundle has one. Only the last segment of a song is
shorter: a bundle takes it in the song around it, as demucs does with models of a fixed length, and so does the
reference here. What comes before that segment is compared with the golden songs as well. Songs in lower precision are
compared with those of the float32 bundle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import once
import pytest
import torch
from goldens import Export, Lower
from numpy.typing import NDArray
from quiet_torch import quiet_torch

from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.limits import limit_for
from mrsep_deploy.precision.convert_bundle import convert_report
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.separation.bag import Bag, BagSeparator
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.stream import Song, SongStatistics, stems_of

__all__ = ["quiet_torch"]

pytest.importorskip("demucs", reason="the published reference; pip install demucs==4.1.0")
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "golden" / "hdemucs"
RUNS: dict[str, list[tuple[Layout, str, int]]] = {
    "hdemucs": [("split", "ort", 1), ("split", "openvino", 4), ("whole", "ort", 4)],
    "hdemucs_old": [("split", "ort", 4), ("split", "openvino", 1)],
    "hdemucs_multi": [("split", "ort", 1), ("split", "openvino", 4)],
    "demucs": [("split", "ort", 1), ("split", "openvino", 4), ("whole", "openvino", 1)],
}
CASES = [(name, *run) for name, runs in RUNS.items() for run in runs]
Array = NDArray[Any]


@pytest.fixture
def export(exports: Export) -> Export:
    """A function that gives the bundle of a golden checkpoint."""
    return lambda name, layout: exports(f"hdemucs/{name}", layout)


def golden(name: str) -> tuple[Array, Array, float]:
    """Mix ``[C, L]``, stems ``[S, C, L]`` and overlap."""
    with np.load(FOLDER / f"song_{name}.npz") as arrays:
        return arrays["mix"], arrays["stems"], float(arrays["overlap"])


def published(name: str, dtype: torch.dtype) -> torch.nn.Module:
    """The published model, which takes every segment at the length of a whole one."""
    package = torch.load(FOLDER / f"{name}.th", "cpu", weights_only=False)
    model = package["klass"](*package["args"], **package["kwargs"])
    model.load_state_dict({key: value.float() for key, value in package["state"].items()})
    length = int(model.segment * model.samplerate)
    whole = model.valid_length(length) if hasattr(model, "valid_length") else length
    model.valid_length = lambda _length: whole
    result: torch.nn.Module = model.to(dtype).eval()
    return result


def separated(models: Sequence[str], mix: Array, overlap: float, dtype: torch.dtype) -> Array:
    """What demucs makes of a song with a model, or a bag of several, ``[S, C, L]``."""
    from demucs.apply import BagOfModels, apply_model

    torch.set_default_dtype(dtype)  # of the windows that the published code makes
    try:
        bag = BagOfModels([published(name, dtype) for name in models])
        song = torch.from_numpy(mix).to(dtype)
        mean, std = song.mean(0).mean(), song.mean(0).std() + 1e-8
        stems = apply_model(bag, ((song - mean) / std)[None], shifts=0, overlap=overlap)[0]
        found: Array = (stems * std + mean).double().numpy()
        return found
    finally:
        torch.set_default_dtype(torch.float32)


def limit(found: Array, exact: Array) -> float:
    """1e-5, or three times what PyTorch's own float32 loses where that is more: phases of what is almost silent do."""
    return max(1e-5, 3 * Deviation.between(found, exact).relative)


def reference(*names: str) -> tuple[Array, float]:
    """The exact stems for models, and what of them may be lost."""

    def compute() -> dict[str, Array]:
        mix, _, overlap = golden(names[0])
        return {str(dtype): separated(names, mix, overlap, dtype) for dtype in (torch.float64, torch.float32)}

    exact, single = once.computed(f"references/{'+'.join(names)}", compute).values()
    return exact, limit(single, exact)


@pytest.mark.parametrize(("name", "layout", "engine", "batch"), CASES)
def test_song(export: Export, name: str, layout: Layout, engine: str, batch: int) -> None:
    mix, stems, overlap = golden(name)
    exact, allowed = reference(name)
    bundle = export(name, layout).at_batch(batch)
    with Separator(bundle, engine=engine, threads=1, overlap=overlap) as separator:
        found = np.stack(list(separator.separate(mix).values()))
        stride = separator.stride
    assert Deviation.between(found, exact).relative <= allowed
    last = (mix.shape[1] - 1) // stride * stride
    assert last > mix.shape[1] // 2
    assert Deviation.between(found[..., :last], stems[..., :last]).relative <= allowed


def test_a_bag_of_all_kinds(export: Export) -> None:
    names = tuple(RUNS)
    mix, _, overlap = golden(names[0])
    exact, allowed = reference(*names)
    weights = ((1.0,) * 2,) * len(names)
    bag = Bag("all", tuple(export(name, "split") for name in names), weights)
    with BagSeparator(bag, range(2), engine="ort", threads=1, overlap=overlap) as separator:
        song = Song(SongStatistics.measure([mix]), [mix])
        found = np.concatenate(list(stems_of(separator.separate_songs([song]))), axis=-1)
    assert Deviation.between(found, exact).relative <= allowed


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", RUNS)
def test_in_lower_precision(export: Export, lowered: Lower, name: str, precision: Low) -> None:
    """As songs of trained models pass, though the weights are random: at worst 69.4 dB in float16, 53.0 in bfloat16."""
    mix, _, overlap = golden(name)
    bundle = export(name, "split")
    plan = default_plan(precision, bundle.manifest.float32)
    assert not any(graph.unmatched for graph in convert_report(bundle, plan).values())
    stems: list[dict[str, Array]] = []
    for each in (bundle, lowered(f"hdemucs/{name}", precision)):
        with Separator(each, engine="ort", threads=1, overlap=overlap, gate=math.inf) as separator:
            stems.append(separator.separate(mix))
    exact, low = stems
    for source, stem in exact.items():
        assert Deviation.between(low[source], stem).snr >= limit_for(precision).decibels
