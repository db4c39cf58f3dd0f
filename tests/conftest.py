"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from goldens import exports

__all__ = ["exports", "heed_interrupts", "own_home"]


@pytest.fixture(scope="session", autouse=True)
def heed_interrupts() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, and so is all that it starts: not the tests."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models and caches of the tests never touch the user's own."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("MRSEP_DEPLOY_HOME")
    os.environ["MRSEP_DEPLOY_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["MRSEP_DEPLOY_HOME"]
    else:
        os.environ["MRSEP_DEPLOY_HOME"] = before
