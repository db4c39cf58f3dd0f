"""Every reader again on what has once upset it, and on some hundred new cases. ``run.py`` does the same for hours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
READERS = ("checkpoint", "safetensors", "bag", "manifest", "graph", "zip", "audio", "ffmpeg")
CASES = 300


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="memory and time are watched as POSIX has it")
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_and_files_from_strangers(tmp_path: Path, reader: str) -> None:
    """In a process of its own: a native library may take it down."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(HERE / "run.py"), "--reader", reader, "--cases", str(CASES)]
    command += ["--json", str(result), "--keep", str(tmp_path / "failed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (campaign,) = json.loads(result.read_text())["campaigns"]
    assert campaign["crashes"] == []
    assert campaign["cases"] >= CASES
    assert campaign["refused"] > 0
    assert campaign["accepted"] > 0, "honest files are among the cases"


def test_every_reader_is_here() -> None:
    sys.path.insert(0, str(HERE))
    from targets import TARGETS

    assert set(READERS) == set(TARGETS)
    assert {folder.name for folder in (HERE / "corpus").iterdir()} <= set(TARGETS)


class TestTheGuard:
    """What a reader must not do is noticed: run in a process of its own, because a hook stays for good."""

    @pytest.mark.parametrize(
        ("statement", "noted"),
        [
            ("open(inside).read()", False),
            ("open('/etc/hostname').read()", True),
            ("open(inside, 'a')", True),
            ("os.system('true')", True),
            ("subprocess.run(['true'])", True),
            ("socket.socket()", True),
            ("eval('1 + 1')", True),
            ("pickle.loads(b'cos\\nsystem\\n.')", True),
            ("os.mkdir(inside + 'x')", True),
            ("import hypothesis", True),
            ("sum(range(9))", False),
        ],
    )
    def test_what_it_notes(self, tmp_path: Path, statement: str, noted: bool) -> None:
        (tmp_path / "file").touch()
        program = f"""
import contextlib, os, pickle, socket, subprocess, sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from guard import Guard
inside = {str(tmp_path / "file")!r}
code = compile({statement!r}, "reader.py", "exec")
guard = Guard(Path({str(tmp_path)!r}))
with guard.watching():
    exec(code)
print(bool(guard.noted))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(noted)
