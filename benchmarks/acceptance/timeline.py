"""Stages on streams over time as a picture. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, LANE, BAR, TOP = 1200, 110, 34, 24, 30
_COLOURS = ("#3b6fb6", "#c2703d", "#4d8f57", "#8a5fa8", "#b0485f", "#5b7f8c", "#9a8a2f")
_CHARACTER = 6.6
_TICKS = 8


def timeline_svg(stages: Sequence[Mapping[str, Any]]) -> str:
    """A lane for each stream, a bar for each stage, a colour for each branch; axis in milliseconds.

    Args:
        stages: ``stage``, ``branch``, ``stream``, ``start_ms``, ``end_ms`` of each.
    """
    streams = list(dict.fromkeys(str(stage["stream"]) for stage in stages))
    branches = list(dict.fromkeys(str(stage["branch"]) for stage in stages))
    end = max((float(stage["end_ms"]) for stage in stages), default=0.0) or 1.0
    scale = (WIDTH - LEFT - 20) / end
    height = TOP + LANE * len(streams) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12">'
    ]
    for index in range(_TICKS + 1):
        x = LEFT + scale * end * index / _TICKS
        parts.append(f'<path d="M{x:.1f} {TOP - 6}V{height - 26}" stroke="#dde1e8"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{end * index / _TICKS:.2f} ms</text>'
        )
    for lane, stream in enumerate(streams):
        parts.append(f'<text x="6" y="{TOP + LANE * lane + 17}">{escape(stream)}</text>')
    for stage in stages:
        lane, branch = streams.index(str(stage["stream"])), branches.index(str(stage["branch"]))
        start, stop = float(stage["start_ms"]), float(stage["end_ms"])
        x, y, width = LEFT + scale * start, TOP + LANE * lane, max(scale * (stop - start), 1.0)
        name = escape(str(stage["stage"]))
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" rx="3" '
            f'fill="{_COLOURS[branch % len(_COLOURS)]}"><title>{name}: {start:.3f} to {stop:.3f} ms</title></rect>'
        )
        if width > _CHARACTER * len(name) + 8:
            parts.append(f'<text x="{x + 4:.1f}" y="{y + 16}" fill="#fff">{name}</text>')
    return "".join([*parts, "</svg>"])
