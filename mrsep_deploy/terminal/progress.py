"""The terminal, for every command: results on stdout, progress on stderr.

Where stderr is no terminal, progress is a plain line a step; where stdout is none, nothing is cut to a width.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mrsep_deploy.errors import one_line

WIDE = 240
"""Columns of an output that is read by no one or by another program."""


def console() -> Console:
    """For results: stdout."""
    return _console(sys.stdout)


def error_console() -> Console:
    """For progress and remarks: stderr."""
    return _console(sys.stderr)


def _console(file: IO[str]) -> Console:
    # Names and paths are data: no markup in them is obeyed, no number in them is coloured.
    width = None if file.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def remark(line: str) -> None:
    """Prints on stderr, in one line, what is no error."""
    print(one_line(f"mrsep-deploy: {line}"), file=sys.stderr, flush=True)


@contextmanager
def step_progress(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A reporter of steps: call it with what happens now, how many are done, how many there are."""
    screen = error_console()
    if quiet:
        yield lambda _what, _done, _total: None
    elif not screen.is_terminal:
        yield lambda what, done, total: screen.print(f"{done}/{total} {what}", soft_wrap=True)
    else:
        with _bar(screen) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _bar(screen: Console) -> Progress:
    columns = (
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    return Progress(*columns, console=screen, transient=True)
