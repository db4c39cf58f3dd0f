"""What a model costs: parameters, multiply-accumulates and activations, by stage and in all.

    parameters    learnt numbers
    MACs          multiply-accumulates of convolutions, linear layers and both products of attention in the model
                  as published; ``inspect`` gives the same. A FLOP count is twice that
    in graphs     those of a bundle's ONNX graphs, which compute the same rewritten: norms folded into
                  convolutions multiply a little more, and a convolution that fuses branches becomes products
                  with matrices that are half zeros
    activations   elements that those same operators put out (Radosavovic et al., "Designing Network Design
                  Spaces", 2020); the scores of softmax attention are among them, which a fused kernel
                  never stores. Of a bundle they are those of its graphs

All of it is for one segment, a batch of one. Spectrograms and their inverses are no part of the network and
count nothing. Counting needs the extra ``export``; what is here is the result, which needs nothing.

    >>> complexity("htdemucs").macs                                       # doctest: +SKIP
    167025803264
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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


def complexity(path_or_name: str | os.PathLike[str] | None = None) -> ModelCost:
    """Count a bundle (its path, its registered name, or None for the default) or a checkpoint.

    Raises:
        UsageError: nothing of that name is registered.
        BundleError, CheckpointError: it is damaged, or of a kind that is not supported.
        ExportError: the extra is not installed.
    """
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.registry import resolve
    from mrsep_deploy.export.api import require_extra
    from mrsep_deploy.inspection.inspect import is_checkpoint

    if path_or_name is not None and is_checkpoint(path_or_name):
        require_extra("counting a checkpoint")
        from mrsep_deploy.inspection.costs import checkpoint_cost

        return checkpoint_cost(Path(path_or_name))
    bundle = Bundle.open(resolve(path_or_name))
    require_extra("counting a bundle's graphs")
    from mrsep_deploy.inspection.graph_costs import bundle_cost

    return bundle_cost(bundle)


def configuration_cost(family: str, arguments: Mapping[str, object]) -> ModelCost:
    """Count the model that a family's constructor makes of ``arguments``, no weights needed.

    Raises:
        CheckpointError: the arguments make no model; the message names what is wrong.
        ExportError: the extra is not installed.
    """
    from mrsep_deploy.export.api import require_extra

    require_extra("counting a configuration")
    from mrsep_deploy.inspection.costs import family_cost

    return family_cost(family, arguments)


def to_plain(cost: ModelCost) -> dict[str, object]:
    """For ``--json``: numbers unrounded, totals and what a second of audio costs included."""
    return {
        "kind": cost.kind,
        "name": cost.name,
        "family": cost.family,
        "segment_seconds": cost.segment,
        "parameters": cost.parameters,
        "parameters_outside_stages": cost.outside,
        "macs": cost.macs,
        "graph_macs": cost.graph_macs,
        "flops": cost.flops,
        "activations": cost.activations,
        "activation_bytes_float32": FLOAT32_BYTES * cost.activations,
        "per_second_of_audio": {
            "macs": cost.macs / cost.segment,
            "flops": cost.flops / cost.segment,
            "activations": cost.activations / cost.segment,
            "activation_bytes_float32": FLOAT32_BYTES * cost.activations / cost.segment,
        },
        "stages": [
            {
                "name": stage.name,
                "branch": stage.branch,
                "parameters": stage.parameters,
                "macs": stage.macs,
                "graph_macs": stage.graph_macs,
                "activations": stage.activations,
                "activation_bytes_float32": FLOAT32_BYTES * stage.activations,
            }
            for stage in cost.stages
        ],
    }
