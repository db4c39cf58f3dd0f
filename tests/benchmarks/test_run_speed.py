"""benchmarks/run_speed.py: what it writes is what the README's figures are made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_package

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import figures
import run_speed


@pytest.mark.slow
def test_the_figures_can_be_made_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    music = np.random.default_rng(0).standard_normal((2, 200_000)).astype(np.float32) * 0.1

    def write(name: str, result: Mapping[str, object]) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(result, allow_nan=False))
        return path

    monkeypatch.setattr(
        run_speed, "songs", lambda: [SimpleNamespace(name=run_speed.SONG, read=lambda _s: music)]
    )
    monkeypatch.setattr(run_speed, "trained_htdemucs", lambda: small_package.write(tmp_path / "small.th"))
    monkeypatch.setattr(run_speed, "write_result", write)
    # measuring the machine takes seconds
    ceilings = {"flop_per_second": 1e11, "bytes_per_second": 1e10}
    monkeypatch.setattr("mrsep_deploy.bench.ceilings.cpu_ceilings", lambda _threads: ceilings)
    run_speed.main(["--engines", "ort,openvino", "--modes", "sequential,concurrent", "--rounds", "2"])
    found: Any = json.loads((tmp_path / "run_speed_trained.json").read_text())
    assert set(found["seconds"]) == {
        "torch", "demucs", "ort", "ort concurrent", "openvino", "openvino concurrent"
    }  # fmt: skip
    ratio = found["times_faster"]["openvino than demucs"]
    assert ratio["min"] <= ratio["low"] <= ratio["median"] <= ratio["high"] <= ratio["max"]
    assert all(snr > 90 for snr in found["worst_stem_snr_db"].values())
    monkeypatch.setattr(figures, "result", lambda _name: found)
    lines = list(figures._speed())
    assert lines[0].startswith("Seconds for one segment of music on")
    assert sum(line.startswith("| HTDemucs") for line in lines) == 4
