"""benchmarks/bench_thrice.py: when runs agree, and how it goes on after an interruption."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_thrice
import machine_info


def run(ranking: str, low: float, high: float) -> dict[str, Any]:
    """A run of two contenders, ``a`` so many times faster than ``b``."""
    inverse = {"median": 2 / (low + high), "low": 1 / high, "high": 1 / low}
    ratio = {"median": (low + high) / 2, "low": low, "high": high}
    return {
        "ranking": list(ranking),
        "times_faster": {"a than b": ratio, "b than a": inverse},
        "noise": {"quiet": True, "remarks": []},
    }


@pytest.mark.parametrize(
    ("runs", "same_ranking", "apart"),
    [
        ([run("ab", 1.4, 1.6), run("ab", 1.5, 1.7), run("ab", 1.3, 1.55)], True, []),
        ([run("ab", 1.4, 1.6), run("ab", 1.5, 1.7), run("ab", 1.1, 1.3)], True, ["a than b"]),
        ([run("ab", 0.9, 1.2), run("ba", 0.8, 1.1), run("ab", 0.9, 1.2)], False, []),
    ],
)
def test_agreement(runs: list[dict[str, Any]], same_ranking: bool, apart: list[str]) -> None:
    found = bench_thrice.agreement(runs)
    assert (found["same_ranking"], found["ratios_apart"]) == (same_ranking, apart)
    assert found["agree"] == (same_ranking and not apart)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def once(_request: object, settings: Any, _work: Path) -> dict[str, Any]:
        if len(seeds) == 2:
            seeds.append(-1)
            raise SystemExit("interrupted")
        seeds.append(settings.seed)
        return run("ab", 1.4, 1.6)

    for module in (bench_thrice, machine_info):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_thrice, "run_once", once)
    monkeypatch.setattr(bench_thrice, "trained_htdemucs", lambda: None)
    monkeypatch.setattr(bench_thrice, "load_model", lambda _path: None)
    monkeypatch.setattr(bench_thrice, "export_model", lambda *_: SimpleNamespace(path="bundle"))
    monkeypatch.setattr(bench_thrice, "write_song", lambda path: path)
    with pytest.raises(SystemExit, match="interrupted"):
        bench_thrice.main([])
    assert bench_thrice.main(["--continue"]) == 0
    assert seeds == [0, 1, -1, 2]
    found = json.loads((tmp_path / "bench_thrice.json").read_text())
    assert found["agreement"]["agree"]
    assert len(found["runs"]) == 3
    with pytest.raises(SystemExit, match="measured otherwise"):
        bench_thrice.main(["--continue", "--rounds", "5"])
