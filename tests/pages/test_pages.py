"""Reports: valid pages that need nothing from elsewhere, say who won honestly, and fit phones, prints and the dark."""

from __future__ import annotations

import base64
import copy
import html
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import pytest
import soundfile
from bundles import SAMPLE_RATE, tiny_bundle
from click.testing import CliRunner, Result
from goldens import Export

from mrsep_deploy import errors
from mrsep_deploy.commands import main
from mrsep_deploy.measuring.limits import Powers, limit_for
from mrsep_deploy.pages import scales, spectrograms
from mrsep_deploy.pages.bench_page import bench_page, race_verdict, warnings
from mrsep_deploy.pages.page import render
from mrsep_deploy.verification.worst import SECONDS, ExcerptKeeper

html5lib = pytest.importorskip("html5lib")

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs"))

import reports  # noqa: E402

H = "{http://www.w3.org/1999/xhtml}"
S = "{http://www.w3.org/2000/svg}"
MOST_BYTES = 500_000
STYLE = (ROOT / "mrsep_deploy" / "pages" / "style.css").read_text(encoding="utf-8")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def parsed(page: str) -> Element:
    """The document; what is not valid HTML raises."""
    root: Element = html5lib.HTMLParser(strict=True).parse(page)
    return root


def text_of(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def bench_result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((reports.RESULTS / "report_bench.json").read_text(encoding="utf-8"))
    return found


def check_page(page: str) -> Element:
    """All that holds for every page."""
    root = parsed(page)
    _needs_nothing(root, page)
    _can_be_read_aloud(root)
    _has_figures_beside_plots(root)
    _what_is_wide_scrolls(root)
    _what_is_drawn_has_a_legend(root)
    _pictures_have_axes(root)
    return root


def _needs_nothing(root: Element, page: str) -> None:
    for element in root.iter():
        assert element.tag not in (f"{H}script", f"{H}link", f"{H}iframe", f"{H}object"), element.tag
        for name, value in element.attrib.items():
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                assert value.startswith("data:"), value[:80]
    assert "@import" not in page
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}


