"""Separators and threads: one song at a time, nobody gets another's stems, what is left open goes, forks are told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bundles import CHANNELS, SOURCES, tiny_bundle
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import UsageError
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.testing import FakeEngine

Float32 = NDArray[np.float32]

ENGINES = ("ort", "openvino")


def song(number: int, length: int = 20_000) -> Float32:
    return np.random.default_rng(number).standard_normal((CHANNELS, length), np.float32)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_separator_in_several_threads(bundle: Bundle, engine: str) -> None:
    """A call gives its own song's stems, or says that another thread is at work."""
    with Separator(bundle, engine=engine, threads=1) as separator:
        expected = [separator.separate(song(n)) for n in range(4)]
        begin = threading.Barrier(4)

        def call(number: int) -> str:
            try:
                stems = separator.separate(song(number))
            except UsageError as error:
                return str(error)
            equal = all(np.array_equal(stems[name], expected[number][name]) for name in SOURCES)
            return "right" if equal else "wrong"

        def work(number: int) -> list[str]:
            begin.wait()
            return [call(number) for _ in range(6)]

        with ThreadPoolExecutor(4) as pool:
            found = [each for many in pool.map(work, range(4)) for each in many]
    busy = "this Separator is at work in another thread. Give each thread its own."
    assert set(found) <= {"right", busy}
    assert "right" in found
    assert busy in found


@pytest.mark.parametrize("engine", ENGINES)
def test_several_separators_in_several_threads(bundle: Bundle, engine: str) -> None:
    with Separator(bundle, engine=engine, threads=1) as separator:
        expected = [separator.separate(song(n)) for n in range(4)]

    def work(number: int) -> bool:
        with Separator(bundle, engine=engine, threads=1) as mine:
            found = [mine.separate(song(number)) for _ in range(3)]
        return all(np.array_equal(stems[name], expected[number][name]) for stems in found for name in SOURCES)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_two_songs_in_turns(bundle: Bundle) -> None:
    """A song that has begun has the separator until it is finished or given up."""
    with Separator(bundle, engine=FakeEngine()) as separator:
        first = separator.separate_blocks([song(0)])
        next(first)
        with pytest.raises(UsageError, match="this Separator is at work on another song"):
            separator.separate(song(1))
        assert isinstance(first, Iterator)
        first.close()  # type: ignore[attr-defined]
        separator.separate(song(1))


def test_closed(bundle: Bundle) -> None:
    separator = Separator(bundle, engine=FakeEngine())
    separator.close()
    separator.close()
    for call in (lambda: separator.separate(song(0)), lambda: separator.run_segments(song(0)[None])):
        with pytest.raises(UsageError, match=r"^this Separator is closed\. Make another one\.$"):
            call()


def python(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LEFT_OPEN = """
import sys, numpy as np
from mrsep_deploy.separation.separator import Separator

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

mix = np.random.default_rng(0).standard_normal((2, 44100 * 8), np.float32)
held = []
for _ in range(5):
    separator = Separator("mrsep-small", engine=ENGINE)
    separator.separate(mix)
    del separator
    held.append(resident())
print(held[0], held[-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_what_nobody_closes_is_closed_when_it_is_collected(engine: str) -> None:
    """Five separators in turn, none closed, hold no more than one: each took 300 MB to itself."""
    first, last = map(float, python(LEFT_OPEN.replace("ENGINE", repr(engine))).split())
    assert last < first + 100


SIGNALLED = """
import signal, sys, threading, numpy as np
from mrsep_deploy.separation.separator import Separator

held = [Separator(sys.argv[1], engine=sys.argv[2], threads=1)]
held[0].separate(np.zeros((2, 1000), np.float32))
closing = threading.Thread(target=lambda: held.pop().close())
closing.start()
closing.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_is_handled_after_another_thread_closed_the_engine(bundle: Bundle, engine: str) -> None:
    """OpenVINO took the main thread's signal stack away with it: Ctrl-C ended the process by SIGSEGV."""
    code = f"import sys; sys.argv = ['', {str(bundle.path)!r}, {engine!r}]\n{SIGNALLED}"
    assert python(code).strip() == "handled"


FORKED = """
import os, signal, sys, numpy as np
from mrsep_deploy.errors import UsageError
from mrsep_deploy.separation.separator import Separator

mix = np.zeros((2, 1000), np.float32)
separator = Separator(sys.argv[1], engine=sys.argv[2], threads=2)
separator.separate(mix)
child = os.fork()
if child == 0:
    signal.alarm(60)  # what hangs is ended
    said = []
    for call in (lambda: separator.separate(mix), lambda: Separator(sys.argv[1], engine=sys.argv[2])):
        try:
            call()
        except UsageError as error:
            said.append("was forked from process" in str(error))
    del separator
    os._exit(0 if said == [True, True] else 1)
_, status = os.waitpid(child, 0)
separator.separate(mix)  # the parent goes on
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fork_is_told_and_does_not_hang(bundle: Bundle, engine: str) -> None:
    code = f"import sys; sys.argv = ['', {str(bundle.path)!r}, {engine!r}]\n{FORKED}"
    assert python(code).strip() == "0"
