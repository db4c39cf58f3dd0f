"""Trained weights in float16 on real music: what is lost is far below what can be heard."""

from __future__ import annotations

import pytest
import trained

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.measuring.limits import FLOAT16_DB, SDR_CHANGE_DB
from mrsep_deploy.precision.costs import read_costs

pytestmark = [pytest.mark.weights, pytest.mark.network, pytest.mark.slow]


def test_the_excerpt_in_float16(capsys: pytest.CaptureFixture[str]) -> None:
    """Every stem within 60 dB of float32, and as well separated; what needs a GPU is only its speed."""
    bundle, low = (
        Bundle.open(path) for path in (trained.trained_bundle("split"), trained.trained_in_float16())
    )
    found = trained.precision_goldens.Pair(bundle, low, 0).verify([trained.precision_goldens.excerpt_track()])
    with capsys.disabled():
        for stem in found.stems:
            print(
                f"\nexcerpt in float16: {stem.source:6} {stem.figures.snr:.1f} dB, SDR {stem.sdr_change:+.4f} dB"
            )
    assert not found.failures
    assert all(stem.figures.snr >= FLOAT16_DB for stem in found.stems)
    assert all(stem.sdr_change is not None and abs(stem.sdr_change) <= SDR_CHANGE_DB for stem in found.stems)


def test_what_float16_saves() -> None:
    costs = read_costs(Bundle.open(trained.trained_in_float16()).manifest).values()
    # 1.3 %: what is last in the decoders, and the squares that norms sum up
    assert sum(cost.kept_macs for cost in costs) <= 0.015 * sum(cost.macs for cost in costs)
    assert sum(cost.bytes_moved for cost in costs) <= 0.6 * sum(cost.original_bytes_moved for cost in costs)
