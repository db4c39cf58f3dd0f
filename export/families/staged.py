"""A model as stages in torch: what an export is checked against, and what the torch engine runs.

The data flow of a model is written in its stages and nowhere else; :func:`run` follows it. The stages that are
the same in every family are made here: spectrograms, normalisation, their inverses, sums, and the one graph
of the layout ``whole``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mrsep_deploy.bundle.manifest import MIX, STEMS, Branch, Layout, Stage
from mrsep_deploy.export.families.family import Family, StageSource
from mrsep_deploy.export.families.transforms import analyse, synthesise
from mrsep_deploy.transforms.spectrogram import NORMALISE_EPS

SHARED = "shared"
Owned = list[nn.Module | nn.Parameter]
Compute = Callable[..., tuple[Tensor, ...]]
"""From a model and a stage's inputs to a tuple of the stage's outputs."""


def run(stages: Iterable[StageSource], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` and what ``stages``, in their order, make of them, by name."""
    known = dict(tensors)
    for source in stages:
        outputs = source.module(*(known[name] for name in source.stage.inputs))
        known.update(zip(source.stage.outputs, outputs, strict=True))
    return known


class StagedModel(nn.Module):
    """A model cut into stages, which is itself a module from mixes to stems.

    Moving it, or a deep copy of it, to another device or precision does so with all of its stages.

    Attributes:
        model: with its parameters under the published names.
        branches: of the manifest.
        stages: from ``mix`` to ``stems``.
    """

    def __init__(self, family: Family, model: nn.Module, layout: Layout = "split") -> None:
        super().__init__()
        self.model = model.eval()
        self.branches = family.branches(model)
        with torch.no_grad():
            stages = family.stages(model, self.branches)
        self.stages: Sequence[StageSource] = whole(stages, model) if layout == "whole" else stages

    def tensors(self, mix: Tensor) -> dict[str, Tensor]:
        """Every tensor of segments ``[B, C, L]`` by name, in the precision of the model and ``mix``."""
        with torch.no_grad():
            return run(self.stages, {MIX: mix})

    def forward(self, mix: Tensor) -> Tensor:
        """Segments ``[B, C, L]`` -> stems ``[B, S, C, L]``."""
        return run(self.stages, {MIX: mix})[STEMS]


# --- making stages


def tag(branch: str) -> str:
    """A branch's name as it stands in tensor names, which keep to identifiers."""
    return branch.replace("-", "_")


def features(branch: Branch) -> str:
    """Name of the tensor that a branch's first graph reads."""
    return "waveform" if branch.is_waveform else f"spectrogram_{tag(branch.name)}"


def graph(
    name: str, branch: str, inputs: Iterable[str], outputs: Iterable[str], module: nn.Module
) -> StageSource:
    """A stage that becomes an ONNX graph; ``module`` says which parameters are its own if not all are."""
    owned = getattr(module, "owned", None) or [module]
    stage = Stage(
        name, "graph", branch, tuple(inputs), tuple(outputs), f"{name}.onnx", parameter_count(owned)
    )
    return StageSource(stage, module)


def parameter_count(owned: Iterable[nn.Module | nn.Parameter]) -> int:
    """How many numbers modules and parameters hold; what occurs twice counts once."""
    found = {
        id(p): p.numel()
        for thing in owned
        for p in ([thing] if isinstance(thing, nn.Parameter) else thing.parameters())
    }
    return sum(found.values())


def analysis(branches: Sequence[Branch]) -> list[StageSource]:
    """The stages from ``mix`` to what graphs read: a spectrogram for every resolution, the waveform."""
    sources = []
    for branch in branches:
        kind = "normalize" if branch.is_waveform else "spectrogram"
        outputs = (features(branch), *_statistics(branch))
        stage = Stage(f"{kind}.{branch.name}", kind, branch.name, (MIX,), outputs)  # type: ignore[arg-type]
        sources.append(StageSource(stage, _Computed(partial(_analysed, branch))))
    return sources


def synthesis(
    branches: Sequence[Branch], samples: int, gains: Sequence[Tensor] | None = None
) -> list[StageSource]:
    """The stages from graphs' estimates to time signals ``[B, S, C, L]``, ``signal_BRANCH``.

    Args:
        branches: of the model.
        samples: ``L``.
        gains: the branches' gains as tensors, for training; those of ``branches`` by default.
    """
    sources = []
    for index, branch in enumerate(branches):
        kind, name = "denormalize" if branch.is_waveform else "inverse", tag(branch.name)
        inputs = (f"estimate_{name}", *_statistics(branch))
        stage = Stage(f"{kind}.{branch.name}", kind, branch.name, inputs, (f"signal_{name}",))  # type: ignore[arg-type]
        compute = partial(_synthesised, branch, samples, None if gains is None else gains[index])
        sources.append(StageSource(stage, _Computed(compute)))
    return sources


