"""Rows: everything that is measured is one, and none that goes wrong takes another along.

A row is written to a journal as soon as it is there, and noted there before it begins. So a process that
a driver or an engine kills loses one row: the next process reads the journal and goes on behind it.
Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from mrsep_deploy.errors import named_line

Status = Literal["ok", "unavailable", "failed", "skipped"]
Values = Mapping[str, Any]

RESTART = 75
"""Exit code of a process whose GPU context is lost: what is left needs a fresh one."""

NO_GPU = 3
"""Exit code of a process that cannot measure at all; its last line says why."""


class RowTimeoutError(Exception):
    """A row took longer than it may."""


class Unavailable(Exception):
    """What a row measures does not exist here; ``fix`` would change that."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


@dataclass(frozen=True)
class Row:
    """One measurement, or why there is none.

    Attributes:
        section: which table.
        name: which line of it.
        values: what was measured, JSON's types only.
        reason: why it is not ok, one line.
        fix: what would change that.
        seconds: what the row took.
    """

    section: str
    name: str
    status: Status
    values: Values = field(default_factory=dict)
    reason: str = ""
    fix: str = ""
    seconds: float = 0.0


class Journal:
    """A file of rows, one a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, section: str, name: str) -> None:
        self._append({"begin": [section, name]})

    def add(self, row: Row) -> None:
        self._append({"row": asdict(row)})

    def _append(self, line: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line)) + "\n")

    def rows(self) -> list[Row]:
        """The rows so far in the order they began; of a row measured twice the later."""
        found: dict[tuple[str, str], Row | None] = {}
        for line in self._lines():
            if "begin" in line:
                section, name = line["begin"]
                found.setdefault((section, name), None)
            else:
                row = Row(**line["row"])
                found[row.section, row.name] = row
        return [row for row in found.values() if row is not None]

    def under_way(self) -> tuple[str, str] | None:
        """The row that has begun last, if it has not ended."""
        lines = self._lines()
        last = lines[-1] if lines else {}
        return (last["begin"][0], last["begin"][1]) if "begin" in last else None

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a process killed while writing leaves half a line
                lines.append(json.loads(text))
        return lines


def finite(value: Any) -> Any:
    """The same with infinite and undefined numbers as None, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return value


class Ledger:
    """Measures rows one after the other.

    Args:
        journal: where they go, and where those of an earlier process are.
        deadline: when to stop beginning rows, as ``time.time()`` counts.
        unavailable: exceptions that mean "not here" instead of "went wrong".
        lost: says whether the GPU can no longer be used after an error; then this process ends.
    """

    def __init__(
        self,
        journal: Journal,
        deadline: float,
        unavailable: tuple[type[Exception], ...] = (),
        lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self.journal, self.deadline, self.lost = journal, deadline, lost
        self.unavailable: tuple[type[Exception], ...] = (Unavailable, *unavailable)
        self.known = {(row.section, row.name): row for row in journal.rows()}

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def measure(
        self, section: str, name: str, work: Callable[[], Values], limit: float = 120.0, again: bool = False
    ) -> Values | None:
        """Run ``work`` as a row and give its values, or None where there are none.

        Args:
            limit: seconds it may take; less where the deadline is nearer.
            again: run even if an earlier process has: ``work`` also makes what later rows need.
        """
        known = self.known.get((section, name))
        if known is not None and (known.status != "ok" or not again):
            return known.values if known.status == "ok" else None
        if self.left() <= 0:
            self.add(Row(section, name, "skipped", reason="the time budget was used up before it"))
            return None
        self.journal.begin(section, name)
        began = time.perf_counter()
        allowed = min(limit, self.left())
        try:
            with time_limit(allowed):
                values = work()
        except self.unavailable as error:
            text = getattr(error, "message", "") or named_line(error)
            self.add(
                Row(section, name, "unavailable", {}, text, getattr(error, "fix", ""), _since(began)),
            )
        except Exception as error:  # whatever one row raises, the others go on
            took, reason = _since(began), named_line(error)
            if took >= allowed and not isinstance(error, RowTimeoutError):
                reason = f"it took longer than {allowed:.0f} s, and ended with {reason}"
            self.add(Row(section, name, "failed", {}, reason, getattr(error, "fix", ""), took))
            if self.lost():
                print("the GPU context is lost; a fresh process goes on", flush=True)
                os._exit(RESTART)  # no destructor may touch the context again
        else:
            self.add(Row(section, name, "ok", values, seconds=_since(began)))
            return values
        return None

    def add(self, row: Row) -> None:
        """Enter a row and show it."""
        self.journal.add(row)
        self.known[row.section, row.name] = row
        print(f"[{row.section}] {row.name}: {row.status} {row.reason}".rstrip(), flush=True)


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`RowTimeoutError` in the block after a while.

    Only Python can be interrupted: a library's call ends first. Elsewhere than in the main thread of a
    POSIX system there is no limit but the supervisor's.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise RowTimeoutError(f"it took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def supervise(
    command: Sequence[str],
    variables: Mapping[str, str],
    journal: Journal,
    deadline: float,
    grace: float = 60.0,
    processes: int = 8,
) -> str | None:
    """Run a measuring process until it is through; start another where one dies in a row.

    Args:
        deadline: as ``time.time()`` counts; ``grace`` seconds after it a process is killed.
        processes: how many to start at most.

    Returns:
        Why it did not get through, if it did not.
    """
    for _ in range(processes):
        with subprocess.Popen(command, env=dict(variables)) as process:
            try:
                code = process.wait(max(deadline + grace - time.time(), 1.0))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code == 0:
            return None
        if code == NO_GPU:
            return "this machine cannot be measured, the line above says why"
        how = f"signal {-code}" if code < 0 else f"code {code}"
        hit = journal.under_way()
        if hit is not None:
            journal.add(Row(*hit, "failed", reason=f"its process ended ({how})"))
        elif code != RESTART:
            return f"the measuring process ended ({how}) outside of any row"
        if time.time() > deadline:
            return f"the time budget was used up, the measuring process ended ({how})"
    return f"{processes} measuring processes died; the rest was not measured"
