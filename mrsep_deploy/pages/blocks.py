"""What a page is made of, as plain data; ``page.html`` says how each of it looks.

Places in plots are in percent of the width (and of the height, for curves), so that a plot takes the room that
there is while its text keeps its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mrsep_deploy.terminal.tables import Table

Plain = Mapping[str, Any]
"""A result as JSON has it."""
MarkKind = Literal["bar", "line", "dot", "round", "limit"]
Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Mark:
    """Something at a place of a strip, in a colour of the palette, -1 for grey; its title is shown when pointed at.

    ``bar`` and ``line`` go from ``start`` to ``end``; ``dot``, ``round`` (a small dot, one of many) and ``limit`` (an
    upright line) stand at ``start``.
    """

    kind: MarkKind
    start: float
    end: float = 0.0
    colour: int = 0
    title: str = ""

    @property
    def width(self) -> float:
        return round(max(self.end - self.start, 0.0), 3)


@dataclass(frozen=True)
class Strip:
    """A line of a plot: who, marks along an axis, the value in words.

    ``described`` says all of it in words, for those who do not see it. ``group`` is a heading above it, said once
    for neighbours of the same group.
    """

    name: str
    marks: Sequence[Mark]
    value: str
    described: str
    note: str = ""
    group: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Key:
    """A line of a legend."""

    mark: MarkKind
    text: str
    colour: int = 0


@dataclass(frozen=True)
class Plot:
    """Strips below each other over one axis."""

    kind: ClassVar[str] = "plot"
    title: str
    note: str
    ticks: Sequence[Tick]
    strips: Sequence[Strip]
    keys: Sequence[Key] = ()

    @property
    def shown_keys(self) -> list[Key]:
        """The legend without lines for what is not drawn."""
        drawn = {(mark.kind, mark.colour) for strip in self.strips for mark in strip.marks}
        kinds = {kind for kind, _ in drawn}
        alone = [key.mark for key in self.keys]
        return [
            key
            for key in self.keys
            if (key.mark, key.colour) in drawn or (key.mark in kinds and alone.count(key.mark) == 1)
        ]


@dataclass(frozen=True)
class Curve:
    """Points joined by lines, ``(x, y)`` in percent from the lower left."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    titles: Sequence[str]


@dataclass(frozen=True)
class Curves:
    """Curves over two axes; ``described`` says all of it in words."""

    kind: ClassVar[str] = "curves"
    title: str
    note: str
    x_title: str
    y_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    curves: Sequence[Curve]
    described: str


@dataclass(frozen=True)
class Drawing:
    """An SVG of this program's own making, too wide to be squeezed: it scrolls."""

    kind: ClassVar[str] = "drawing"
    title: str
    note: str
    svg: str
    described: str


@dataclass(frozen=True)
class Picture:
    """An image in the page itself, ``uri`` with its data."""

    title: str
    uri: str
    described: str


@dataclass(frozen=True)
class Pictures:
    """Images beside each other or, where there is no room, below; all have the same axes, time and frequency."""

    kind: ClassVar[str] = "pictures"
    title: str
    note: str
    pictures: Sequence[Picture]
    x_ticks: Sequence[Tick] = ()
    y_ticks: Sequence[Tick] = ()


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    paragraphs: Sequence[str]


Block = Plot | Curves | Table | Drawing | Pictures | Text


@dataclass(frozen=True)
class Verdict:
    """What came of it, for whoever reads nothing else."""

    subject: str
    headline: str
    tone: Tone
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading and blocks."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
        lead: what this is, in a line.
        warnings: what makes the figures doubtful.
        machine: what ``mrsep_deploy.measuring.surroundings.machine_info`` told.
        facts: what else belongs to the environment, name and value.
        command: what has to be typed to do it again; empty where it was no command.
    """

    title: str
    lead: str
    verdicts: Sequence[Verdict]
    warnings: Sequence[str]
    sections: Sequence[Section]
    machine: Plain
    facts: Sequence[tuple[str, str]]
    command: str
