"""The environment that scripts make for themselves: complete, whoever starts them."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bootstrap

WITH_EXTRAS = [
    "click>=8.1",
    "torch>=2.9; extra == 'export'",
    'pyyaml>=6; extra == "export"',
    'av>=14 ; extra == "av"',
    'atheris>=2.3; sys_platform != "win32" and extra == "fuzz"',
    'mrsep-deploy[export,av]; extra == "fuzz"',
    'hypothesis>=6; extra == "fuzz"',
]


class Environment:
    """What is installed, and what ``enter`` does about it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.installed = {"mrsep-deploy", "torch", "pyyaml"}
        self.pip_installs = {"av", "hypothesis"}
        self.done: list[str] = []
        monkeypatch.setattr(bootstrap, "VENV", folder)
        monkeypatch.setattr(bootstrap, "metadata", self._metadata)
        monkeypatch.setattr(bootstrap, "requires", lambda name: WITH_EXTRAS)
        monkeypatch.setattr(bootstrap.subprocess, "call", self._call)
        monkeypatch.setattr(os, "execv", lambda program, command: self.done.append("began again"))
        monkeypatch.setattr(bootstrap, "_create", lambda: self.done.append("made"))

    def _metadata(self, name: str) -> Environment:
        if name not in self.installed:
            raise PackageNotFoundError(name)
        return self

    def get_all(self, name: str) -> list[str]:
        assert name == "Provides-Extra"
        return ["export", "av", "fuzz"]

    def _call(self, command: list[str]) -> int:
        if "--editable" in command:
            self.done.append("installed " + command[-1].rpartition("[")[2].rstrip("]"))
            self.installed |= self.pip_installs
        return 0


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    return Environment(monkeypatch, tmp_path)


def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(bootstrap.VENV))


def test_what_extras_lack(environment: Environment) -> None:
    assert bootstrap.missing("export") == []
    assert bootstrap.missing("export,av") == ["av"]
    assert bootstrap.missing("fuzz") == ["av", "hypothesis"], "what the extras of an extra lack, too"
    assert bootstrap.missing("export,plot") == ["plot"], "an extra of a newer pyproject.toml"
    environment.installed.clear()
    assert bootstrap.missing("export") == ["mrsep-deploy"]


def test_the_real_metadata_is_understood() -> None:
    """Each requirement of one extra alone is read; those of some systems are left to pip."""
    of_extras = [line for line in requires("mrsep-deploy") or [] if "extra ==" in line]
    of_one = [line for line in of_extras if " and " not in line]
    assert of_one
    assert [line for line in of_one if not bootstrap._OF_EXTRA.fullmatch(line)] == []


def test_inside_with_all_of_it_nothing_happens(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside(monkeypatch)
    bootstrap.enter("export")
    assert environment.done == []


def test_inside_without_some_of_it_is_completed(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a script of other extras that made the environment before."""
    inside(monkeypatch)
    bootstrap.enter("export,av")
    assert environment.done == ["installed export,av", "began again"]
    environment.done.clear()
    bootstrap.enter("export,av")
    assert environment.done == []


def test_inside_without_what_pip_does_not_install_it_ends(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside(monkeypatch)
    environment.pip_installs.clear()
    with pytest.raises(SystemExit, match="still lacks av"):
        bootstrap.enter("av")


def test_outside_it_is_made_once(environment: Environment) -> None:
    bootstrap.enter("export")
    bootstrap.enter("export")
    assert environment.done == ["made", "installed export", "began again", "made", "began again"]
