"""Figures in the README are those that were measured, and the promises about them hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from figures import ENGINES, MODELS, README, SONGS, block, figures, result, write  # noqa: E402


def test_the_readme_says_what_was_measured() -> None:
    assert block(README.read_text(encoding="utf-8")) == figures()


def test_writing_replaces_only_the_block(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    write(page, "| new |")
    text = page.read_text(encoding="utf-8")
    assert block(text) == "| new |"
    assert text.replace("| new |", figures()) == README.read_text(encoding="utf-8")


def test_a_page_without_a_place_for_them() -> None:
    with pytest.raises(ValueError, match="has no"):
        block("no figures here")


@pytest.mark.parametrize("name", [f"run_speed_{model}" for model in MODELS])
def test_what_speed_promises(name: str) -> None:
    """No engine is slower than PyTorch, the default mode is the one that wins, and little is lost between stages."""
    found = result(name)
    for engine in ENGINES:
        assert found["times_faster"][f"{engine} than torch"]["median"] >= 1
        assert found["times_faster"][f"{engine} than {engine} concurrent"]["median"] >= 1
        assert found["share_of_time"][engine]["outside_stages"] < 0.02


def test_what_memory_promises() -> None:
    """An hour of music in less than 1.5 GB with what the base installs, and no growth."""
    found = result("memory_hour_ort")
    assert found["song_seconds"] >= 3600
    assert found["peak_mib"] * 2**20 < 1.5e9
    for engine in ENGINES:
        assert abs(result(f"memory_hour_{engine}")["growth_mib"]) < 50


@pytest.mark.parametrize("song", SONGS)
def test_what_parity_promises(song: str) -> None:
    """110 dB in every stem; or, where a stem is nearly silent all along, more than demucs' own float32 holds."""
    found = result(f"parity_trained_{song}")
    for stems, yardstick in [
        *((each, found["excerpt"]["demucs_float32"]) for each in found["excerpt"]["layouts"].values()),
        (found["song"], found["song"]["demucs_float32"]),
    ]:
        for stem, snr in stems["snr"].items():
            assert snr >= 110 or yardstick["snr"][stem] < snr
    for values in found["excerpt"]["layouts"].values():
        assert values["sdr"] == pytest.approx(found["excerpt"]["sdr_demucs"], abs=0.01)


def test_a_whole_song_with_vocals_reaches_110_db() -> None:
    assert min(result("parity_trained_chaos_god")["song"]["snr"].values()) >= 110
