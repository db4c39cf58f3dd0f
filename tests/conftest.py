"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import once
import pytest
from goldens import exports, lowered

__all__ = ["exports", "heed_interrupts", "home", "lowered", "own_home"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Where there is a process a core, threads of one wait for those of the others, and spin meanwhile."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    once.begin()
    if (config.getoption("numprocesses", None) or 0) > 1:
        for (
            name,
            value,
        ) in ONE_THREAD.items():  # engines are told their number of threads; the rest heeds these
            os.environ.setdefault(name, value)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        once.end()


@pytest.fixture(scope="session", autouse=True)
def heed_interrupts() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, nohup to hanging up, and so is all that they start.

    Not the tests, which send such signals.
    """
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, in which nothing is yet."""
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


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
