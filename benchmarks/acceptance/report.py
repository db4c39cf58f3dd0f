"""``gpu_acceptance.json`` for programs, ``gpu_acceptance.html`` for people. Standard library only.

The page needs nothing beside it: style and pictures are inside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from acceptance.rows import Row, finite
from acceptance.timeline import timeline_svg

FORMAT = "mrsep-deploy gpu acceptance"
FORMAT_VERSION = 1
NAME = "gpu_acceptance"

TITLES = {
    "environment": "Environment",
    "ceilings": "Ceilings measured on this GPU",
    "device": "Device contract",
    "export": "Bundles",
    "parity": "Parity with PyTorch float64, and memory",
    "rounds": "Rounds",
    "latency": "Latency of one batch, mix in host memory to stems in host memory",
    "pipelined": "Batches back to back, two under way",
    "concurrency": "Modes against sequential, same engine",
    "timeline": "Timelines",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1d2330; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #dde1e8; vertical-align: top; }
th { font-weight: 600; color: #556; } pre { white-space: pre-wrap; margin: 0; font-size: 12px; }
.ok { color: #17693a; } .failed { color: #b3261e; } .unavailable, .skipped { color: #8a5a00; }
.scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Report:
    """All rows of one acceptance.

    Attributes:
        ended: why it did not get through; empty if it did.
        remark: what a reader of the figures has to know.
    """

    rows: Sequence[Row]
    budget_minutes: float
    took_seconds: float
    wheels: Sequence[str] = ()
    ended: str = ""
    remark: str = ""

    def counts(self) -> dict[str, int]:
        """Number of rows by status."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.status] = found.get(row.status, 0) + 1
        return found

    def section(self, name: str) -> list[Row]:
        return [row for row in self.rows if row.section == name]


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write both files and give their places."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / f"{NAME}.json", folder / f"{NAME}.html"]
    places[0].write_text(to_json(report), encoding="utf-8")
    places[1].write_text(to_html(report), encoding="utf-8")
    return places


def to_json(report: Report) -> str:
    """The schema is described in ``benchmarks/gpu_acceptance.py``."""
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "budget_minutes": report.budget_minutes,
        "took_seconds": round(report.took_seconds, 1),
        "ended": report.ended,
        "remark": report.remark,
        "wheels": list(report.wheels),
        "counts": report.counts(),
        "rows": [asdict(row) for row in report.rows],
    }
    return json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# --- the page

Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def _path(
    *keys: str, digits: int = 2, scale: float = 1.0, unit: str = ""
) -> Callable[[Mapping[str, Any]], str]:
    """Shows one number of a row's values; nothing where there is none."""

    def show(values: Mapping[str, Any]) -> str:
        value: Any = values
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, (int, float)):
            return f"{value * scale:,.{digits}f}{unit}"
        return "" if value is None else str(value)

    return show


def _interval(key: str) -> Callable[[Mapping[str, Any]], str]:
    def show(values: Mapping[str, Any]) -> str:
        found = values.get(key)
        if not isinstance(found, Mapping):
            return ""
        return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

    return show


def _extent(key: str) -> Callable[[Mapping[str, Any]], str]:
    def show(values: Mapping[str, Any]) -> str:
        found = values.get(key)
        return f"{found['min']:.2f} … {found['max']:.2f}" if isinstance(found, Mapping) else ""

    return show


def _plain(values: Mapping[str, Any]) -> str:
    return json.dumps(finite(values), indent=1, ensure_ascii=False) if values else ""


