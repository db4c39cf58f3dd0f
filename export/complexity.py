"""What a model costs: parameters, multiply-accumulates and activations of its stages, computing nothing.

The stages run on torch's ``meta`` device, where tensors have shapes and no values: counting takes no
memory to speak of and a second, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mrsep_deploy.bundle.manifest import MIX, Branch, Stage, TensorSpec
from mrsep_deploy.export.families.family import Audio
from mrsep_deploy.export.families.staged import StagedModel, parameter_count


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


def count_stages(staged: StagedModel, audio: Audio) -> Complexity:
    """Counts every graph stage of a model; its weights, if it has any, are not touched."""
    stages: list[Stage] = []
    activations: dict[str, int] = {}
    branches = {branch.name: branch for branch in staged.branches}
    with torch.device("meta"), torch.no_grad():
        tensors = {MIX: torch.empty(1, audio.channels, audio.segment_samples)}
        for source in staged.stages:
            stage = source.stage
            if stage.kind == "graph":
                inputs = [tensors[name] for name in stage.inputs]
                counted = _Counter()
                outputs = counted.call(source.module, inputs)
                stage = replace(stage, macs=counted.macs)
                activations[stage.name] = counted.elements
            else:
                outputs = _host_outputs(stage, audio, branches.get(stage.branch))
            tensors.update(zip(stage.outputs, outputs, strict=True))
            stages.append(stage)
    specs = {name: TensorSpec(name, tuple(t.shape)) for name, t in tensors.items()}
    return Complexity(tuple(stages), specs, activations, parameter_count([staged.model]))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, not ours
    """Counts one call on shapes alone (the ``meta`` device), as torch's own counter sees it.

    ``macs`` are multiply-accumulates of convolutions and matrix products; on shapes softmax attention is the
    matrix products it consists of, while on a CPU it is a fused kernel, for which the counter has no formula.
    ``elements`` are what these operators put out: activations as in Radosavovic et al., "Designing Network Design
    Spaces" (2020), with linear layers and attention's products beside convolutions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = self.macs = 0

    def call(self, module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of ``module``, tensors without values."""
        shapes = {name: p.to("meta") for name, p in module.state_dict().items()}
        with FlopCounterMode(display=False) as flops, self:
            outputs: tuple[Tensor, ...] = torch.func.functional_call(
                module, shapes, tuple(x.to("meta") for x in inputs)
            )
        self.macs = int(flops.get_total_flops() // 2)
        return outputs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.elements += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


def _host_outputs(stage: Stage, audio: Audio, branch: Branch | None) -> tuple[Tensor, ...]:
    """Empty tensors of the shapes a host stage gives: Fourier transforms do not run on ``meta``."""
    statistics = [torch.empty(1, 2)] * (len(stage.outputs) - 1)
    if branch is not None and branch.transform is not None and stage.kind == "spectrogram":
        transform = branch.transform
        return torch.empty(1, 2 * audio.channels, transform.bins, transform.frames), *statistics
    if stage.kind == "normalize":
        return torch.empty(1, audio.channels, audio.segment_samples), *statistics
    return (torch.empty(1, len(audio.sources), audio.channels, audio.segment_samples),)
