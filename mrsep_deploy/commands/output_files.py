"""Reports that a command writes beside its work: refused before the work begins if they would cost somebody a file.

A report never takes the place of an input or of something else that the command writes. A file that is there is
replaced if it is an earlier report of the same kind, which its beginning tells, or if ``--overwrite`` says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrsep_deploy.errors import OutputError, UsageError
from mrsep_deploy.files.open_folder import kind_of
from mrsep_deploy.files.parts import require_writable
from mrsep_deploy.songs.tracks import same_place

if TYPE_CHECKING:
    from mrsep_deploy.pages.blocks import Page

READ = 1 << 20
"""Bytes of a file that are looked at."""
_ELSEWHERE = "Choose another place"

SUMMARY = re.compile(rb'\{\n  "done": \d+,\n  "failed": \d+,\n  "skipped": \d+,\n  "unfinished": \d+,')
TIMELINE = re.compile(rb'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" ')
PAGE = re.compile(rb'(?s)<!doctype html>.{1,400}<meta name="generator" content="mrsep-deploy">')
PLAN = re.compile(rb'\{\n  "format": "mrsep-deploy precision plan",')
TIMES = re.compile(rb"\s*\{")  # what is in it is read and checked anyway
BENCH_JSON = re.compile(rb'\{\n  "format": "mrsep-deploy bench",')
BENCH_CSV = re.compile(rb"model,workload,label,engine,")
BENCH_MARKDOWN = re.compile(rb"(?s)# Benchmark\n.*\n## How it was measured\n")
EVAL_JSON = re.compile(rb'\{\n  "model": \{\n    "name": ".*",\n    "digest": "')
EVAL_MARKDOWN = re.compile(rb"# .* on .*\n\n.*, bundle [0-9a-f]{16}, overlap ")


Report = tuple[str, Path | None, re.Pattern[bytes]]
"""What the user says to get it, where it goes (None: it was not asked for), and how files of its kind begin."""


def check_output_files(
    reports: Iterable[Report],
    inputs: Iterable[str | Path | None],
    overwrite: bool | None,
    others: Iterable[Path] = (),
    probe: bool = True,
) -> None:
    """Refuse reports that would take the place of something else, or that cannot be written.

    Args:
        reports: they may not be one file either.
        inputs: files and folders that the command reads, missing ones too; the settings are always one. No report
            takes the place of one, nor, in a folder, of what is not an earlier report.
        overwrite: replace files that are none of ours; None where the command has no such option.
        others: what else the command writes.
        probe: find out whether something can be written there, by writing an empty file beside it.

    Raises:
        UsageError: a report would replace an input, another output, or a file that is none of ours.
        OutputError: it cannot be written there.
    """
    wanted = [(option, path, kind) for option, path, kind in reports if path is not None]
    if not wanted:
        return
    places = {_place(path): f"{path} is to be written, too" for path in others}
    read = given_files(*inputs)
    for option, path, kind in wanted:
        refuse_inputs(option, path, read)
        ours = _is_ours(path, kind)
        for folder in filter(Path.is_dir, read):
            inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
            if inside and os.path.lexists(path) and not ours:
                raise UsageError(
                    f"{option} {path} would replace a file in {folder}, an input of this command", _ELSEWHERE
                )
        place = _place(path)
        if place in places:
            raise UsageError(f"{option} {path} would replace another output: {places[place]}", _ELSEWHERE)
        places[place] = f"{option} {path}"
        _refuse_other_file(option, path, ours, overwrite)
        if probe:
            require_writable(path)


def given_files(*given: str | Path | None) -> list[Path]:
    """What a command was given to read, without the None among it, and the file of settings."""
    context = click.get_current_context(silent=True)
    config = context.find_root().params.get("config") if context else None
    return [Path(path) for path in (*given, config) if path is not None]


def refuse_inputs(option: str, target: Path, inputs: Iterable[Path]) -> None:
    """Raises ``UsageError`` where ``target`` is one of the files that are read, under whichever of its names."""
    for path in inputs:
        same = _place(path) == _place(target)
        with contextlib.suppress(OSError):  # one of them is missing
            same = same or os.path.samefile(path, target)
        if same:
            raise UsageError(f"{option} {target} would replace an input of this command", _ELSEWHERE)


def _refuse_other_file(option: str, path: Path, ours: bool, overwrite: bool | None) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:  # require_writable says more
        return
    if not stat.S_ISREG(mode):
        raise OutputError(f"{option} {path} is {kind_of(mode)}, expected a place for a file", _ELSEWHERE)
    if not overwrite and not ours:
        raise UsageError(
            f"{path} exists and was not written by mrsep-deploy as {option}",
            _ELSEWHERE if overwrite is None else f"{_ELSEWHERE}, or give --overwrite",
        )


def _is_ours(path: Path, kind: re.Pattern[bytes]) -> bool:
    """Whether it is an earlier report of its kind; an empty file counts as one, nothing is lost with it."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with open(path, "rb") as opened:
            head = opened.read(READ)
    except OSError:
        return False
    return not head or kind.match(head) is not None


def _place(path: Path) -> str:
    return same_place(os.path.realpath(path))


def write_page(path: Path | None, make: Callable[[], Page]) -> None:
    """Writes the page that ``--html`` asked for, if it did."""
    if path is not None:
        from mrsep_deploy.files.parts import write_file
        from mrsep_deploy.pages.page import render

        write_file(path, render(make()).encode())