def _statistics(branch: Branch) -> tuple[str, ...]:
    return (f"statistics_{tag(branch.name)}",) if branch.normalise else ()


def signals(branches: Sequence[Branch]) -> list[str]:
    """Names of the signals that :func:`synthesis` gives."""
    return [f"signal_{tag(branch.name)}" for branch in branches]


def total(branches: Sequence[Branch]) -> StageSource:
    """The stage that adds the branches' signals up to the stems."""
    return StageSource(Stage("fusion", "sum", SHARED, tuple(signals(branches)), (STEMS,)), _Computed(_added))


def whole(stages: Sequence[StageSource], model: nn.Module) -> list[StageSource]:
    """The stages with all graphs between the transforms joined to one, ``core``."""
    last = next(i for i, s in enumerate(stages) if s.stage.kind in ("inverse", "denormalize"))
    joined = [s for s in stages[:last] if s.stage.kind == "graph"]
    others = [s for s in stages if s not in joined]
    inside = {name for s in joined for name in s.stage.outputs}
    read = {name for s in joined for name in s.stage.inputs}
    inputs = [name for name in (MIX, *(n for s in others for n in s.stage.outputs)) if name in read]
    outputs = [name for s in others for name in s.stage.inputs if name in inside]
    parameters = sum(s.stage.parameters for s in joined)
    core = Stage("core", "graph", SHARED, tuple(inputs), tuple(outputs), "core.onnx", parameters)
    before = [s for s in stages[:last] if s not in joined]
    return [*before, StageSource(core, _Joined(model, joined, inputs, outputs)), *stages[last:]]


# --- the modules of stages


class Part(nn.Module):
    """One graph stage of a model.

    It holds the whole model, so that names in the graph are the published ones and rewriting the model
    rewrites its parts.

    Args:
        model: the model it is cut from.
        compute: what it computes.
        owned: modules and parameters of the model that it computes with.
    """

    def __init__(self, model: nn.Module, compute: Compute, owned: Owned) -> None:
        super().__init__()
        self.model, self.compute, self.owned = model, compute, owned

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.compute(self.model, *inputs)


class _Joined(nn.Module):
    """Several graph stages as one. The model alone is registered, so that names in the graph are the model's."""

    def __init__(
        self, model: nn.Module, stages: Sequence[StageSource], inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.joined, self.inputs, self.outputs = tuple(stages), tuple(inputs), tuple(outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tensors = run(self.joined, dict(zip(self.inputs, inputs, strict=True)))
        return tuple(tensors[name] for name in self.outputs)


class _Computed(nn.Module):
    """A function of tensors that has no parameters."""

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.compute(*inputs)


def _analysed(branch: Branch, mix: Tensor) -> tuple[Tensor, ...]:
    """mix ``[B, C, L]`` -> spectrogram or waveform and, where it is normalised, statistics ``[B, 2]``."""
    x = mix if branch.transform is None else analyse(mix, branch.transform)
    if not branch.normalise:
        return (x,)
    mean, std = statistics(x)
    return (x - mean) / (NORMALISE_EPS + std), torch.stack([mean.flatten(), std.flatten()], dim=1)


def _synthesised(
    branch: Branch, samples: int, gains: Tensor | None, x: Tensor, found: Tensor | None = None
) -> tuple[Tensor, ...]:
    """estimate ``[B, S*2C, F, T]`` or ``[B, S*C, L]``, perhaps statistics ``[B, 2]`` -> signal ``[B, S, C, L]``."""
    gains = x.new_tensor(branch.gains) if gains is None else gains.to(x)
    x = x.view(len(x), len(gains), -1, *x.shape[2:])
    if found is not None:
        mean, std = (s.view(-1, *[1] * (x.dim() - 1)) for s in found.unbind(1))
        x = x * std + mean
    x = x * gains.view(-1, *[1] * (x.dim() - 2))
    return (x if branch.transform is None else synthesise(x, branch.transform, samples),)


def _added(*signals: Tensor) -> tuple[Tensor, ...]:
    total: Any = sum(signals[1:], start=signals[0])
    return (total,)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation per item over all other axes, shaped to broadcast."""
    dims = tuple(range(1, x.dim()))
    return x.mean(dim=dims, keepdim=True), x.std(dim=dims, keepdim=True)