def _can_be_read_aloud(root: Element) -> None:
    top = root if root.tag == f"{H}html" else root.find(f"{H}html")
    assert top is not None
    assert top.get("lang") == "en"
    assert [text_of(title) for title in root.iter(f"{H}title")] != [""]
    levels = [int(e.tag[-1]) for e in root.iter() if re.fullmatch(rf"{re.escape(H)}h[1-6]", str(e.tag))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    for svg in root.iter(f"{S}svg"):
        named = svg.get("aria-label") or svg.findtext(f"{S}title")
        hidden = svg.get("aria-hidden") == "true" or "track" in svg.get("class", "").split()
        assert named or hidden
    for image in root.iter(f"{H}img"):
        assert image.get("alt")


def _has_figures_beside_plots(root: Element) -> None:
    for strip in by_class(root, "strip"):
        if "axis" not in strip.get("class", "").split():
            (value,) = by_class(strip, "value")
            assert text_of(value)
            (track,) = by_class(strip, "track")
            assert text_of(by_class(strip, "name")[0]) in track.get("aria-label", "")


def _what_is_wide_scrolls(root: Element) -> None:
    """Tables and timelines lie in something that scrolls; all else takes the width that there is."""
    inside = {id(e) for box in by_class(root, "scroll") for e in box.iter()}
    for element in (*root.iter(f"{H}table"), *by_class(root, "timeline")):
        assert id(element) in inside
    for box in by_class(root, "scroll"):
        assert (box.get("tabindex"), box.get("role")) == ("0", "region"), "keys can scroll it"
        assert "scrolls sideways" in box.get("aria-label", "")


def marks_in(element: Element) -> set[tuple[str, str]]:
    """Kinds and colours of what is drawn: ``("dot", "c6")``."""
    kinds = ("bar", "range", "limit", "dot", "round")
    found = (each.get("class", "").split() for each in element.iter())
    return {(names[0], names[1]) for names in found if len(names) == 2 and names[0] in kinds}


def _what_is_drawn_has_a_legend(root: Element) -> None:
    """Every mark of a plot stands in its legend: as it is, or its kind there, and its colour as that of a bar."""
    for plot in by_class(root, "plot"):
        keys = {mark for each in by_class(plot, "keys") for mark in marks_in(each)}
        for kind, colour in {mark for track in by_class(plot, "track") for mark in marks_in(track)}:
            known = (kind, colour) in keys or (kind in {k for k, _ in keys} and ("bar", colour) in keys)
            assert known, (text_of(plot)[:60], kind, colour, keys)


def _pictures_have_axes(root: Element) -> None:
    """Time below and frequency at the left of every spectrogram, with units."""
    for box in by_class(root, "frames"):
        for frame in box.iter(f"{H}figure"):
            assert [text_of(title) for title in by_class(frame, "axis-title")] == ["frequency", "time"]
            labels = [text_of(label) for label in frame.iter(f"{S}text")]
            assert len([label for label in labels if re.fullmatch(r"\d+ k?Hz", label)]) >= 2, labels
            assert len([label for label in labels if re.fullmatch(r"[\d.]+ m?s", label)]) >= 2, labels


def by_class(root: Element, name: str) -> list[Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


# --- the examples


@pytest.mark.parametrize("name", reports.REPORTS)
def test_the_examples_are_made_of_their_results(name: str) -> None:
    """``python docs/reports.py`` makes them anew."""
    page = (reports.FOLDER / f"{name}.html").read_text(encoding="utf-8")
    assert page == reports.made(name)
    assert len(page.encode()) < MOST_BYTES
    check_page(page)


def test_what_the_example_of_a_benchmark_shows() -> None:
    """Every plot there is, who won, the environment, the command."""
    page = (reports.FOLDER / "bench.html").read_text(encoding="utf-8")
    root, result = parsed(page), bench_result()
    said = text_of(root)
    titles = [text_of(h) for level in ("h2", "h3") for h in root.iter(f"{H}{level}")]
    for part in ("All figures", "Memory", "To the first stems", "times real time by batch", "Share of each stage",
                 "stages on", "Weight of each resolution", "Environment", "How to reproduce"):  # fmt: skip
        assert any(part in title for title in titles), part
    for race in result["races"]:
        assert race_verdict(result, race).headline in said
    assert result["command"] in said
    assert result["machine"]["cpu"] in said
    for row in result["rows"]:
        assert row["label"] in said
        assert row["status"] == "ok" or row["reason"] in said


def test_what_the_example_of_a_verification_shows() -> None:
    page = (reports.FOLDER / "verify.html").read_text(encoding="utf-8")
    images = [image.get("src", "") for image in parsed(page).iter(f"{H}img")]
    assert len(images) == 3
    for uri in images:
        assert png_size(uri) == (spectrograms.COLUMNS, spectrograms.ROWS)
    assert len(set(images)) == 3


# --- who won


def race_of(ratio: tuple[float, float, float], status: str = "ok") -> dict[str, Any]:
    """A benchmark of torch and one engine, so many times as fast, with an interval."""
    found = bench_result()
    race = found["races"][0]
    rows = [
        row for row in found["rows"] if (row["model"], row["workload"]) == (race["model"], race["workload"])
    ]
    torch, ort = (
        copy.deepcopy(next(row for row in rows if row["label"] == name)) for name in ("torch", "ort")
    )
    ort["ratios"] = {"torch": dict(zip(("low", "median", "high"), ratio, strict=True))}
    torch["ratios"] = {"ort": {"median": 1 / ratio[1], "low": 1 / ratio[2], "high": 1 / ratio[0]}}
    ort["median"] = torch["median"] / ratio[1]
    mark = "" if status == "ok" else "wrong stems: 20.0 dB, limit 100"
    ort.update(status=status, mark=mark, reason=mark)
    return {**found, "races": [{**race, "baseline": "torch", "noise": None}], "rows": [torch, ort]}


@pytest.mark.parametrize(
    ("ratio", "status", "headline", "detail", "tone"),
    [
        ((1.4, 1.5, 1.6), "ok", "ort is 1.50 times as fast as torch", "1.50 × (95 % from 1.40 to 1.60)", "good"),
        ((0.95, 1.02, 1.1), "ok", "within the noise", "1.02 × (95 % from 0.95 to 1.10)", "plain"),
        ((0.7, 0.8, 0.9), "ok", "Nothing is faster than the baseline torch", "ort is slower than torch", "bad"),
        ((0.9, 0.98, 1.1), "ok", "Nothing is faster", "ort cannot be told apart from torch", "bad"),
        ((1.4, 1.5, 1.6), "failed", "nothing to compare it with", "ort failed: wrong stems: 20.0 dB", "plain"),
    ],
)  # fmt: skip
def test_the_verdict(ratio: Any, status: str, headline: str, detail: str, tone: str) -> None:
    """A lead within the interval is none, a loss is said, and so is a fast engine that is wrong."""
    result = race_of(ratio, status)
    found = race_verdict(result, result["races"][0])
    assert headline in found.headline
    assert any(detail in text for text in found.details), found.details
    assert found.tone == tone


def test_noise_is_said() -> None:
    """At the top, and a win on a busy machine is not praised."""
    result = race_of((1.4, 1.5, 1.6))
    result["machine"] = {**result["machine"], "cores": 2}
    result["races"][0]["noise"] = {
        "quiet": False, "load_before": 3.1, "remarks": ["the load average was 3.10 before the start"],
    }  # fmt: skip
    assert any("the load average was 3.10" in text for text in warnings(result))
    verdict = race_verdict(result, result["races"][0])
    assert verdict.tone == "plain"
    assert verdict.details[0] == "The machine was busy (load 3.1 on 2 cores): treat these times as rough."
    steady = {
        "quiet": False,
        "load_before": 0.1,
        "remarks": ["ort was 17% slower in the later half of the rounds"],
    }
    result["races"][0]["noise"] = steady
    verdict = race_verdict(result, result["races"][0])
    assert (
        verdict.details[0]
        == f"The machine was not steady ({steady['remarks'][0]}): treat these times as rough."
    )
    result = race_of((1.4, 1.5, 1.6))
    result["races"][0]["noise"] = {
        "quiet": False, "load_before": 3.1, "remarks": ["the load average was 3.10 before the start"],
    }  # fmt: skip
    assert "the load average was 3.10" in render(bench_page(result))


def test_a_stem_below_its_limit_is_red_and_the_legend_says_so() -> None:
    from mrsep_deploy.pages.verify_page import verify_page

    result = json.loads((reports.RESULTS / "report_verify.json").read_text(encoding="utf-8"))
    passed = by_class(check_page(render(verify_page(result))), "keys")[0]
    assert "below its limit" not in text_of(passed)
    result["stems"][0].update(passes=False, snr_db=20.0)
    assert "below its limit" in text_of(by_class(check_page(render(verify_page(result))), "keys")[0])


def profile_page() -> str:
    """A page of ``bench --profile``, with operators as the engines name them."""
    result = json.loads((reports.RESULTS / "profile_trained.json").read_text(encoding="utf-8"))
    return render(bench_page(result))


def page_of_many_ticks() -> str:
    """A benchmark with an axis of seven ticks, ``0.2 GB`` and the like."""
    result = bench_result()
    for row in result["rows"]:
        row["memory"]["peak_bytes"] = 1_310_000_000
    return render(bench_page(result))


def test_words_in_tables_do_not_fold_into_towers() -> None:
    """A cell of words far to the right, which a phone does not show at first, makes no row of it empty and high."""
    root = check_page(profile_page())
    cells = [cell for cell in root.iter(f"{H}td") if "words" in cell.get("class", "").split()]
    assert any("Conv" in text_of(cell) for cell in cells)
    for cell in cells:
        assert [inner.get("class") for inner in cell] == ["cell"]
    assert re.search(r"\.cell \{[^}]*width: max-content", STYLE)


def test_names_are_text() -> None:
    """Labels and reasons come from files and libraries: nothing in them becomes markup."""
    evil = '<script>alert("1")</script> & "quotes"'
    result = race_of((1.4, 1.5, 1.6), "failed")
    result["rows"][0].update(label=evil)
    result["races"][0]["baseline"] = evil
    result["rows"][1].update(mark=evil, reason=evil)
    page = render(bench_page(result))
    assert evil in text_of(check_page(page))


# --- in light, in the dark, on paper


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block))


