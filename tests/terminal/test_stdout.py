"""A full disk behind stdout is told in one line, by every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrsep_deploy.commands.main import COMMANDS
from mrsep_deploy.errors import DONE, FAILED

linux = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
PRINTING = [
    *(
        "--help",
        "--version",
        "models",
        "models --json",
        "inspect",
        "inspect --json",
        "doctor",
        "doctor --json",
    ),
    *("complexity", "complexity --json", "cache list", "completion bash", "run no.wav --json"),
    *(f"{name} --help" for name in COMMANDS),
]


def process(arguments: str, stdout: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mrsep_deploy", *arguments.split()],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


@linux
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--help", "models", "run no.wav --json"])
def test_a_full_stdout(tmp_path: Path, arguments: str, unbuffered: str) -> None:
    _check(arguments, MRSEP_DEPLOY_HOME=str(tmp_path), PYTHONUNBUFFERED=unbuffered)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("arguments", PRINTING)
def test_every_command_with_a_full_stdout(tmp_path: Path, arguments: str) -> None:
    _check(arguments, MRSEP_DEPLOY_HOME=str(tmp_path))


def _check(arguments: str, **environment: str) -> None:
    with open("/dev/full", "wb") as full:
        done = process(arguments, full.fileno(), **environment)
    assert done.returncode == FAILED
    assert done.stderr == "mrsep-deploy: error: stdout cannot be written: no space left. Free some space\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough(tmp_path: Path, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = process("models", writing, MRSEP_DEPLOY_HOME=str(tmp_path), PYTHONUNBUFFERED=unbuffered)
    os.close(writing)
    assert (done.returncode, done.stderr) == (FAILED, "")


def test_what_is_printed_comes_whole_and_in_order(tmp_path: Path) -> None:
    program = "import sys; from mrsep_deploy.commands.main import main\nprint('before', end=' ')\n" \
        "try: main(['completion', 'fish'])\nfinally: print('after')"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == DONE, done.stderr
    assert done.stdout.startswith("before ")
    assert done.stdout.endswith("after\n")
