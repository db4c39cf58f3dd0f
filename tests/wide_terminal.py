"""Commands on a bundle called tiny, in a home of its own and a terminal of 200 columns."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import tiny_bundle
from click.testing import CliRunner, Result

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.registry import register
from mrsep_deploy.commands import main


@pytest.fixture(autouse=True)
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A registered bundle called tiny, in a home of its own."""
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    made = tiny_bundle(tmp_path)
    register(made)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main.main, arguments, prog_name=main.PROGRAM)