LIGHT = colours(STYLE.split("@media")[0])
DARK = colours(STYLE.split("prefers-color-scheme: dark")[1].split("* {")[0])
PRINT = colours(STYLE.split("@media print")[1])


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("palette", [LIGHT, DARK, PRINT], ids=["light", "dark", "print"])
def test_colours_can_be_told_from_their_background(palette: dict[str, str]) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for what is drawn; every palette has every colour."""
    assert palette.keys() == LIGHT.keys()
    text = [(ink, page) for ink in ("ink", "soft", "good", "bad") for page in ("page", "panel")]
    drawn = [(name, "page") for name in ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "grey")]
    for least, pairs in ((4.5, [*text, ("warn-ink", "warn")]), (3, drawn)):
        for front, back in pairs:
            lighter, darker = sorted((luminance(palette[front]), luminance(palette[back])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= least, (front, back)


def test_nothing_but_the_timeline_has_a_width_of_its_own() -> None:
    """A phone has 20 rem; what is wider has to scroll."""
    for selector, rules in re.findall(r"([^{}]+)\{([^{}]*)\}", STYLE):
        for width in re.findall(r"(?:^|[\s;])(?:min-)?width:\s*([\d.]+)(?:rem|em)", rules):
            assert float(width) < 20 or ".drawing svg" in selector, selector
        assert not re.search(r"(?:^|[\s;])(?:min-)?width:\s*\d{3,}px", rules), selector


# --- scales and spectrograms


@pytest.mark.parametrize("values", [[0.02, 0.03], [1.0, 7.9], [-3.0, 12.0], [120.5], [0.0], [], [1e9, 3e9]])
def test_scales(values: list[float]) -> None:
    """Every value has its place inside, in order; there are some ticks, in order, inside."""
    scale = scales.Scale.over(values)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    ticks = [tick.at for tick in scale.ticks()]
    assert 3 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert scale.at(float("inf")) == 100


def png_size(uri: str) -> tuple[int, int]:
    """Width and height of a PNG, every chunk's checksum and the length of its data checked."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    assert len(zlib.decompress(chunks[b"IDAT"])) == height * (width + 1)
    assert len(chunks[b"PLTE"]) == 3 * 256
    return width, height


