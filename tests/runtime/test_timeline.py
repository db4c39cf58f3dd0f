"""The pictures of a trace say what the trace says."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrsep_deploy.runtime.timeline import overhead, timeline_svg
from mrsep_deploy.runtime.trace import TraceEvent

SVG = "{http://www.w3.org/2000/svg}"
STREAMS = ("head", "2048", "time", "main", '<tail> & "more"')


@st.composite
def traces(draw: st.DrawFn) -> list[TraceEvent]:
    """Runs that follow each other on every stream."""
    events = []
    for stream in draw(st.lists(st.sampled_from(STREAMS), unique=True)):
        clock = 0.0
        for number in range(draw(st.integers(1, 5))):
            start = clock + draw(st.floats(0, 0.1))
            clock = start + draw(st.floats(0, 0.5))
            events.append(TraceEvent(number, f"stage.{stream}", stream, stream, start, clock))
    return events


def bars(svg: str) -> list[tuple[float, float, float]]:
    """Row, start and end of every bar; the legend's squares have no tooltip."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        x, y, width = (float(rect.attrib[name]) for name in ("x", "y", "width"))
        found.append((y, x, x + width))
    return found


@given(traces())
def test_svg(events: list[TraceEvent]) -> None:
    """Valid XML; a bar for every run inside the picture; bars of a row do not overlap."""
    svg = timeline_svg(events)
    root = ElementTree.fromstring(svg)
    _, _, width, height = (float(each) for each in root.attrib["viewBox"].split())
    found = sorted(bars(svg))
    assert len(found) == len(events)
    assert len({y for y, _, _ in found}) == len({event.stream for event in events})
    for (y1, _, end), (y2, start, _) in itertools.pairwise(found):
        assert y1 != y2 or start >= end - 0.01
    assert all(0 <= y < height and 0 <= start <= end <= width for y, start, end in found)


def test_the_tooltip() -> None:
    svg = timeline_svg([TraceEvent(3, "encoder.2048", "2048", "2048", 2.0, 2.25)])
    assert "encoder.2048, segment 3: 0.00 to 250.00 ms (250.00 ms)" in svg
    assert ">encoder.2048</text>" in svg


def test_overhead() -> None:
    """Stages side by side count once."""
    events = [
        TraceEvent(0, "a", "a", "a", 0.0, 0.4),
        TraceEvent(0, "b", "b", "b", 0.2, 0.5),
        TraceEvent(0, "c", "a", "a", 0.6, 0.9),
    ]
    assert overhead(events, 1.0) == pytest.approx(0.2)
    assert overhead([], 1.0) == 1.0
    assert overhead(events, 0.5) == 0.0
    with pytest.raises(ValueError, match="wall time"):
        overhead(events, 0.0)
