"""Which stage runs on which stream, and what waits for what: planning, no running.

A segment has three parts. Its *head* (spectrograms, normalisation) only needs the mix, its *tail*
(inverses, sum) only the estimates, its *body* is the model. Heads and tails have tensors of their own
for every slot, so the head of the next segment and the tail of the last overlap with the body between
them; the body's tensors exist once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mrsep_deploy.bundle.manifest import MIX, STEMS, Manifest, Stage

Mode = Literal["sequential", "concurrent", "graph"]
MODES: tuple[Mode, ...] = ("sequential", "concurrent", "graph")

Part = Literal["head", "body", "tail"]
MAIN = "main"
HEAD = "head"
TAIL = "tail"

_PARTS: Mapping[str, Part] = {
    "spectrogram": "head",
    "normalize": "head",
    "graph": "body",
    "inverse": "tail",
    "denormalize": "tail",
    "sum": "tail",
}


@dataclass(frozen=True)
class Step:
    """One stage in the schedule.

    Attributes:
        stage: what runs.
        part: head, body or tail of the segment.
        stream: on which stream.
        waits: stages on other streams whose events it waits for.
        records: whether some other stream waits for it.
        exclusive: no other body stage of the segment can run beside it, so it may use every thread.
    """

    stage: Stage
    part: Part
    stream: str
    waits: tuple[str, ...]
    records: bool
    exclusive: bool


@dataclass(frozen=True)
class Schedule:
    """The steps of one segment, in an order in which they can be enqueued.

    Attributes:
        steps: one for each stage.
        streams: names of the streams, ``main`` first.
        before: for every stage, all stages that are over when it starts.
        slot_tensors: tensors outside the body, which every slot has for itself.
        mode: how it was made.
    """

    steps: tuple[Step, ...]
    streams: tuple[str, ...]
    before: Mapping[str, frozenset[str]]
    slot_tensors: frozenset[str]
    mode: Mode = "sequential"

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.stage.name == name)


def make_schedule(manifest: Manifest, mode: Mode) -> Schedule:
    """Assign streams and work out the events needed.

    ``sequential`` puts everything on one stream, so it needs none; the others give each branch a
    stream, and heads and tails theirs.
    """
    stages = manifest.stages
    parts = {stage.name: part_of(stage) for stage in stages}
    streams = {stage.name: _stream(stage, parts[stage.name], mode) for stage in stages}
    needs = data_dependencies(stages)
    waits: dict[str, tuple[str, ...]] = {}
    before: dict[str, frozenset[str]] = {}
    last: dict[str, str] = {}
    for stage in stages:
        previous = last.get(streams[stage.name])
        over = {previous, *before[previous]} if previous else set()  # when the stream gets here
        waits[stage.name] = ()
        for name in reversed(needs[stage.name]):
            if name not in over:  # neither the stream's own order nor another wait guarantees it
                waits[stage.name] = (name, *waits[stage.name])
                over |= {name, *before[name]}
        before[stage.name] = frozenset(over)
        last[streams[stage.name]] = stage.name
    body = [stage.name for stage in stages if parts[stage.name] == "body"]
    recorded = {name for names in waits.values() for name in names}

    def alone(name: str) -> bool:
        return all(other == name or other in before[name] or name in before[other] for other in body)

    steps = tuple(
        Step(s, parts[s.name], streams[s.name], waits[s.name], s.name in recorded, alone(s.name))
        for s in stages
    )
    outside = (stage for stage in stages if stage.name not in body)
    slot_tensors = {MIX, STEMS, *(name for s in outside for name in (*s.inputs, *s.outputs))}
    used = tuple(dict.fromkeys([MAIN, *streams.values()]))
    return Schedule(steps, used, before, frozenset(slot_tensors), mode)


def data_dependencies(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """For every stage, the stages whose outputs it reads."""
    producer = {name: stage.name for stage in stages for name in stage.outputs}
    return {
        stage.name: list(dict.fromkeys(producer[name] for name in stage.inputs if name in producer))
        for stage in stages
    }


def part_of(stage: Stage) -> Part:
    """A fusing graph (its inputs are signals) belongs to the tail like the sum it stands for."""
    return "tail" if STEMS in stage.outputs else _PARTS[stage.kind]


def _stream(stage: Stage, part: Part, mode: Mode) -> str:
    if mode == "sequential" or (stage.branch == "shared" and part == "body"):
        return MAIN
    return stage.branch if part == "body" else HEAD if part == "head" else TAIL