@pytest.mark.parametrize("seconds", [0.01, 0.5, 20.0])
@pytest.mark.parametrize("hertz", [110.0, 3000.0])
def test_a_sine_is_a_line_at_its_frequency(seconds: float, hertz: float) -> None:
    rate = 44100
    sine = np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)
    found = spectrograms.power(sine, rate)
    assert found.shape == (spectrograms.ROWS, spectrograms.COLUMNS)
    edges = np.geomspace(spectrograms.LOWEST_HZ, rate / 2, spectrograms.ROWS + 1)
    row = spectrograms.ROWS - 1 - int(found.mean(axis=1).argmax())
    assert edges[row] / 1.25 < hertz < edges[row + 1] * 1.25
    assert png_size(spectrograms.data_uri(spectrograms.shades(found, 0.0))) == found.shape[::-1]


def test_silence_and_what_is_no_number() -> None:
    silence = spectrograms.power(np.zeros(1000, np.float32), 8000)
    assert not spectrograms.shades(silence, spectrograms.peak_db(silence)).any()
    broken = np.full(1000, np.nan, np.float32)
    assert not spectrograms.power(broken, 8000).any()


def test_an_excerpt_is_the_start_of_the_stem_that_did_worst() -> None:
    from types import SimpleNamespace

    rate = 100
    model = SimpleNamespace(sample_rate=rate)
    keeper = ExcerptKeeper(model, ("engine", "PyTorch"))  # type: ignore[arg-type]

    limit = limit_for("float16")

    def settle(track: str, *snr: float) -> None:
        keeper.settle(
            [
                SimpleNamespace(
                    track=track, source=source, judgement=limit.judge(Powers(1.0, 10 ** (-value / 10), 1.0)),
                )
                for source, value in zip(("drums", "bass"), snr, strict=True)
            ]  # type: ignore[arg-type]
        )  # fmt: skip

    for track, snr in (("one", (70, 65)), ("two", (62, 90)), ("three", (80, 80))):
        for block in range(5):
            stems = np.full((2, 2, rate * 10), float(block + len(track)))
            keeper.hear(stems, stems / 2)
        settle(track, *snr)
    found = keeper.worst
    assert found is not None
    assert (found.track, found.source) == ("two", "drums")
    assert len(found.candidate) == SECONDS * rate
    assert np.array_equal(found.candidate, 2 * found.reference)
    assert f"first {SECONDS:g} s" in found.why


