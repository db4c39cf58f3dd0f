"""The whole project passes its own linters: ruff, and mypy --strict over the packages as installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def _run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    _run("ruff", "check", ".")


def test_the_code_is_formatted() -> None:
    _run("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_mypy_strict_finds_nothing(tmp_path: Path) -> None:
    """``export/`` and ``engines/`` are subpackages by configuration; mypy sees them where they are installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    places = settings["tool"]["setuptools"]["package-dir"]
    for package, folder in sorted(places.items()):
        shutil.copytree(
            ROOT / folder, tmp_path / package.replace(".", "/"), ignore=shutil.ignore_patterns("__pycache__")
        )
    _run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "mrsep_deploy", cwd=tmp_path)


def test_every_package_is_listed_for_installation() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = settings["package-dir"]
    found = set()
    for package, folder in places.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inner]))
    assert found == set(settings["packages"])
