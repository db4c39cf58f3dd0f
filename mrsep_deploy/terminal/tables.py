"""Numbers and tables as people read them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

NOTHING = "–"
"""A cell without a value."""


@dataclass(frozen=True)
class Table:
    """A table that every medium can show: the terminal, Markdown and HTML.

    Attributes:
        rows: cells as text.
        text_columns: columns of words; the others hold figures.
        strong, bad: rows to stand out, and rows that failed.
        note: how to read it.
    """

    kind: ClassVar[str] = "table"  # of a block of a page
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)
    strong: Sequence[int] = ()
    note: str = ""
    bad: Sequence[int] = ()


@dataclass(frozen=True)
class Part:
    """A heading with tables and, below them, lines of text."""

    title: str
    tables: Sequence[Table] = ()
    remarks: Sequence[str] = ()


def without_empty(found: Table) -> Table:
    """Returns the table without the columns in which no cell has a value; the first one stays."""
    used = [
        number
        for number in range(len(found.columns))
        if not number or any(row[number] not in (NOTHING, "") for row in found.rows)
    ]
    return replace(
        found,
        columns=[found.columns[number] for number in used],
        rows=[[row[number] for number in used] for row in found.rows],
        text_columns=[place for place, number in enumerate(used) if number in found.text_columns],
    )


def print_table(screen: Console, found: Table) -> None:
    """Prints the rows and, below them, the note; columns fold where they have to, the first one between words."""
    right = [name for number, name in enumerate(found.columns) if number not in found.text_columns]
    made = table(*found.columns, right=right)
    made.columns[0].no_wrap = True  # names of rows stay readable where figures have to fold
    names = _folded(screen.width, found)
    for number, row in enumerate(found.rows):
        style = "red" if number in found.bad else "bold" if number in found.strong else None
        made.add_row(Text(names[number]), *map(Text, row[1:]), style=style)
    screen.print(made)
    if found.note:
        screen.print(found.note, style="dim", soft_wrap=True)


def _folded(width: int, found: Table) -> list[str]:
    """Returns the cells of the first column, folded between words to what the other columns leave of ``width``."""
    others = list(zip(found.columns, *found.rows, strict=True))[1:]
    room = width - sum(2 + max(map(len, column)) for column in others)
    longest = max((len(word) for row in found.rows for word in row[0].split()), default=1)
    return [textwrap.fill(row[0], max(room, longest), break_on_hyphens=False) for row in found.rows]


def print_parts(screen: Console, parts: Iterable[Part]) -> None:
    """Prints every part with an empty line after it."""
    for part in parts:
        screen.print(part.title, style="bold", soft_wrap=True)
        for found in part.tables:
            print_table(screen, found)
        for remark in part.remarks:
            screen.print(remark, soft_wrap=True)
        screen.print()


def count(number: int) -> str:
    """A number to three digits with its prefix: ``5.89 M``; whole below a thousand."""
    if number < 1000:
        return str(number)
    value, prefixes = number / 1000, list("kMGTPE")
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        del prefixes[0]
    return f"{value:#.3g}".rstrip(".") + f" {prefixes[0]}"


def file_size(size: int) -> str:
    """Bytes with a decimal prefix: ``956 kB``."""
    text = count(size)
    return f"{text}B" if " " in text else f"{text} B"


def duration(seconds: float) -> str:
    """Seconds to three digits: ``1.96 s``, ``12.3 ms``."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def shape(sizes: Sequence[int]) -> str:
    """``1×4×256×63``."""
    return "×".join(map(str, sizes))


def decibels(snr: float | None) -> str:
    """A level or a ratio to a tenth of a dB: ``-13.4``, ``exact``, ``-∞``; a dash if there is none."""
    if snr is None:
        return NOTHING
    if math.isinf(snr):
        return "exact" if snr > 0 else "-∞"
    return f"{snr:.1f}"


def optional(value: float | None, form: str) -> str:
    """A value in a format such as ``{:.2f} dB``; a dash if there is none."""
    return NOTHING if value is None else form.format(value)


def table(*columns: str, right: Sequence[str] = ()) -> rich_table.Table:
    """Returns an empty table for a terminal, without lines; the columns named in ``right`` hold numbers."""
    made = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        side = "right" if column in right else "left"
        made.add_column(Text(column, "dim"), justify=side, overflow="fold")  # type: ignore[arg-type]
    return made
