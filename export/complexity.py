"""What a model costs: parameters, multiply-accumulates and activations of its stages, computing nothing.

The stages run on torch's ``meta`` device, where tensors have shapes and no values: counting takes no
memory to speak of and a second, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mrsep_deploy.bundle.manifest import MIX, Branch, Layout, Stage, TensorSpec
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.parts import count_macs
from mrsep_deploy.export.families.demucs.stages import Splitter
from mrsep_deploy.export.families.demucs.variants import build_model


@dataclass(frozen=True)
class Complexity:
    """The stages of a model with ``parameters`` and ``macs`` filled in, and the tensors between them.

    All of it is for one segment, a batch of one.

    Attributes:
        activations: elements that the convolutions and matrix products of each graph stage put out.
        parameters: of the whole model.
    """

    stages: tuple[Stage, ...]
    tensors: Mapping[str, TensorSpec]
    activations: Mapping[str, int]
    parameters: int


class ActivationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, not ours
    """Counts the elements that convolutions and matrix products put out while it is entered.

    That is the definition of activations in Radosavovic et al., "Designing Network Design Spaces" (2020),
    with linear layers and attention's products beside convolutions. What counts is what torch's own
    counter of operations has a formula for, so both see the same operators.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.elements += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


def count_stages(config: ModelConfig, branches: Sequence[Branch], layout: Layout) -> Complexity:
    """Split a model of this structure and count every graph stage."""
    stages: list[Stage] = []
    activations: dict[str, int] = {}
    with torch.device("meta"), torch.no_grad():
        model = build_model(config)
        tensors = {MIX: torch.empty(1, config.audio_channels, config.segment_samples)}
        for plan in Splitter(model).split(layout):
            stage = plan.stage
            if plan.part is None:
                outputs = _host_outputs(stage, config, branches)
            else:
                part, inputs = plan.part(model), [tensors[name] for name in stage.inputs]
                stage = replace(stage, parameters=part.parameter_count, macs=count_macs(part, inputs))
                with ActivationCounter() as counter:
                    outputs = part(*inputs)
                activations[stage.name] = counter.elements
            tensors.update(zip(stage.outputs, outputs, strict=True))
            stages.append(stage)
    specs = {name: TensorSpec(name, tuple(t.shape)) for name, t in tensors.items()}
    return Complexity(tuple(stages), specs, activations, sum(p.numel() for p in model.parameters()))


def _host_outputs(stage: Stage, config: ModelConfig, branches: Sequence[Branch]) -> tuple[Tensor, ...]:
    """Empty tensors of the shapes a host stage gives: Fourier transforms do not run on ``meta``."""
    channels, samples = config.audio_channels, config.segment_samples
    if stage.kind == "spectrogram":
        branch = next(b for b in branches if b.name == stage.branch)
        return torch.empty(1, 2 * channels, branch.bins, branch.frames), torch.empty(1, 2)
    if stage.kind == "normalize":
        return torch.empty(1, channels, samples), torch.empty(1, 2)
    return (torch.empty(1, len(config.sources), channels, samples),)
