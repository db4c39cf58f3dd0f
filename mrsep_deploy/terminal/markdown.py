"""Text in Markdown files: names come from strangers' files, and nothing in them becomes markup or HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from mrsep_deploy.terminal.tables import Part

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(
    r"[\\`*|~]"
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # inside of a word it is no markup
    r"|\](?=[(\[:])|\[(?=\^)"  # a link, a definition, a footnote; brackets alone are none
)


def escaped(text: str) -> str:
    """Text that a Markdown reader shows as it is, in one line.

    Control characters and line breaks become a space; what UTF-8 cannot hold becomes a question mark.

    >>> escaped("<b>a|b</b>")
    '&lt;b&gt;a\\\\|b&lt;/b&gt;'
    """
    line = _CONTROLS.sub(" ", text).strip().encode("utf-8", "replace").decode("utf-8")
    marked = _MARKUP.sub(lambda found: f"\\{found[0]}", line)
    return re.sub(r"[&<>]", lambda found: _HTML[found[0]], marked)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table; every cell is escaped."""
    yield _line(columns)
    yield "|" + "---|" * len(columns)
    yield from map(_line, rows)


def document(title: str, lead: Iterable[str], parts: Iterable[Part]) -> str:
    """Returns a page: its title, lines below it, then every part under a heading of its own.

    Args:
        title: text; it is escaped, as are headings, cells and remarks.
        lead: lines of Markdown.
        parts: in order.
    """
    lines = [f"# {escaped(title)}", *(("", *lead) if lead else ())]
    for part in parts:
        lines += ["", f"## {escaped(part.title)}"]
        for table in part.tables:
            lines += ["", *table_lines(table.columns, table.rows)]
            lines += ["", escaped(table.note)] if table.note else []
        for remark in part.remarks:
            lines += ["", escaped(remark)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
