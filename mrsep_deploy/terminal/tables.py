"""Numbers and tables as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text


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
    """A signal-to-noise ratio to a tenth of a dB; a dash if there is none."""
    if snr is None:
        return "–"
    return "exact" if math.isinf(snr) and snr > 0 else f"{snr:.1f}"


def table(*columns: str, right: Sequence[str] = (), title: str | None = None) -> Table:
    """An empty table without lines; the columns named in ``right`` hold numbers."""
    made = Table(
        box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", padding=(0, 2, 0, 0)
    )
    for column in columns:
        side = "right" if column in right else "left"
        made.add_column(Text(column, "dim"), justify=side, overflow="fold")  # type: ignore[arg-type]
    return made
