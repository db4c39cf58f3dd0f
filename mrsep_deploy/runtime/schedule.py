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
        exclusive: nothing else runs beside it, so it may use every thread.
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
    waits = {s.name: tuple(n for n in needs[s.name] if streams[n] != streams[s.name]) for s in stages}
    waits = _without_implied(stages, waits, streams)
    recorded = {name for names in waits.values() for name in names}
    before = happens_before(stages, _with_stream_order(stages, waits, streams))
    steps = tuple(
        Step(
            stage,
            parts[stage.name],
            streams[stage.name],
            waits[stage.name],
            stage.name in recorded,
            _alone(stage, stages, before, parts),
        )
        for stage in stages
    )
    used = tuple(dict.fromkeys([MAIN, *streams.values()]))
    return Schedule(steps, used, before, _slot_tensors(stages, parts), mode)


def happens_before(stages: Sequence[Stage], waits: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """For every stage, all stages that are over when it starts.

    Args:
        stages: in an order in which they can run.
        waits: the stages each one waits for directly.
    """
    before: dict[str, frozenset[str]] = {}
    for stage in stages:
        direct = waits.get(stage.name, ())
        before[stage.name] = frozenset(direct).union(*(before[name] for name in direct))
    return before


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


def _with_stream_order(
    stages: Sequence[Stage], waits: Mapping[str, Sequence[str]], streams: Mapping[str, str]
) -> dict[str, list[str]]:
    """``waits`` plus, for every stage, the one before it on its own stream."""
    last: dict[str, str] = {}
    order: dict[str, list[str]] = {}
    for stage in stages:
        stream = streams[stage.name]
        order[stage.name] = [*waits[stage.name], *([last[stream]] if stream in last else [])]
        last[stream] = stage.name
    return order


def _without_implied(
    stages: Sequence[Stage], waits: Mapping[str, tuple[str, ...]], streams: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Drop events that another wait, or the stream's own order, already guarantees."""
    kept: dict[str, tuple[str, ...]] = {}
    before: dict[str, frozenset[str]] = {}
    last: dict[str, str] = {}
    for stage in stages:
        stream = streams[stage.name]
        known: set[str] = set()
        if stream in last:
            known = {last[stream], *before[last[stream]]}
        chosen: list[str] = []
        for name in reversed(waits[stage.name]):
            if name not in known:
                chosen.append(name)
                known |= {name, *before[name]}
        kept[stage.name] = tuple(reversed(chosen))
        before[stage.name] = frozenset(known)
        last[stream] = stage.name
    return kept


def _alone(
    stage: Stage, stages: Sequence[Stage], before: Mapping[str, frozenset[str]], parts: Mapping[str, Part]
) -> bool:
    """No other body stage of the segment can run at the same time."""
    return all(
        other.name == stage.name or other.name in before[stage.name] or stage.name in before[other.name]
        for other in stages
        if parts[other.name] == "body"
    )


def _slot_tensors(stages: Sequence[Stage], parts: Mapping[str, Part]) -> frozenset[str]:
    """Tensors that live outside the body: every slot has its own."""
    names = {MIX, STEMS}
    for stage in stages:
        if parts[stage.name] != "body":
            names.update((*stage.inputs, *stage.outputs))
    return frozenset(names)
