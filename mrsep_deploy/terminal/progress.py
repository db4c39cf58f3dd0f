"""The terminal, for every command: results on stdout, progress on stderr.

Where stderr is no terminal, progress is a plain line a step; where stdout is none, nothing is cut to a width.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mrsep_deploy.errors import one_line
from mrsep_deploy.terminal.tables import file_size

WIDE = 240
"""Columns of an output that is read by no one or by another program."""


def console(file: IO[str] | None = None) -> Console:
    """For results, by default on stdout."""
    file = file or sys.stdout
    # Names and paths are data: no markup in them is obeyed, no number in them is coloured.
    width = None if file.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def remark(*lines: str, quiet: bool = False) -> None:
    """Prints on stderr, each in one line, what is no error."""
    for line in () if quiet else lines:
        print(one_line(f"mrsep-deploy: {line}"), file=sys.stderr, flush=True)


def print_result(
    as_json: bool, plain: Callable[[], object], show: Callable[[Console], object], quiet: bool = False
) -> None:
    """Prints a result on stdout: as JSON for a program, or for a person, or not at all."""
    if as_json:
        print(json.dumps(plain(), indent=2), flush=True)
    elif not quiet:
        show(console())


Reporter = Callable[[str, int, int], None]
"""Called with what happens now, how much is done, how much there is."""


def step_progress(quiet: bool = False) -> AbstractContextManager[Reporter]:
    """A reporter of steps: call it with what happens now, how many are done, how many there are."""

    def in_lines(screen: Console) -> Reporter:
        return lambda what, done, total: screen.print(f"{done}/{total} {what}", soft_wrap=True)

    return _progress(quiet, in_lines, MofNCompleteColumn(), TimeElapsedColumn())


@contextmanager
def late_progress(quiet: bool = False) -> Iterator[Reporter]:
    """A reporter of steps that shows nothing before the first: of work that is there only now and then."""
    with ExitStack() as stack:
        opened: list[Reporter] = []

        def report(what: str, done: int, total: int) -> None:
            if not opened:
                opened.append(stack.enter_context(step_progress(quiet)))
            opened[0](what, done, total)

        yield report


def byte_progress(quiet: bool = False) -> AbstractContextManager[Reporter]:
    """A reporter of bytes: call it with what is transferred now, how many bytes are done, how many there are."""
    return _progress(quiet, _Tenths, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


@contextmanager
def _progress(
    quiet: bool, in_lines: Callable[[Console], Reporter], *columns: ProgressColumn
) -> Iterator[Reporter]:
    """A reporter that is a bar with these columns on a terminal, writes lines elsewhere, or says nothing."""
    screen = console(sys.stderr)
    if quiet:
        yield lambda _what, _done, _total: None
    elif not screen.is_terminal:
        yield in_lines(screen)
    else:
        text = TextColumn("{task.description}", markup=False)
        with Progress(BarColumn(24), *columns, text, console=screen, transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


class _Tenths:
    """A line for every tenth of the bytes."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._told = -1

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > self._told:
            self._told = tenth
            self._screen.print(f"{10 * tenth} % of {file_size(total)}, {what}", soft_wrap=True)
