"""Markdown that the commands write: a name of a stranger's file is text in it, whatever is in the name."""

from __future__ import annotations

import html
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundles import SAMPLE_RATE, SOURCES, tiny_bundle
from click.testing import CliRunner

from mrsep_deploy import errors
from mrsep_deploy.bench import results as results_module
from mrsep_deploy.bench.contenders import OURS, Contender
from mrsep_deploy.bench.report import to_markdown
from mrsep_deploy.bench.results import Race, Row
from mrsep_deploy.commands import main
from mrsep_deploy.terminal.markdown import escaped, table_lines

markdown_it = pytest.importorskip("markdown_it")

NAMES = (
    "<script>alert(1)</script>", "a|b", "a\\|b", "trailing\\", "[x](javascript:1)", "![x](http://example.org/x.png)",
    "`", "``code``", "*bold* _and_ ~~so~~", "a\nb", "a\r\n\r\n# heading", "a\u2028b\x85c", "&lt;b&gt; &#60;b&#62;",
    "<!-- a", "<https://example.org>", "[x]: javascript:1", "[^1]", "__init__", "chaos_god", "- [ ] a", "\x1b[31mred",
)  # fmt: skip


def rendered(text: str) -> str:
    """As HTML: tables and strike-through on, raw HTML let through, as nothing forbids it to a reader."""
    made: str = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return made


def cells(text: str) -> list[list[str]]:
    """What stands in the rows of the tables, as a browser shows it."""
    rows = re.findall(r"<tr>(.*?)</tr>", rendered(text), re.DOTALL)
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def line(name: str) -> str:
    """How a name looks in one line."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", name).strip()


def check(text: str) -> None:
    """Nothing but headings, tables, paragraphs and lists came of it."""
    tags = set(re.findall(r"<\s*/?\s*(\w+|!--)", rendered(text)))
    assert tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}, tags


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text(name: str) -> None:
    check(f"# {escaped(name)}\n\nof {escaped(name)}.\n")
    table = "\n".join(table_lines(("track", "dB"), [(name, "1.00"), ("next", "2.00")]))
    check(table)
    assert cells(table) == [["track", "dB"], [line(name), "1.00"], ["next", "2.00"]]
    assert f"<p>of {line(name)}.</p>" in html.unescape(rendered(f"of {escaped(name)}."))
    assert len(table.splitlines()) == 4


def test_usual_names_stay_as_they_are() -> None:
    for name in (
        "chaos_god.ogg",
        "Al James - Schoolboy Facination",
        "1.50 [1.40, 1.60]",
        "10 (live)",
        "12.3 ms",
    ):
        assert escaped(name) == name


def test_what_is_no_unicode_can_be_written() -> None:
    assert escaped(os.fsdecode(b"a\xffb")).encode() == b"a?b"


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows has not")
def test_eval_of_tracks_with_such_names(tmp_path: Path) -> None:
    """``results.md``, the page and ``results.json``, the latter with the names as they are."""
    tiny_bundle(tmp_path)
    names = [name.replace("/", "∕") for name in (*NAMES, os.fsdecode(b"a\xffb"))]
    for name in names:
        folder = tmp_path / "tracks" / name
        folder.mkdir(parents=True)
        for source in SOURCES:
            samples = np.random.default_rng(len(source)).uniform(-0.3, 0.3, (SAMPLE_RATE // 8, 2))
            with (folder / f"{source}.wav").open("wb") as file:
                soundfile.write(file, samples, SAMPLE_RATE, format="WAV")
    (tmp_path / "tracks" / "broken <b>`[x](y)").mkdir()
    (tmp_path / "tracks" / "broken <b>`[x](y)" / "drums.wav").write_text("none")
    (tmp_path / "tracks" / "broken <b>`[x](y)" / "other.wav").write_text("none")
    page = tmp_path / "eval.html"
    found = CliRunner().invoke(
        main.main,
        ["eval", str(tmp_path / "tracks"), "-n", str(tmp_path / "tiny"), "--engine", "ort", "--metric", "mdx", "-q",
         "-o", str(tmp_path / "out"), "--html", str(page)],
        prog_name=main.PROGRAM,
    )  # fmt: skip
    assert found.exit_code == errors.PARTIAL, found.output
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    check(text)
    shown = {row[0] for row in cells(text)}
    assert {line(name).encode(errors="replace").decode() for name in names} <= shown
    assert "Failed: broken <b>`[x](y)" in html.unescape(rendered(text))
    kept = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {track["track"] for track in kept["tracks"]["ort"]} == set(names)
    assert "<script" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_bench_s_markdown(name: str) -> None:
    row = Row(Contender(name, OURS, "bundle"))
    row.end("failed", name, name)
    machine = {"cpu": name, "cores": 2, "versions": {"onnx": name}, "date": "today"}
    found = results_module.Result(machine, {"threads": 1}, models={name: {"segment_seconds": 1.0}})
    found.races.append(Race(name, "segments", 1.0, 1, [row]))
    check(to_markdown(found))
    assert cells(to_markdown(found))[1][0] == line(name)
