"""The rule by which stems pass: far enough below themselves, or below the mix."""

from __future__ import annotations

import math

import pytest

from mrsep_deploy.measuring.limits import LOSS_FACTOR, ROUNDED_DBFS, Judgement, Powers, limit_for

MIX = -15.0
"""Level of a loud song in dBFS."""


def judged(precision: str, stem: float, error: float, mix: float = MIX) -> Judgement:
    """A stem, its error and the mix by their levels in dBFS."""
    return limit_for(precision).judge(Powers(*(10 ** (level / 10) for level in (stem, error, mix))))


def test_the_vocals_of_an_instrumental_song_pass_by_the_mix() -> None:
    found = judged("float16", stem=-70, error=-110)
    assert found.passes_by == "mix"
    assert found.powers.snr == pytest.approx(40)
    assert found.powers.below_mix == pytest.approx(95)
    assert found.margin == pytest.approx(10)
    assert found.allowed == pytest.approx(10**-10)


def test_a_loud_stem_with_50_db_fails() -> None:
    found = judged("float16", stem=-20, error=-70)
    assert found.passes_by is None
    assert found.margin == pytest.approx(-10)


@pytest.mark.parametrize(
    ("precision", "snr", "below_mix"), [("float16", 60, 85), ("bfloat16", 42, 67), ("float32", 100, 125)]
)
def test_both_limits_of_every_precision(precision: str, snr: float, below_mix: float) -> None:
    for stem, allowed in ((-20.0, -20 - snr), (-60.0, MIX - below_mix)):
        assert judged(precision, stem, allowed - 0.1).passes_by
        assert judged(precision, stem, allowed + 0.1).passes_by is None
    assert judged(precision, -20, -20 - snr - 0.1).passes_by == "SNR"
    assert judged(precision, -60, MIX - below_mix - 0.1).passes_by == "mix"


def test_a_fault_of_float32_is_not_hidden_by_the_mix() -> None:
    """An error that float16 is allowed fails float32, however quiet the stem."""
    assert judged("float16", -70, -105).passes_by == "mix"
    assert judged("float32", -70, -105).passes_by is None
    assert judged("float32", -90, -105).passes_by is None


def test_what_pytorch_loses_changes_the_limit_of_the_stem_alone() -> None:
    limit = limit_for("float32")
    least = limit.for_stem(80.0)
    assert least == pytest.approx(80 - 20 * math.log10(LOSS_FACTOR))
    powers = Powers(stem=1e-2, error=1e-2 * 10 ** (-least / 10) * 0.99, mix=1e-2)
    assert limit.judge(powers).passes_by is None
    assert limit.judge(powers, least).passes_by == "SNR"
    assert limit.judge(powers, least).below_mix == 125


def test_silence() -> None:
    """A mix of zeros has no ratio: an error passes that 16 bits do not hold, and no louder one."""
    for mix in (0.0, 10**-6.1):
        quiet, loud = (Powers(0.0, 10 ** ((ROUNDED_DBFS + more) / 10), mix) for more in (-0.1, 0.1))
        assert limit_for("float16").judge(quiet).passes_by == "silence"
        assert limit_for("float16").judge(loud).passes_by is None
    assert limit_for("float16").judge(Powers(0.0, 0.0, 0.0)).passes_by == "SNR"
    assert pytest.approx(-101.1, abs=0.01) == ROUNDED_DBFS


def test_an_empty_stem_of_a_loud_mix_is_judged_by_the_mix() -> None:
    assert limit_for("float16").judge(Powers(0.0, 1e-11, 1e-2)).passes_by == "mix"
    assert limit_for("float16").judge(Powers(0.0, 1e-10, 1e-2)).passes_by is None


def test_what_is_not_finite_passes_nothing() -> None:
    for least in (None, -math.inf, -1e6):
        found = limit_for("float16").judge(Powers(1e-2, math.inf, 1e-2), least)
        assert found.passes_by is None
        assert found.margin == -math.inf


def test_no_error_has_every_margin() -> None:
    assert limit_for("float32").judge(Powers(1e-2, 0.0, 1e-2)).margin == math.inf


def test_a_limit_that_was_asked_for_moves_both() -> None:
    assert limit_for("float16", 65.0).below_mix == 90
