"""Running a model stage by stage in torch: the reference that an export is checked against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrsep_deploy.bundle.manifest import Branch, Stage
from mrsep_deploy.export.families.demucs.model import NORMALISE_EPS, SeparationModel, statistics
from mrsep_deploy.export.families.demucs.parts import Part
from mrsep_deploy.export.families.demucs.stages import StagePlan
from mrsep_deploy.export.families.demucs.transforms import analyse, synthesise


def reference_stage(
    stage: Stage, part: Part | None, inputs: Sequence[Tensor], branches: Sequence[Branch], samples: int
) -> tuple[Tensor, ...]:
    """One stage in torch, in the precision of its inputs; statistics are ``[B, 2]``.

    Args:
        stage: what to run.
        part: the torch module of a graph stage.
        inputs: in the stage's order.
        branches: of the model.
        samples: length of a segment.
    """
    if part is not None:
        result: tuple[Tensor, ...] = part(*inputs)
        return result
    if stage.kind == "sum":
        return (torch.stack(list(inputs)).sum(0),)
    branch = next(b for b in branches if b.name == stage.branch)
    x = inputs[0]
    if stage.kind in ("spectrogram", "normalize"):
        if stage.kind == "spectrogram":
            x = analyse(x, branch.n_fft, branch.hop)
        mean, std = statistics(x)
        return (x - mean) / (NORMALISE_EPS + std), torch.stack([mean.flatten(), std.flatten()], dim=1)
    gains = torch.tensor(branch.gains, dtype=x.dtype)
    x = x.view(len(x), len(gains), -1, *x.shape[2:])
    mean, std = (s.view(-1, *[1] * (x.dim() - 1)) for s in inputs[1].unbind(1))
    x = (x * std + mean) * gains.view(-1, *[1] * (x.dim() - 2))
    if stage.kind == "inverse":
        x = synthesise(x, branch.n_fft, branch.hop, samples)
    return (x,)


def reference_chain(
    model: SeparationModel, plans: Sequence[StagePlan], branches: Sequence[Branch], mix: Tensor
) -> dict[str, Tensor]:
    """Every tensor of one segment by name, in the precision of ``model`` and ``mix`` ``[B, C, L]``."""
    tensors = {"mix": mix}
    with torch.no_grad():
        for plan in plans:
            part = plan.part(model) if plan.part is not None else None
            inputs = [tensors[name] for name in plan.stage.inputs]
            outputs = reference_stage(plan.stage, part, inputs, branches, model.config.segment_samples)
            tensors.update(zip(plan.stage.outputs, outputs, strict=True))
    return tensors
