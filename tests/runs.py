"""Runs of ``mrsep-deploy run`` in a home and a current folder of their own, on a model without an engine's weight."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bundles import SAMPLE_RATE, SOURCES, tiny_bundle
from click.testing import CliRunner

from mrsep_deploy.bundle import Bundle, registry
from mrsep_deploy.commands import run as run_module
from mrsep_deploy.commands.main import main
from mrsep_deploy.songs import journal

NOWHERE = "/dev/null/home"
"""Below a device there is no folder, not even for root."""

PROGRAM = [sys.executable, "-m", "mrsep_deploy"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = tiny_bundle(tmp_path / "bundles")
    registry.register(made)
    return made


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What separates must not be opened."""

    def opened(*_arguments: object) -> None:
        raise AssertionError("the engine is started")

    monkeypatch.setattr(run_module, "_separator", opened)


def song(path: Path | str, frames: int = 2000, seed: int = 0, **how: Any) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.4, 0.4, (frames, 2))
    soundfile.write(path, noise, SAMPLE_RATE, **how)
    return path


class Result:
    """What came of one call: the exit code, what was said, without any traceback."""

    def __init__(self, *arguments: str | Path) -> None:
        done = CliRunner().invoke(main, ["run", *map(str, arguments), "--engine", "ort", "--threads", "1"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        self.code, self.out, self.err = done.exit_code, done.stdout, done.stderr
        for text in ("Traceback", "This is a bug"):
            assert text not in done.output, done.output


run = Result


def process(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "run", *arguments, "--engine", "ort", "--threads", "1"]
    done = subprocess.run(command, text=True, check=False, timeout=120, **{"capture_output": True, **how})
    for text in ("Traceback", "This is a bug"):
        assert text not in f"{done.stdout}{done.stderr}", done.stderr
    return done


def written(folder: Path | str) -> list[str]:
    """Files in a folder, hidden ones too, without the journal."""
    found = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != journal.NAME)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def stems(*tracks: str) -> list[str]:
    return sorted(f"{track}/{name}.wav" for track in tracks for name in SOURCES)