# --- the commands


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main.main, arguments)


def test_bench_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"flop_per_second": 1e11, "bytes_per_second": 1e10}
    monkeypatch.setattr("mrsep_deploy.bench.ceilings.cpu_ceilings", lambda _threads: given)
    tiny_bundle(tmp_path)
    page = tmp_path / "bench.html"
    found = run(
        "bench", str(tmp_path / "tiny"), "--engine", "ort", "--against", "none", "--rounds", "1", "--threads", "1",
        "--html", str(page), "-q",
    )  # fmt: skip
    assert found.exit_code == errors.DONE, found.output
    said = text_of(check_page(page.read_text(encoding="utf-8")))
    assert "There was nothing to compare it with" in said
    assert "mrsep-deploy bench tiny --engine ort" in said, "absolute paths are left out"


def test_eval_writes_a_page(tmp_path: Path) -> None:
    tiny_bundle(tmp_path)
    for source in ("drums", "other"):
        (tmp_path / "tracks" / "song").mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(source)).uniform(-0.3, 0.3, (SAMPLE_RATE, 2))
        soundfile.write(tmp_path / "tracks" / "song" / f"{source}.wav", noise, SAMPLE_RATE)
    page = tmp_path / "eval.html"
    found = run(
        "eval", str(tmp_path / "tracks"), "-n", str(tmp_path / "tiny"), "--engine", "ort,openvino", "--metric", "mdx",
        "-o", str(tmp_path / "out"), "--html", str(page), "-q",
    )  # fmt: skip
    assert found.exit_code == errors.DONE, found.output
    said = text_of(check_page(page.read_text(encoding="utf-8")))
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "No engine wins" in said
    for values in result["summary"]["mdx"].values():
        assert all(f"{value:.2f}" in said for value in values.values())


def test_verify_writes_a_page(tmp_path: Path, exports: Export) -> None:
    page = tmp_path / "verify.html"
    found = run(
        "verify", str(exports("htdemucs_n").path), "--precision", "fp16", "--json", "--html", str(page)
    )
    assert found.exit_code == errors.FAILED, found.output
    result = json.loads(found.stdout)
    root = check_page(page.read_text(encoding="utf-8"))
    said = text_of(root)
    assert f"Failed: {len(result['failures'])} figures" in said
    assert all(f"{stem['snr_db']:.1f} dB" in said for stem in result["stems"] if stem["snr_db"] is not None)
    assert len(list(root.iter(f"{H}img"))) == 3


