"""What was measured of long and many songs, and of kills, keeps what docs/running.md promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_a_thousand_kills() -> None:
    """Nothing lost, nothing half, nothing done twice that was noted down; of songs in flight, few are."""
    found = result("kill_runs")
    assert found["kills"] >= 1000
    assert sum(folder["kills"] for folder in found["folders"]) == found["kills"]
    for folder in found["folders"]:
        assert folder["wrong"] == []
        assert folder["most_in_flight"] <= folder["jobs"] + 2


def test_three_hours() -> None:
    """Memory stays where it was: its median in the later half is that of the earlier one."""
    found = result("long_file")
    assert found["song_seconds"] >= 3 * 3600
    assert abs(found["growth_mib"]) < 0.05 * found["peak_mib"]
    assert found["peak_mib"] < 600
    assert (RESULTS.parents[1] / "docs" / "long_file.svg").exists()


def test_many_files() -> None:
    """Short songs run at 95 % of the speed of one long song, or faster."""
    found = result("many_files")
    assert found["files"] >= 500
    assert found["speed_of_many"]["median"] >= 0.95
