"""The stages of a model, run one by one through their tensors' names, are the model."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from models import MODELS, named, noise, staged
from torch import Tensor, nn

from mrsep_deploy.bundle.manifest import MIX, STEMS, Layout, StageKind
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.stages import branch_names
from mrsep_deploy.export.families.family import StageSource
from mrsep_deploy.export.families.staged import statistics
from mrsep_deploy.export.families.transforms import analyse, synthesise
from mrsep_deploy.transforms.spectrogram import NORMALISE_EPS

LAYOUTS: tuple[Layout, ...] = ("split", "whole")
everywhere = pytest.mark.parametrize("name", MODELS)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def written_out(model: SeparationModel, mix: Tensor) -> Tensor:
    """The data flow from ``mix`` to stems written out once more, as the published classes have it."""
    config = model.config
    merged, resolutions = model.plan.merge is not None, len(config.nfft_list)
    skips_t: tuple[Tensor, ...] = ()
    if config.waveform:
        mean_t, std_t = statistics(mix)
        skips_t = model.encode(resolutions, (mix - mean_t) / (NORMALISE_EPS + std_t))
    found, encoded = [], []
    for index, branch in enumerate(staged(model).branches[:resolutions]):
        assert branch.transform is not None
        x = analyse(mix, branch.transform)
        mean, std = statistics(x)
        found.append((mean, std))
        encoded.append(
            model.encode(index, (x - mean) / (NORMALISE_EPS + std), skips_t[-1] if merged else None)
        )
    xs = tuple(skips[-1] for skips in (*encoded, *([skips_t] if skips_t else [])))
    if model.crosstransformer is not None:
        xs = model.bottleneck(*xs)
    signals = []
    for index, transform in enumerate(branch.transform for branch in staged(model).branches):
        if transform is None:
            continue
        x, *before = model.decode(index, xs[index], *encoded[index])
        mean, std = found[index]
        x = x.view(len(x), len(config.sources), -1, *x.shape[2:])
        x = (x * std[:, None] + mean[:, None]) * model.gains[index].to(x)[:, None, None, None]
        signals.append(synthesise(x, transform, config.segment_samples))
    if config.waveform:
        xt, skips_t = (before[0], skips_t[:-1]) if merged else (xs[-1], skips_t)
        (y,) = model.decode(resolutions, xt, *skips_t)
        signals.append(y.view_as(signals[0]) * std_t[:, None] + mean_t[:, None])
    if model.fusion is None:
        return sum(signals[1:], start=signals[0])
    return model.fuse(*signals)[0]


def sources_of(model: SeparationModel, layout: Layout) -> list[StageSource]:
    return list(staged(model, layout).stages)


@everywhere
@both_layouts
def test_stages_are_the_model(name: str, layout: Layout) -> None:
    """The same operations in the same order on one thread: equal to the last bit."""
    model = named(name)
    mix = noise(2, 2, model.config.segment_samples, dtype=torch.float32)
    expected = written_out(model, mix)
    assert torch.equal(staged(model, layout)(mix), expected)
    assert torch.equal(model(mix), expected)


@everywhere
@both_layouts
def test_stages_come_after_what_they_read(name: str, layout: Layout) -> None:
    ready = {MIX}
    for source in sources_of(named(name), layout):
        stage = source.stage
        assert set(stage.inputs) <= ready, f"{stage.name} comes before {set(stage.inputs) - ready}"
        assert not ready & set(stage.outputs), f"{stage.name} writes what exists"
        ready.update(stage.outputs)
    assert STEMS in ready


def test_gradients_reach_every_learnt_weight_through_the_whole_model() -> None:
    """Training runs the same stages: fusion weights are constants of a bundle only."""
    model = named("htdemucs_nn").train().requires_grad_(True)
    with torch.enable_grad():
        model(noise(1, 2, 2000, dtype=torch.float32)).square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()}
    assert without == set()


@everywhere
@both_layouts
def test_every_tensor_is_used(name: str, layout: Layout) -> None:
    """All outputs but the stems feed a later stage."""
    sources = sources_of(named(name), layout)
    used = {tensor for source in sources for tensor in source.stage.inputs}
    unused = {tensor for source in sources for tensor in source.stage.outputs} - used
    assert unused == {STEMS}


@everywhere
@both_layouts
def test_stages_are_well_named(name: str, layout: Layout) -> None:
    model = staged(named(name), layout)
    names = [source.stage.name for source in model.stages]
    assert len(set(names)) == len(names)
    known = {branch.name for branch in model.branches} | {"shared"}
    for source in model.stages:
        stage = source.stage
        assert stage.kind in get_args(StageKind)
        assert stage.branch in known
        assert (stage.file is not None) == (stage.kind == "graph")
        assert all(tensor.isidentifier() for tensor in (*stage.inputs, *stage.outputs))
    graphs = [source.stage.name for source in model.stages if source.stage.kind == "graph"]
    if layout == "whole":
        assert graphs in (["core"], ["core", "fusion"])


def owned(part: nn.Module) -> list[int]:
    things = [[o] if isinstance(o, nn.Parameter) else list(o.parameters()) for o in part.owned]
    return [id(parameter) for parameters in things for parameter in parameters]


@everywhere
def test_every_parameter_belongs_to_one_stage(name: str) -> None:
    """Except weights of the output, which are the branches' gains, and what nothing computes with."""
    model = named(name)
    graphs = [source for source in sources_of(model, "split") if source.stage.kind == "graph"]
    found = [parameter for source in graphs for parameter in owned(source.module)]
    assert len(set(found)) == len(found)
    nowhere = {n for n, parameter in model.named_parameters() if id(parameter) not in found}
    unused = {"final_fusion_weights"}
    if model.crosstransformer is None:
        unused |= {"fusion_weights"} | {n for n, _ in model.named_parameters() if n.startswith("channel_")}
    assert nowhere == unused & {n for n, _ in model.named_parameters()}
    expected = sum(p.numel() for n, p in model.named_parameters() if n not in nowhere)
    for layout in LAYOUTS:
        assert sum(source.stage.parameters for source in sources_of(model, layout)) == expected


@pytest.mark.parametrize("name", ["htdemucs_n", "htdemucs_nf", "htdemucs", "htdemucs-merged"])
def test_a_stage_computes_with_all_it_owns_and_nothing_else(name: str) -> None:
    """Gradients of a stage's outputs reach exactly the parameters it says it owns."""
    model = named(name).double()
    cut = staged(model)
    tensors = cut.tensors(noise(1, 2, model.config.segment_samples))
    for source in cut.stages:
        if source.stage.kind != "graph":
            continue
        model.requires_grad_(True)
        part = source.module
        with torch.enable_grad():
            outputs = part(*(tensors[tensor] for tensor in source.stage.inputs))
            sum((y * torch.randn_like(y)).sum() for y in outputs).backward()  # type: ignore[union-attr]
        reached = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert reached == set(owned(part)), source.stage.name
        model.zero_grad(set_to_none=True)


def test_resolutions_that_occur_twice_get_names_of_their_own() -> None:
    assert branch_names((512, 256, 512, 512)) == ["512", "256", "512-2", "512-3"]


@everywhere
def test_branches_describe_their_spectrograms(name: str) -> None:
    model = named(name)
    config = model.config
    mix = noise(1, config.audio_channels, config.segment_samples)
    for branch in staged(model).branches:
        assert len(branch.gains) == len(config.sources)
        if branch.transform is not None:
            shape = (1, 2 * config.audio_channels, branch.transform.bins, branch.transform.frames)
            assert analyse(mix, branch.transform).shape == shape
