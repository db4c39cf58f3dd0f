"""What lower precision leaves in float32 of this family's models, beyond the general rules of precision.

    fold      the constant part of the norm folded into a DConv's last convolution, which cancels large terms
    last      of every branch's last decoder layer, what follows the first products: its DConv and its transposed
              convolution. A rounding before them is spread over frequencies and channels by what still comes. One in
              them is not, and falls on the sum of all sources, so that it is largest beside the quietest. The first
              products, by far the larger part of the layer's arithmetic, matter little: their roundings come before.
    fusion    the graph that fuses the branches

Bundles carry this as patterns of node names. Two general rules are named without patterns, where they have to match.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.rewrite_layers import DConvLayer
from mrsep_deploy.export.families.demucs.stages import TIME, branch_names

BEHIND_PRODUCTS = ("glu/*", "glu.norm/*", "dconv.*", "conv_tr/*", "norm2/*")
"""Nodes of a decoder layer behind the convolutions of its GLU."""

Patterns = dict[str, dict[str, tuple[str, ...]]]
"""Patterns of node names by rule and by stage."""


def float32_nodes(model: SeparationModel, stages: Sequence[Stage]) -> Patterns:
    """Returns what stays in float32 of a model as it is exported, rewritten, in these stages."""
    found: Patterns = {rule: {} for rule in ("norms", "attention", "fold", "last", "fusion")}
    for stage in stages:
        folds: list[str] = []
        last: list[str] = []
        for name, layers in _layers(model, stage):
            if any(isinstance(module, DConvLayer) for module in layers.modules()):
                folds.append(f"{name}.*.shift/*")
            if "decoder" in name:
                last += [f"{name}.{len(layers) - 1}.{pattern}" for pattern in BEHIND_PRODUCTS]
        attends = stage.name in ("bottleneck", "core") and model.crosstransformer is not None
        if folds or attends:
            found["norms"][stage.name] = ()
        if attends:
            found["attention"][stage.name] = ()
        if folds:
            found["fold"][stage.name] = tuple(folds)
        if last:
            found["last"][stage.name] = tuple(last)
        if stage.name == "fusion" and stage.kind == "graph":
            found["fusion"][stage.name] = ("*",)
    return found


def _layers(model: SeparationModel, stage: Stage) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yields the encoders and decoders that a stage computes with, each with its name in the model."""
    names = {module: name for name, module in model.named_modules()}
    side = stage.name.partition(".")[0]
    branches = (*branch_names(model.config.nfft_list), *([TIME] if model.config.waveform else []))
    for branch, (encoder, decoder, _) in zip(branches, model.branches, strict=True):
        if side == "core" or stage.branch == branch:
            if side in ("core", "branch", "encoder"):
                yield names[encoder], encoder
            if side in ("core", "branch", "decoder"):
                yield names[decoder], decoder
