"""Reports that a command writes beside its work: refused before the work begins if they would cost somebody a file.

A report never takes the place of an input or of something else that the command writes. A file that is there is
replaced if it is an earlier report of the same kind, which its beginning tells, or if ``--overwrite`` says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class OutputFile:
    """A report to be written.

    Attributes:
        option: what the user has said to get it.
        ours: how files of this kind begin.
    """

    option: str
    path: Path
    ours: re.Pattern[bytes]


def wanted(*files: tuple[str, Path | None, re.Pattern[bytes]]) -> list[OutputFile]:
    """Those of the reports that were asked for."""
    return [OutputFile(option, path, ours) for option, path, ours in files if path is not None]


def check_output_files(
    files: Sequence[OutputFile],
    inputs: Iterable[Path],
    overwrite: bool | None,
    others: Iterable[Path] = (),
    probe: bool = True,
) -> None:
    """Refuse reports that would take the place of something else, or that cannot be written.

    Args:
        files: the reports; they may not be one file either.
        inputs: files and folders that the command reads, missing ones too. No report takes the place of one, nor,
            in a folder, of what is not an earlier report.
        overwrite: replace files that are none of ours; None where the command has no such option.
        others: what else the command writes.
        probe: find out whether something can be written there, by writing an empty file beside it.

    Raises:
        UsageError: a report would replace an input, another output, or a file that is none of ours.
        OutputError: it cannot be written there.
    """
    places = {_place(path): f"{path} is to be written, too" for path in others}
    read = list(inputs)
    for file in files:
        refuse_inputs(file.option, file.path, read)
        for folder in filter(Path.is_dir, read):
            _refuse_file_inside(file, folder)
        place = _place(file.path)
        if place in places:
            raise UsageError(
                f"{file.option} {file.path} would replace another output: {places[place]}", _ELSEWHERE
            )
        places[place] = f"{file.option} {file.path}"
        _refuse_other_file(file, overwrite)
        if probe:
            require_writable(file.path)


def given_files(*given: str | Path | None) -> list[Path]:
    """What a command was given to read, without the None among it, and the file of settings."""
    config = click.get_current_context().find_root().params.get("config")
    return [Path(path) for path in (*given, config) if path is not None]


def refuse_inputs(option: str, target: Path, inputs: Iterable[Path]) -> None:
    """Refuse to replace a file that is read, under whichever of its names.

    Raises:
        UsageError: ``target`` is one of the inputs.
    """
    for path in inputs:
        same = _place(path) == _place(target)
        with contextlib.suppress(OSError):  # one of them is missing
            same = same or os.path.samefile(path, target)
        if same:
            raise UsageError(f"{option} {target} would replace an input of this command", _ELSEWHERE)


def _refuse_file_inside(file: OutputFile, folder: Path) -> None:
    inside = Path(os.path.realpath(file.path)).is_relative_to(os.path.realpath(folder))
    if inside and os.path.lexists(file.path) and not _is_ours(file):
        raise UsageError(
            f"{file.option} {file.path} would replace a file in {folder}, an input of this command",
            _ELSEWHERE,
        )


def _refuse_other_file(file: OutputFile, overwrite: bool | None) -> None:
    try:
        mode = os.stat(file.path).st_mode
    except OSError:  # require_writable says more
        return
    if not stat.S_ISREG(mode):
        raise OutputError(
            f"{file.option} {file.path} is {kind_of(mode)}, expected a place for a file", _ELSEWHERE
        )
    if not overwrite and not _is_ours(file):
        raise UsageError(
            f"{file.path} exists and was not written by mrsep-deploy as {file.option}",
            _ELSEWHERE if overwrite is None else f"{_ELSEWHERE}, or give --overwrite",
        )


def _is_ours(file: OutputFile) -> bool:
    """Whether it is an earlier report of its kind; an empty file counts as one, nothing is lost with it."""
    try:
        with open(file.path, "rb") as opened:
            head = opened.read(READ)
    except OSError:
        return False
    return not head or file.ours.match(head) is not None


def _place(path: Path) -> str:
    return same_place(os.path.realpath(path))


def write_page(path: Path | None, make: Callable[[], Page]) -> None:
    """Writes the page that ``--html`` asked for, if it did."""
    if path is not None:
        from mrsep_deploy.files.parts import write_file
        from mrsep_deploy.pages.page import render

        write_file(path, render(make()).encode())
