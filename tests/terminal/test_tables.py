"""One table, as every medium shows it."""

from __future__ import annotations

import io

from rich.console import Console

from mrsep_deploy.terminal.markdown import document
from mrsep_deploy.terminal.tables import NOTHING, Part, Table, print_parts, without_empty

TABLE = Table(
    "Figures",
    ("name", "empty", "dB", "result"),
    [("[red]a", NOTHING, "1.0", "ok"), ("b|c", NOTHING, "22.0", "")],
    text_columns=(0, 3),
    strong=[0],
    note="More is better.",
    bad=[1],
)


def test_empty_columns_go_and_words_stay_words() -> None:
    found = without_empty(TABLE)
    assert found.columns == ["name", "dB", "result"]
    assert found.rows == [["[red]a", "1.0", "ok"], ["b|c", "22.0", ""]]
    assert found.text_columns == [0, 2]
    only_names = Table("", ("name", "dB"), [(NOTHING, NOTHING)])
    assert without_empty(only_names).columns == ["name"], "the first column stays"


def test_the_terminal_and_markdown_show_the_same_cells() -> None:
    part = Part("A part", [TABLE], ["A remark."])
    screen = Console(file=io.StringIO(), width=100)
    print_parts(screen, [part])
    assert isinstance(screen.file, io.StringIO)
    shown, page = screen.file.getvalue(), document("Title", ["A *line*."], [part])
    for text in ("A part", "1.0", "22.0", "More is better.", "A remark."):
        assert text in shown
        assert text in page
    assert "[red]a" in shown, "names are text, not markup"
    assert page.splitlines()[:5] == ["# Title", "", "A *line*.", "", "## A part"]
    assert r"| b\|c |" in page
    lines = [line for line in shown.splitlines() if "a" in line or "b|c" in line]
    assert any(line.startswith("b|c") for line in lines)
