"""The stages of a model, run one by one through their tensors' names, are the model."""

from __future__ import annotations

import pytest
import torch
from models import MODELS, named, noise
from torch import Tensor, nn

from mrsep_deploy.bundle.manifest import MIX, STAGE_KINDS, STEMS, Branch, Layout
from mrsep_deploy.export.families.demucs.model import NORMALISE_EPS, SeparationModel, statistics
from mrsep_deploy.export.families.demucs.parts import Part
from mrsep_deploy.export.families.demucs.stages import Splitter, StagePlan, branch_names, make_branches
from mrsep_deploy.export.families.demucs.transforms import analyse, synthesise

LAYOUTS: tuple[Layout, ...] = ("split", "whole")
everywhere = pytest.mark.parametrize("name", MODELS)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def run_stage(
    model: SeparationModel, plan: StagePlan, branches: dict[str, Branch], inputs: list[Tensor]
) -> tuple[Tensor, ...]:
    """One stage in torch, straight from what the manifest says of its kind."""
    stage = plan.stage
    if plan.part is not None:
        outputs: tuple[Tensor, ...] = plan.part(model)(*inputs)
        return outputs
    if stage.kind == "sum":
        total = inputs[0]
        for signal in inputs[1:]:
            total = total + signal
        return (total,)
    branch = branches[stage.branch]
    if stage.kind in ("spectrogram", "normalize"):
        x = inputs[0] if branch.is_waveform else analyse(inputs[0], branch.n_fft, branch.hop)
        mean, std = statistics(x)
        return (x - mean) / (NORMALISE_EPS + std), torch.stack([mean.flatten(), std.flatten()])
    estimate, (mean, std) = inputs
    sources = len(model.config.sources)
    y = estimate.view(len(estimate), sources, -1, *estimate.shape[2:])
    shape = (-1, *[1] * (y.dim() - 1))
    y = y * std.view(shape) + mean.view(shape)
    if stage.kind == "denormalize":
        return (y,)
    gains = torch.tensor(branch.gains, dtype=y.dtype)
    return (
        synthesise(y * gains[:, None, None, None], branch.n_fft, branch.hop, model.config.segment_samples),
    )


def run_stages(model: SeparationModel, layout: Layout, mix: Tensor) -> dict[str, Tensor]:
    """Every tensor by name; a stage sees only those that earlier ones have produced."""
    branches = {branch.name: branch for branch in make_branches(model)}
    tensors = {MIX: mix}
    for plan in Splitter(model).split(layout):
        missing = [name for name in plan.stage.inputs if name not in tensors]
        assert not missing, f"{plan.stage.name} comes before {missing}"
        outputs = run_stage(model, plan, branches, [tensors[name] for name in plan.stage.inputs])
        for name, tensor in zip(plan.stage.outputs, outputs, strict=True):
            assert name not in tensors, f"{name} is produced twice"
            tensors[name] = tensor
    return tensors


@everywhere
@both_layouts
def test_stages_are_the_model(name: str, layout: Layout) -> None:
    """The same operations in the same order on one thread: equal to the last bit."""
    model = named(name)
    mix = noise(2, 2, model.config.segment_samples, dtype=torch.float32)
    assert torch.equal(run_stages(model, layout, mix)[STEMS], model(mix))


@everywhere
@both_layouts
def test_every_tensor_is_used(name: str, layout: Layout) -> None:
    """All outputs but the stems feed a later stage."""
    plans = Splitter(named(name)).split(layout)
    used = {tensor for plan in plans for tensor in plan.stage.inputs}
    unused = {tensor for plan in plans for tensor in plan.stage.outputs} - used
    assert unused == {STEMS}


@everywhere
@both_layouts
def test_stages_are_well_named(name: str, layout: Layout) -> None:
    model = named(name)
    plans = Splitter(model).split(layout)
    names = [plan.stage.name for plan in plans]
    assert len(set(names)) == len(names)
    known = {branch.name for branch in make_branches(model)} | {"shared"}
    for plan in plans:
        stage = plan.stage
        assert stage.kind in STAGE_KINDS
        assert stage.branch in known
        assert (stage.file is not None) == (plan.part is not None) == (stage.kind == "graph")
        assert all(tensor.isidentifier() for tensor in (*stage.inputs, *stage.outputs))
    graphs = [plan.stage.name for plan in plans if plan.part is not None]
    if layout == "whole":
        assert graphs in (["core"], ["core", "fusion"])


def owned(part: Part) -> list[int]:
    things = [[o] if isinstance(o, nn.Parameter) else list(o.parameters()) for o in part.owned()]
    return [id(parameter) for parameters in things for parameter in parameters]


@everywhere
@both_layouts
def test_every_parameter_belongs_to_one_stage(name: str, layout: Layout) -> None:
    """Except weights of the output, which are the branches' gains, and what nothing computes with."""
    model = named(name)
    parts = [plan.part(model) for plan in Splitter(model).split(layout) if plan.part is not None]
    found = [parameter for part in parts for parameter in owned(part)]
    assert len(set(found)) == len(found)
    nowhere = {n for n, parameter in model.named_parameters() if id(parameter) not in found}
    unused = {"final_fusion_weights"}
    if model.crosstransformer is None:
        unused |= {"fusion_weights"} | {n for n, _ in model.named_parameters() if n.startswith("channel_")}
    assert nowhere == unused & {n for n, _ in model.named_parameters()}
    counted = sum(part.parameter_count for part in parts)
    assert counted == sum(p.numel() for n, p in model.named_parameters() if n not in nowhere)


@pytest.mark.parametrize("name", ["htdemucs_n", "htdemucs_nf", "htdemucs", "htdemucs-merged"])
def test_a_stage_computes_with_all_it_owns_and_nothing_else(name: str) -> None:
    """Gradients of a stage's outputs reach exactly the parameters it says it owns."""
    model = named(name).double()
    tensors = run_stages(model, "split", noise(1, 2, model.config.segment_samples))
    for plan in Splitter(model).split("split"):
        if plan.part is None:
            continue
        model.requires_grad_(True)
        part = plan.part(model)
        with torch.enable_grad():
            outputs = part(*(tensors[tensor] for tensor in plan.stage.inputs))
            sum((y * torch.randn_like(y)).sum() for y in outputs).backward()  # type: ignore[union-attr]
        reached = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert reached == set(owned(part)), plan.stage.name
        model.zero_grad(set_to_none=True)


def test_resolutions_that_occur_twice_get_names_of_their_own() -> None:
    assert branch_names((512, 256, 512, 512)) == ["512", "256", "512-2", "512-3"]


@everywhere
def test_branches_describe_their_spectrograms(name: str) -> None:
    model = named(name)
    config = model.config
    mix = noise(1, config.audio_channels, config.segment_samples)
    for branch in make_branches(model):
        assert len(branch.gains) == len(config.sources)
        if branch.is_waveform:
            assert branch.frames == config.segment_samples
        else:
            shape = (1, 2 * config.audio_channels, branch.bins, branch.frames)
            assert analyse(mix, branch.n_fft, branch.hop).shape == shape
