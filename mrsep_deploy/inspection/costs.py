"""What a model costs, as data and as plain values; ``complexity`` says what is counted, and counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLOAT32_BYTES = 4

Kind = Literal["bundle", "checkpoint", "configuration"]


@dataclass(frozen=True)
class StageCost:
    """One stage of the network.

    Attributes:
        branch: the branch it belongs to, or ``shared``.
        macs: of the model as published.
        graph_macs: of its ONNX graph; None where there is none.
    """

    name: str
    branch: str
    parameters: int
    macs: int
    activations: int
    graph_macs: int | None = None


@dataclass(frozen=True)
class ModelCost:
    """A model and its stages, in the order in which they run.

    Attributes:
        kind: what was counted.
        segment: length of a segment in seconds.
        parameters: of the whole model. Learnt weights that no graph holds (those of the resolutions, folded
            into the de-normalisation) make it more than the sum over the stages.
    """

    kind: Kind
    name: str
    family: str
    segment: float
    parameters: int
    stages: tuple[StageCost, ...]

    @property
    def macs(self) -> int:
        return sum(stage.macs for stage in self.stages)

    @property
    def graph_macs(self) -> int | None:
        """Of a bundle's graphs; None for anything else."""
        found = [stage.graph_macs for stage in self.stages if stage.graph_macs is not None]
        return sum(found) if self.kind == "bundle" else None

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def activations(self) -> int:
        return sum(stage.activations for stage in self.stages)

    @property
    def outside(self) -> int:
        """Parameters that belong to no stage."""
        return self.parameters - sum(stage.parameters for stage in self.stages)


OF_A_STAGE = ("name", "branch", "parameters", "macs", "graph_macs", "activations")


def to_plain(cost: ModelCost) -> dict[str, object]:
    """Returns the costs for ``--json``: numbers unrounded, totals and what a second of audio costs included."""
    whole = {**_activations(cost.activations), "macs": cost.macs, "flops": cost.flops}
    stages = [
        {**{name: getattr(stage, name) for name in OF_A_STAGE}, **_activations(stage.activations)}
        for stage in cost.stages
    ]
    return {
        "kind": cost.kind,
        "name": cost.name,
        "family": cost.family,
        "segment_seconds": cost.segment,
        "parameters": cost.parameters,
        "parameters_outside_stages": cost.outside,
        "graph_macs": cost.graph_macs,
        **whole,
        "per_second_of_audio": {name: value / cost.segment for name, value in whole.items()},
        "stages": stages,
    }


def _activations(count: int) -> dict[str, int]:
    return {"activations": count, "activation_bytes_float32": FLOAT32_BYTES * count}
