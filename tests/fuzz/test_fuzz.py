"""Every reader again on what has once upset it, and on some hundred new cases. ``run.py`` does the same for hours."""

from __future__ import annotations

import importlib
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux counts memory and time")
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("while True: pass", "of the processor"),
        ("import time; time.sleep(99)", "took"),
        ("kept = bytearray(400_000_000); import time; time.sleep(99)", "GB"),
        ("pass", ""),
    ],
    ids=["spins", "waits", "grows", "ends"],
)
def test_what_is_noticed_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    watcher = importlib.import_module("run")
    for name, value in (("CASE_SECONDS", 0.5), ("STUCK_SECONDS", 3.0), ("MAX_RSS", 300_000_000)):
        monkeypatch.setattr(watcher, name, value)
    board = tmp_path / "board"
    board.write_bytes(bytes(watcher.BOARD_BYTES))
    begin = (
        f"import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN); file = open({str(board)!r}, 'r+b'); "
    )
    begin += "file.write(bytes([1])); file.close()\n"
    process = subprocess.Popen([sys.executable, "-c", begin + program])
    try:
        _, found = watcher._watched(process, board)
    finally:
        process.kill()
        process.wait()
    assert why in found
    assert bool(found) == bool(why)


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
