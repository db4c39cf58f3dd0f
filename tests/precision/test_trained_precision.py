"""Trained weights in float16 on real music: what is lost is far below what can be heard."""

from __future__ import annotations

import pytest
import trained

from mrsep_deploy.measuring.limits import FLOAT16_DB, SDR_CHANGE_DB

pytestmark = [pytest.mark.weights, pytest.mark.network, pytest.mark.slow]


def test_the_excerpt_in_float16(capsys: pytest.CaptureFixture[str]) -> None:
    """Every stem within 60 dB of float32, and as well separated; what needs a GPU is only its speed."""
    found = trained.excerpt_in_float16()
    with capsys.disabled():
        for stem in found.stems:
            print(
                f"\nexcerpt in float16: {stem.source:6} {stem.figures.snr:.1f} dB, SDR {stem.sdr_change:+.4f} dB"
            )
    assert not found.failures
    assert all(stem.figures.snr >= FLOAT16_DB for stem in found.stems)
    assert all(stem.sdr_change is not None and abs(stem.sdr_change) <= SDR_CHANGE_DB for stem in found.stems)
