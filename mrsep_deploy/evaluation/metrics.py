"""Two definitions of the signal-to-distortion ratio, in dB.

museval   BSS Eval version 4 (Stöter, Liutkus, Ito: "The 2018 Signal Separation Evaluation Campaign"), by
          the package museval: windows of 1 s without overlap, one set of distortion filters for the track,
          no permutation; of a track the median over its windows
mdx       the Music Demixing Challenge 2021 (Mitsufuji et al., 2022): 10 lg of the stem's energy over the
          error's, over all samples and channels of the track, 1e-7 added to both
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.errors import EvaluationError
from mrsep_deploy.measuring.deviation import ratio_db

Float32 = NDArray[np.float32]

INSTALL = 'pip install "mrsep-deploy[eval]"'
MDX_EPSILON = 1e-7


@dataclass(frozen=True)
class BssScore:
    """Medians over the windows of a track, in dB: distortion, spatial, interference, artefacts."""

    sdr: float
    isr: float
    sir: float
    sar: float


def mdx_sdr(estimate: Float32, truth: Float32) -> float:
    """``10 lg((sum truth² + 1e-7) / (sum (truth - estimate)² + 1e-7))`` of one stem ``[C, samples]``."""
    exact = truth.astype(np.float64)
    signal = float(np.sum(np.square(exact)))
    distortion = float(np.sum(np.square(exact - estimate)))
    return ratio_db(signal + MDX_EPSILON, distortion + MDX_EPSILON)


def bss_eval(
    estimates: Mapping[str, Float32], truth: Mapping[str, Float32], sample_rate: int
) -> dict[str, BssScore | None]:
    """BSS Eval of one track, as the field reports it.

    Args:
        estimates, truth: stems ``[C, samples]`` by source, of the same length.
        sample_rate: samples in a window.

    Returns:
        Scores by source. None for a source that is digital silence all through the track, in truth or as
        estimate, where the ratios are not defined: it takes no part. A window in which any other source is
        silent does not count for any of them; None, too, if that leaves no window.

    Raises:
        EvaluationError: museval is not installed.
    """
    metrics = museval_metrics()
    scored = [source for source in truth if np.any(truth[source]) and np.any(estimates[source])]
    scores: dict[str, BssScore | None] = dict.fromkeys(truth)
    if not scored:
        return scores
    windows = metrics.bss_eval(
        np.stack([truth[source].T for source in scored]).astype(np.float64),
        np.stack([estimates[source].T for source in scored]).astype(np.float64),
        window=sample_rate,
        hop=sample_rate,
        compute_permutation=False,
        framewise_filters=False,
        bsseval_sources_version=False,
    )[:4]
    for index, source in enumerate(scored):
        values = [ratio[index] for ratio in windows]
        if not np.all(np.isnan(values[0])):
            scores[source] = BssScore(*(float(np.nanmedian(ratio)) for ratio in values))
    return scores


@cache
def museval_metrics() -> ModuleType:
    """The module ``museval.metrics``.

    Its file is loaded by itself: ``import museval`` imports the reader of MUSDB18 too, which refuses to be
    imported where the programs ffmpeg and ffprobe are missing, and the metrics need neither.

    Raises:
        EvaluationError: museval is not installed.
    """
    found = importlib.util.find_spec("museval")
    places = list(found.submodule_search_locations or []) if found else []
    path = Path(places[0]) / "metrics.py" if places else None
    spec = importlib.util.spec_from_file_location("museval.metrics", path) if path else None
    if spec is None or spec.loader is None:
        raise EvaluationError(
            "the metric museval needs the package museval, not installed here",
            f"Run {INSTALL}, or choose --metric mdx",
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
