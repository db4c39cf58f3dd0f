"""Energy ratios in dB, and the stem that stands for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mrsep_deploy.measuring.deviation import Deviation, level_db, ratio_db
from mrsep_deploy.measuring.limits import worst_stem


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (1.0, math.inf, -math.inf),
    ],
)
def test_a_ratio_of_energies(signal: float, noise: float, expected: float) -> None:
    assert ratio_db(signal, noise) == pytest.approx(expected)


def test_a_deviation_is_that_ratio() -> None:
    samples = np.random.default_rng(0).standard_normal(1000)
    error = 1e-3 * np.random.default_rng(1).standard_normal(1000)
    expected = ratio_db(float(np.square(samples).sum()), float(np.square(error).sum()))
    assert Deviation.between(samples + error, samples).snr == pytest.approx(expected)
    assert Deviation.between(samples, samples).snr == math.inf
    assert Deviation.between(np.full(3, np.nan), np.ones(3)).snr == -math.inf


def test_levels() -> None:
    assert level_db(np.full((2, 8), 0.1, np.float32)) == pytest.approx(-20)
    assert level_db(np.zeros(8)) == -math.inf


def test_quiet_stems_are_never_the_worst() -> None:
    snr = {"drums": 102.6, "bass": 110.0, "vocals": 93.8}
    assert worst_stem(snr, {"drums": 100.0, "bass": 100.0, "vocals": None}) == "drums"
    assert worst_stem(snr, dict.fromkeys(snr, 100.0)) == "vocals"
    assert worst_stem(snr, dict.fromkeys(snr)) is None
    assert worst_stem({**snr, "bass": -math.inf}, dict.fromkeys(snr, 1.0)) == "bass"
