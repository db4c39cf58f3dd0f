"""Ctrl-C and SIGTERM end a run wherever they fall: in imports, in the start of threads, in the work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from mrsep_deploy.process.interrupts import aside

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
EVERY_RUN = 300, 100
"""Runs that Ctrl-C and that SIGTERM ends: by chance, one in fifty was deaf before."""


@posix
@pytest.mark.slow
def test_runs_in_a_terminal() -> None:
    """Each ends within five seconds with 130 or 143, leaves no half file, and shows no traceback."""
    import interrupt_runs

    found = interrupt_runs.interrupt_many(*EVERY_RUN, side_by_side=3, seed=int(time.time()) // 86400)
    summary = interrupt_runs.summary(found)
    assert summary["wrong"] == []
    assert summary["by_engine"].keys() == set(interrupt_runs.ENGINES)  # type: ignore[attr-defined]
    early = summary["before_the_first_line"]
    assert isinstance(early, int)
    assert early < len(found) / 2, "most signals met the program, not Python's own start"


def python(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run code that has the signals of the command line."""
    start = (
        "import os, signal, sys, threading, time\n"
        "from mrsep_deploy.process import interrupts\n"
        "interrupts.install()\n"
    )
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def kill(name: str = "SIGINT") -> str:
    return f"os.kill(os.getpid(), signal.{name})"


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_before_a_command_begins(name: str, code: int) -> None:
    done = python(f"{kill(name)}\nprint('deaf')")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted\n")


@posix
def test_what_is_ignored_stays_ignored() -> None:
    """``nohup mrsep-deploy run ...`` goes on when the terminal closes."""
    program = f"""
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from mrsep_deploy.process import interrupts
interrupts.install()
{kill("SIGHUP")}
print("goes on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "goes on\n"


@posix
def test_kept_until_a_breakable_place() -> None:
    """Between breakable places nothing is raised; the next one raises, once, and the way out is not disturbed."""
    done = python(
        f"""
steps = []
try:
    with interrupts.protected():
        {kill()}
        steps.append("kept")
        try:
            with interrupts.breakable():
                steps.append("never")
        finally:
            {kill()}
            with interrupts.breakable():
                steps.append("way out")
except KeyboardInterrupt:
    steps.append("raised")
print(steps)
"""
    )
    assert done.stdout == "['kept', 'way out', 'raised']\n", done.stderr


@posix
@pytest.mark.parametrize("swallows", ["pass", "raise ImportError('initialization failed')"])
def test_a_library_that_swallows_it(swallows: str) -> None:
    """An import that makes another error of it, or none, changes nothing: the interrupt wins."""
    done = python(
        f"""
try:
    with interrupts.protected():
        try:
            with interrupts.breakable():
                {kill()}
                time.sleep(60)
        except KeyboardInterrupt:
            {swallows}
except KeyboardInterrupt:
    print("interrupted all the same")
"""
    )
    assert done.stdout == "interrupted all the same\n", done.stderr


@posix
def test_the_main_thread_waits_for_nobody() -> None:
    """A worker inside of a library that takes its time does not hold up an interrupt."""
    done = python(
        f"""
threading.Timer(0.5, lambda: {kill()}).start()
began = time.monotonic()
try:
    with interrupts.protected():
        interrupts.aside(lambda: time.sleep(60))
except KeyboardInterrupt:
    print(time.monotonic() - began < 5)
interrupts.leave()
"""
    )
    assert (done.stdout, done.returncode) == ("True\n", 130), done.stderr


@posix
def test_a_main_thread_that_does_not_come_back() -> None:
    """After a while the program is ended all the same, its last words said."""
    done = python(
        f"""
interrupts.GRACE = 1.0
with interrupts.protected(), interrupts.last_words(lambda: print("last words", flush=True)):
    threading.Timer(0.3, lambda: {kill()}).start()
    while True:  # comes to no breakable place
        time.sleep(0.01)
"""
    )
    assert (done.returncode, done.stdout) == (130, "last words\n"), done.stderr


def test_aside_returns_and_raises() -> None:
    here = threading.get_ident()
    assert aside(lambda: threading.get_ident()) != here
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)


@posix
def test_an_interrupted_start_of_a_thread_keeps_no_process_alive() -> None:
    """As in a program of one's own, where Python raises KeyboardInterrupt anywhere: it ends, whatever runs aside."""
    program = f"""
import os, signal, threading, time
from mrsep_deploy.process.interrupts import aside
started = threading.Thread.start
def interrupted(self):
    started(self)
    {kill()}
threading.Thread.start = interrupted
try:
    aside(lambda: time.sleep(60))
except KeyboardInterrupt:
    print("over")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20
    )
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr


@posix
def test_an_interrupted_build_by_many_jobs_ends() -> None:
    """Its threads are inside a library for a minute; the process waits for them a few seconds at the most."""
    began = time.monotonic()
    done = python(
        "from types import SimpleNamespace as Given\n"
        "from mrsep_deploy.commands.build import _build\n"
        "bundle = Given(manifest=Given(stages=[Given(name=name, file=name) for name in 'abc']), twin=None)\n"
        "engine = Given(build=lambda *_: time.sleep(60))\n"
        "threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "interrupts.raise_from_now_on()\n"
        "_build(engine, bundle, Given(workspace=None, output=None, quiet=True, jobs=2, gate=None))\n",
        timeout=90,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert time.monotonic() - began < 30
