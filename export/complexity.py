"""What a model costs: parameters and multiply-accumulates of its stages, without computing anything.

The stages run on torch's ``meta`` device, where tensors have shapes and no values: counting takes no
memory to speak of and a second, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrsep_deploy.export.models.config import ModelConfig
from mrsep_deploy.export.models.families import build_model
from mrsep_deploy.export.parts import count_macs
from mrsep_deploy.export.split import Splitter
from mrsep_deploy.manifest import MIX, Branch, Layout, Stage, TensorSpec


@dataclass(frozen=True)
class Complexity:
    """The stages of a model with ``parameters`` and ``macs`` filled in, and the tensors between them.

    Both are for one segment, a batch of one.
    """

    stages: tuple[Stage, ...]
    tensors: Mapping[str, TensorSpec]


def count_stages(config: ModelConfig, branches: Sequence[Branch], layout: Layout) -> Complexity:
    """Split a model of this structure and count every graph stage."""
    stages: list[Stage] = []
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
                outputs = part(*inputs)
            tensors.update(zip(stage.outputs, outputs, strict=True))
            stages.append(stage)
    return Complexity(tuple(stages), {name: TensorSpec(name, tuple(t.shape)) for name, t in tensors.items()})


def _host_outputs(stage: Stage, config: ModelConfig, branches: Sequence[Branch]) -> tuple[Tensor, ...]:
    """Empty tensors of the shapes a host stage gives: Fourier transforms do not run on ``meta``."""
    channels, samples = config.audio_channels, config.segment_samples
    if stage.kind == "spectrogram":
        branch = next(b for b in branches if b.name == stage.branch)
        return torch.empty(1, 2 * channels, branch.bins, branch.frames), torch.empty(1, 2)
    if stage.kind == "normalize":
        return torch.empty(1, channels, samples), torch.empty(1, 2)
    return (torch.empty(1, len(config.sources), channels, samples),)