_COLUMNS: Mapping[str, Sequence[Column]] = {
    "ceilings": (
        ("TB/s", _path("bytes_per_second", scale=1e-12)),
        ("TFLOP/s", _path("flop_per_second", scale=1e-12, digits=1)),
    ),
    "parity": (
        ("SNR dB", _path("snr_db", digits=1)),
        ("worst stem dB", _path("snr_worst_stem_db", digits=1)),
        ("max abs error", _path("max_abs_error", digits=8)),
        ("same as sequential", _path("identical_to_sequential")),
        ("max abs from it", _path("max_abs_from_sequential", digits=8)),
        ("runs alike", _path("same_again")),
        ("slots alike", _path("slots_alike")),
        ("opened in s", _path("open_seconds", digits=1)),
        ("GPU memory taken MiB", _path("taken_mib", digits=0)),
        ("torch peak MiB", _path("torch_peak_mib", digits=0)),
        ("our buffers MiB", _path("buffers_mib", digits=0)),
    ),
    "latency": (
        ("median ms", _path("host_ms", "median")),
        ("p95 ms", _path("host_ms", "p95")),
        ("min … max ms", _extent("host_ms")),
        ("events median ms", _path("event_ms", "median")),
        ("times faster than torch eager [95 %]", _interval("times_faster_than_torch_eager")),
        ("floor ms", _path("floor_ms", "floor")),
        ("times the floor", _path("times_the_floor", digits=1)),
        ("seconds of audio a second", _path("audio_seconds_per_second", digits=0)),
        ("rounds", _path("rounds", digits=0)),
    ),
    "pipelined": (("ms a batch", _path("ms_per_batch")), ("batches", _path("batches", digits=0))),
    "concurrency": (("verdict", _path("verdict")), ("times faster [95 %]", _interval("times_faster"))),
    "timeline": (
        ("span ms", _path("span_ms")),
        ("sum of stages ms", _path("sum_of_stages_ms")),
        ("stages", lambda values: str(len(values.get("stages", ())) or "")),
    ),
}


def to_html(report: Report) -> str:
    """One page: what it comes to, a table a section, timelines."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>GPU acceptance</title>",
        f"<style>{_STYLE}</style><h1>GPU acceptance of mrsep-deploy</h1>",
        f"<p>{escape(_gpu_line(report))}</p>",
        f"<p>{escape(counts)}; {report.took_seconds:.0f} s of at most {report.budget_minutes:g} minutes.</p>",
    ]
    if report.remark:
        parts.append(f"<p><strong>{escape(report.remark)}</strong></p>")
    if report.ended:
        parts.append(f"<p class=failed>Not complete: {escape(report.ended)}.</p>")
    verdicts = [row for row in report.section("concurrency") if row.status == "ok"]
    parts.append("<h2>Does concurrency win?</h2>")
    said = [f"<li>{escape(row.name)}: {escape(str(row.values['verdict']))}" for row in verdicts]
    parts.append(
        f"<ul>{''.join(said)}</ul>" if said else "<p>No engine ran in two modes, so nothing is known.</p>"
    )
    sections = [*TITLES, *dict.fromkeys(row.section for row in report.rows if row.section not in TITLES)]
    for name in sections:
        rows = report.section(name)
        if rows:
            parts.append(f"<h2>{escape(TITLES.get(name, name))}</h2>")
            parts.append(_table(rows, _COLUMNS.get(name, (("found", _plain),))))
            parts += [_picture(row) for row in rows if row.values.get("stages")]
    return "\n".join(parts) + "\n"


def _gpu_line(report: Report) -> str:
    found = next((row.values for row in report.section("environment") if row.name == "gpu"), {})
    if not found:
        return "The GPU did not say what it is."
    return f"{found.get('name')}, compute capability {found.get('compute_capability')}, {found.get('memory_gib')} GiB"


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    titles = ["", "status", *(title for title, _ in columns), "why not, and what would help"]
    lines = [f"<tr>{''.join(f'<th>{escape(title)}' for title in titles)}"]
    for row in rows:
        cells = [escape(row.name), f"<span class={row.status}>{row.status}</span>"]
        for _, show in columns:
            text = escape(show(row.values))
            cells.append(f"<pre>{text}</pre>" if "\n" in text else text)
        cells.append(escape(" ".join(part for part in (row.reason, row.fix) if part)))
        lines.append(f"<tr>{''.join(f'<td>{cell}' for cell in cells)}")
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def _picture(row: Row) -> str:
    return f"<h3>{escape(row.name)}</h3><div class=scroll>{timeline_svg(row.values['stages'])}</div>"
