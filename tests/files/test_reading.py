"""Files that users name as settings, plans and bags: a pipe is refused at once, never waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.bags import bag_models
from mrsep_deploy.files.reading import read_start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="named pipes")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.yaml")
    return tmp_path / "pipe.yaml"


def test_up_to_a_byte_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert [read_start(path, limit) for limit in (3, 4, 5, 9)] == [b"1234", b"12345", b"12345", b"12345"]
    with pytest.raises(IsADirectoryError):
        read_start(tmp_path, 9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "PIPE", "run", "a.wav"], "the settings PIPE cannot be read"),
        (["run", "a.wav", "--precision", "mixed", "--plan", "PIPE"], "the plan PIPE cannot be read"),
        (["run", "a.wav", "-n", "PIPE"], "the bag PIPE cannot be read"),
        (["complexity", "--paper", "--sdr", "PIPE"], "PIPE cannot be read"),
        (["complexity", "--paper", "--times", "PIPE"], "PIPE cannot be read"),
    ],
)
def test_a_pipe_on_the_command_line(tmp_path: Path, pipe: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "a.wav").write_bytes(bytes(100))
    command = [sys.executable, "-m", "mrsep_deploy", *(each.replace("PIPE", str(pipe)) for each in arguments)]
    variables = {**os.environ, "MRSEP_DEPLOY_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False, timeout=60
    )
    expected = f"{said.replace('PIPE', str(pipe))}: it is a pipe or a device, expected a regular file"
    assert (done.returncode, expected in done.stderr) == (2, True), done.stderr


def test_a_pipe_as_the_bag_of_an_export(pipe: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"pipe.yaml: it is a pipe or a device, expected a regular file"
    ):
        bag_models(pipe)
