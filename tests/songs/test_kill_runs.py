"""A run that is killed at any moment and taken up again loses nothing, and does nothing twice that was noted down.

A thousand kills take minutes (``benchmarks/kill_runs.py``); here it is a few of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_some_kills(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_runs.py"), "--kills", "12", "--songs", "5"]
    command += ["--jobs", "1", "3", "--no-write", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["jobs"] for each in folders] == [1, 3]
    assert sum(each["kills"] for each in folders) == 12
    for each in folders:
        assert each["wrong"] == []
        assert each["most_in_flight"] <= each["jobs"] + 2
