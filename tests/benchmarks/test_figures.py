"""Figures in the README and the docs are those that were measured, and the promises about them hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_thrice  # noqa: E402
from figures import (  # noqa: E402
    BEGIN,
    ENGINES,
    MODELS,
    PAGES,
    README,
    SONGS,
    block,
    figures,
    result,
    write,
)
from machine_info import RESULTS  # noqa: E402


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_was_measured(page: Path) -> None:
    assert block(page.read_text(encoding="utf-8")) == PAGES[page]()


def test_every_page_with_figures_is_compared() -> None:
    """A page that shows measured figures has the comments that the test goes by, and none else has them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "mrsep_deploy").rglob("*.md")]
    assert {page for page in pages if BEGIN in page.read_text(encoding="utf-8")} == set(PAGES)


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
    """No engine is slower than PyTorch, nor the default mode beyond doubt; little is lost between stages."""
    found = result(name)
    for engine in ENGINES:
        assert found["times_faster"][f"{engine} than torch"]["median"] >= 1
        assert found["times_faster"][f"{engine} than {engine} concurrent"]["high"] >= 1
        assert found["share_of_time"][engine]["outside_stages"] < 0.02


def test_what_memory_promises() -> None:
    """An hour of music in less than 1.5 GB with what the base installs, and no growth."""
    found = result("memory_hour_ort")
    assert found["song_seconds"] >= 3600
    assert found["peak_mib"] * 2**20 < 1.5e9
    assert result("memory_hour_openvino_shipped")["song_seconds"] >= 3600
    for run in (*ENGINES, "openvino_shipped"):
        assert abs(result(f"memory_hour_{run}")["growth_mib"]) < 50


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


def measured(name: str) -> pytest.MarkDecorator:
    """Skips what nobody has measured yet; the driver of that name does."""
    missing = not (RESULTS / f"{name}.json").exists()
    return pytest.mark.skipif(missing, reason=f"python benchmarks/{name}.py has not been run")


@measured("paper_tables")
def test_the_papers_tables_are_complete() -> None:
    """Four tables, every row with what is counted, and all of the paper's own with what was measured."""
    tables = result("paper_tables")["tables"]
    assert [len(table["rows"]) for table in tables] == [6, 4, 4, 3]
    for row in (row for table in tables for row in table["rows"]):
        assert row["flops"] == 2 * row["macs"] > 0
        assert row["parameters"] > 0
        if row["key"] not in ("hdemucs", "bs_roformer"):
            assert all(row["seconds"][runtime] > 0 for runtime in ("torch", "ort"))


@measured("bench_thrice")
def test_three_benchmarks_agree() -> None:
    """The same ranking, and ratios within the intervals that the runs state."""
    found = result("bench_thrice")
    assert len(found["runs"]) == 3
    assert found["agreement"] == json.loads(json.dumps(bench_thrice.agreement(found["runs"])))
    assert found["agreement"]["agree"]


def test_engines_separate_a_multitrack_alike() -> None:
    """Minutes of it, on three engines in one command: no source of any track differs by 0.01 dB."""
    found = result("report_eval")
    assert set(found["engines"]) == {"torch", "ort", "openvino"}
    assert sum(track["seconds"] for track in found["tracks"]["torch"]) > 120
    for apart in (each for metric in found["differences"].values() for each in metric.values()):
        assert abs(apart["largest"]) < 0.01
