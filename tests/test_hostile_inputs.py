"""1,200 inputs from strangers through the commands that read them: a right result or one clear line, and nothing else.

Each kind is read in a process of its own (``hostile/``), because what watches it stays for good and a native library
may take the process down. The inputs are the same on every run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SECONDS = 20.0
"""What a call may take, with some to spare: a machine may be busy."""
MAX_RSS = 2_000_000_000
COUNTS = {"songs": 560, "checkpoints": 260, "bundles": 180, "texts": 240}
"""Inputs of each kind, at least."""
WRONG = ("bug", "unclear", "program", "process", "read", "shown", "write", "link", "module", "code")
"""What the process is shown to notice."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="memory is counted as POSIX has it"),
]


def test_there_are_enough() -> None:
    assert sum(COUNTS.values()) >= 1200


@pytest.mark.parametrize("kind", COUNTS)
def test_hostile_inputs(tmp_path: Path, kind: str) -> None:
    found = _read_all(kind, tmp_path)
    assert found["wrong"] == []
    assert found["inputs"] >= COUNTS[kind]
    assert found["refused"] > 0
    assert found["accepted"] > 0, "honest files are among them"
    assert found["slowest"] < SECONDS
    assert found["rss"] < MAX_RSS
    assert sorted(os.listdir(tmp_path)) == ["inside", "outside"]
    assert os.listdir(tmp_path / "outside") == ["secret.wav"]
    assert not list(tmp_path.rglob("pwned"))


def test_what_is_noticed(tmp_path: Path) -> None:
    """Each of these is wrong, but for the last."""
    found = _read_all("canaries", tmp_path)
    assert [line.split(":")[0] for line in found["wrong"]] == list(WRONG)
    assert found["inputs"] > 0


def _read_all(kind: str, place: Path) -> dict[str, Any]:
    (place / "outside").mkdir()
    command = [sys.executable, str(HERE / "hostile" / "hostile_run.py"), kind, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
