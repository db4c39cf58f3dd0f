"""A picture of a trace: which stage ran when on which stream.

with Separator(..., mode="concurrent", trace=True) as separator:
    separator.run_segments(mix)
    Path("trace.svg").write_text(timeline_svg(separator.scheduler.trace.events()))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from mrsep_deploy.runtime.trace import TraceEvent

WIDTH = 960
LABELS = 84
ROW = 30
BAR = 22
TOP = 14
CHARACTER = 6.2
"""Width of a character of a label, pixels; longer names are cut to their bar."""

# Mid-tones that both a light and a dark page carry, told apart without red against green
# (Okabe and Ito's palette, the yellow left out).
_COLOURS = ("#3b8fd0", "#d0822b", "#2f9e83", "#c4699f", "#7f7bd0", "#8a8f3c", "#c65f3f")
_SHARED = "#7d8590"

# All below one class: in a page, a style of an SVG holds for everything.
_STYLE = (
    ".timeline text{font:11px system-ui,sans-serif;fill:#24292f}"
    ".timeline .stage{fill:#fff}.timeline .grid{stroke:#8b949e;stroke-opacity:.35}"
    "@media screen and (prefers-color-scheme:dark)"
    "{.timeline text{fill:#d6dde5}.timeline .stage{fill:#fff}}"
)


def timeline_svg(events: Sequence[TraceEvent]) -> str:
    """One row per stream, one bar per run, coloured by branch, over an axis in milliseconds.

    Self-contained, without a background, readable on light and dark pages. Each bar's tooltip gives stage,
    segment and times. No events give an empty picture.
    """
    by_start = sorted(events, key=lambda event: event.start)  # where a segment begins comes first
    rows = {stream: row for row, stream in enumerate(dict.fromkeys(event.stream for event in by_start))}
    named = [branch for branch in branch_order(events) if branch != "shared"]
    colours = {b: _COLOURS[i % len(_COLOURS)] for i, b in enumerate(named)} | {"shared": _SHARED}
    first = min((event.start for event in events), default=0.0)
    last = max((event.end for event in events), default=0.0)
    scale = (WIDTH - LABELS - 10) / max(last - first, 1e-9)
    height = TOP + ROW * len(rows) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{len(events)} runs of stages on {len(rows)} streams</title><style>{_STYLE}</style>",
        *_axis(last - first, scale, TOP + ROW * len(rows)),
    ]
    for stream, row in rows.items():
        parts.append(f'<text x="4" y="{TOP + ROW * row + 15}">{escape(stream)}</text>')
    for event in events:
        x, y = LABELS + (event.start - first) * scale, TOP + ROW * rows[event.stream]
        parts.append(_bar(event, first, x, y, (event.end - event.start) * scale, colours[event.branch]))
    parts.extend(_legend(colours, height - 8))
    return "\n".join([*parts, "</svg>\n"])


def overhead(events: Sequence[TraceEvent], segment_seconds: float) -> float:
    """Share of wall time in which no stage ran: scheduling, copies, waiting.

    Args:
        events: of some segments.
        segment_seconds: wall time of those segments together, as the caller took it.
    """
    if segment_seconds <= 0:
        raise ValueError(f"{segment_seconds} seconds of wall time, expected more than 0")
    busy, until = 0.0, -math.inf
    for event in sorted(events, key=lambda e: e.start):
        busy += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return max(0.0, 1.0 - busy / segment_seconds)


def branch_order(events: Sequence[TraceEvent]) -> list[str]:
    """Every branch that ran, what they share last: the order of their colours."""
    return sorted({event.branch for event in events}, key=lambda b: (b == "shared", len(b), b))


def _bar(event: TraceEvent, first: float, x: float, y: float, width: float, colour: str) -> str:
    begin, end = (event.start - first) * 1e3, (event.end - first) * 1e3
    told = f"{event.stage}, segment {event.segment}: {begin:.2f} to {end:.2f} ms ({end - begin:.2f} ms)"
    shade = 1.0 if event.segment % 2 == 0 else 0.72
    room = int((width - 6) / CHARACTER)
    name = event.stage if room >= len(event.stage) else event.stage[: max(room - 1, 0)] + "…"
    text = f'<text class="stage" x="{x + 4:.2f}" y="{y + 15}">{escape(name)}</text>' if room > 2 else ""
    return (
        f"<g><title>{escape(told)}</title>"
        f'<rect x="{x:.3f}" y="{y}" width="{width:.3f}" height="{BAR}" '
        f'fill={quoteattr(colour)} fill-opacity="{shade}"/>{text}</g>'
    )


def _axis(seconds: float, scale: float, bottom: int) -> list[str]:
    parts = []
    step = _tick(seconds * 1e3)
    for number in range(int(seconds * 1e3 / step + 1e-9) + 1):
        x = f"{LABELS + number * step * 1e-3 * scale:.2f}"
        text = f"{number * step:g}{'' if number else ' ms'}"
        parts.append(f'<line class="grid" x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    return parts


def _tick(milliseconds: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are 4 to 10 of them."""
    if milliseconds <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(milliseconds / 4))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= milliseconds / 4)


def _legend(colours: dict[str, str], y: int) -> list[str]:
    parts, x = [], float(LABELS)
    for branch, colour in colours.items():
        parts.append(f'<rect x="{x:.1f}" y="{y - 9}" width="10" height="10" fill={quoteattr(colour)}/>')
        parts.append(f'<text x="{x + 14:.1f}" y="{y}">{escape(branch)}</text>')
        x += 14 + (len(branch) + 3) * CHARACTER
    return parts