def test_a_settings_file_is_part_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not typed and counts all the same stands in the command, too."""
    from mrsep_deploy.commands import options

    seen: list[str] = []
    monkeypatch.setattr(
        "mrsep_deploy.bundle.registry.resolve", lambda *_: seen.append(options.command_line()) or 1 / 0
    )
    monkeypatch.setenv("MRSEP_DEPLOY_VERIFY_THREADS", "2")
    settings = tmp_path / "settings.toml"
    settings.write_text("[verify]\nlimit = 70.0\n")
    run("--config", str(settings), "verify", "tiny", "--quiet")
    assert seen == ["mrsep-deploy --config settings.toml verify tiny --quiet --limit=70.0 --threads=2"]


@pytest.mark.parametrize("command", [["bench"], ["verify"], ["eval", "."]])
def test_without_jinja2(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is measured."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = run(*command, "--html", str(tmp_path / "page.html"))
    assert found.exit_code == errors.FAILED
    assert "jinja2" in found.stderr
    assert "mrsep-deploy[report]" in found.stderr
    assert found.stderr.count("\n") == 1


def test_calibration_has_no_page(tmp_path: Path) -> None:
    found = run("verify", "--calibrate", "--html", str(tmp_path / "page.html"))
    assert found.exit_code == errors.USAGE


# --- a real browser

PROBE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll") && !e.closest("svg") &&
  e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className);
const covered = [...document.querySelectorAll(".strip")].filter(s => {
  const [a, b] = [".name", ".value"].map(q => s.querySelector(q).getBoundingClientRect());
  return a.width && b.width && a.right > b.left + 1 && a.bottom > b.top + 1 && b.bottom > a.top + 1; }).length;
const heights = [...document.querySelectorAll("tbody tr")].map(r => r.getBoundingClientRect().height);
const hidden = [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth + 1);
const hinted = hidden.filter(s => getComputedStyle(s).backgroundImage.includes("gradient"));
const touching = [...document.querySelectorAll(".axis .track")].filter(a => {
  const boxes = [...a.querySelectorAll("text")].map(t => t.getBoundingClientRect()).filter(b => b.width);
  return boxes.some((b, n) => n && b.left < boxes[n - 1].right + 3); }).length;
parent.document.title = JSON.stringify({inner: innerWidth, scroll: document.documentElement.scrollWidth, wide, covered,
  tallest: Math.max(0, ...heights), touching, hidden: hidden.length, hinted: hinted.length,
  page: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color});
</script>"""


def framed(page: str, width: int) -> str:
    """A page in a frame as wide as a phone: windows of a browser are not that narrow."""
    probed = html.escape(page.replace("</body>", f"{PROBE}</body>"), quote=True)
    style = f"width: {width}px; height: 2000px; border: 0"
    return f'<!doctype html><title></title><body style="margin: 0"><iframe style="{style}" srcdoc="{probed}">'


def browse(profile: Path, page: Path, *options: str) -> str:
    """What headless Chromium prints; it reaches no network."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("name", [*reports.REPORTS, "profile", "many ticks"])
def test_in_a_browser(name: str, tmp_path: Path) -> None:
    """Nothing is wider than a phone or a screen but what scrolls and shows that it does; no row is high and empty,
    no label covers a figure, the dark is dark."""
    examples = (reports.FOLDER / f"{each}.html" for each in reports.REPORTS if each == name)
    text = next((example.read_text(encoding="utf-8") for example in examples), "")
    text = text or (profile_page() if name == "profile" else page_of_many_ticks())
    page, seen = tmp_path / "page.html", {}
    for width in (320, 390, 1280):
        page.write_text(framed(text, width), encoding="utf-8")
        for scheme, number in (("light", 1), ("dark", 0)):
            dom = browse(
                tmp_path / "profile", page, "--window-size=1280,2000", "--dump-dom",
                f"--blink-settings=preferredColorScheme={number}",
            )  # fmt: skip
            title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
            assert title is not None
            found = seen[width, scheme] = json.loads(html.unescape(title[1]))
            assert found["inner"] == width
            assert found["scroll"] <= width
            assert found["wide"] == []
            assert found["covered"] == 0
            assert found["tallest"] <= 60
            assert found["touching"] == 0, "labels of an axis"
            assert found["hinted"] == found["hidden"]
        if width == 390:
            assert seen[390, "light"]["hidden"] > 0, "a phone cuts some table, and its hint is seen above"
    assert seen[390, "light"]["page"] == "rgb(255, 255, 255)"
    assert seen[390, "dark"]["page"] != seen[390, "light"]["page"]
    assert seen[390, "dark"]["ink"] != seen[390, "light"]["ink"]
    page.write_text(text, encoding="utf-8")
    browse(tmp_path / "profile", page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
