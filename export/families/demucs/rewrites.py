"""Exact rewriting of a model before export: the same function in a form engines run fast and true.

Every rewrite is algebra, not approximation; the modules that do it derive it (``rewrite_layers``,
``rewrite_attention``, ``rewrite_fusion``). ``rewrite`` applies those asked for to a copy of a model.

    >>> rewritten = rewrite(model, ["dconv", "glu"])              # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

from mrsep_deploy.export.families.demucs.layers import DecoderLayer, EncoderLayer
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.rewrite_attention import ConstantPositions, fold_attention
from mrsep_deploy.export.families.demucs.rewrite_fusion import BlockedFusion
from mrsep_deploy.export.families.demucs.rewrite_layers import (
    ConstantEmbedding,
    RewrittenDecoderLayer,
    RewrittenEncoderLayer,
    spelled_norm,
)
from mrsep_deploy.export.families.demucs.shapes import bottleneck_size
from mrsep_deploy.export.families.demucs.transformer import CrossTransformer, TokenGroupNorm, TransformerLayer
from mrsep_deploy.export.families.demucs.variants import MultiResolution

REWRITES: Mapping[str, str] = {
    "dconv": "DConv as 2-D convolutions, its second norm and layer scale folded into the pointwise one",
    "glu": "GLU as two convolutions instead of one and a split",
    "crop": "the crop after a transposed convolution as its padding",
    "embedding": "the frequency embedding with its gain and scale as one constant",
    "positions": "the positions of the transformer's tokens as constants, time and frequency apart",
    "attention": "queries, keys and values from three linear layers, layer scales folded into linear layers",
    "shares": "the softmaxed weights of the resolutions in the bottleneck as numbers",
    "fusion": "the convolution that fuses the resolutions as matrix products over blocks of time",
}
"""Optional rewrites. Spelling out group norms is not optional: it is what makes them come out right."""


def rewrite(model: SeparationModel, enabled: Collection[str] = tuple(REWRITES)) -> SeparationModel:
    """A copy of ``model`` that computes the same function, ready to export.

    Raises:
        ValueError: a name in ``enabled`` is none of ``REWRITES``.
    """
    unknown = set(enabled) - set(REWRITES)
    if unknown:
        raise ValueError(f"unknown rewrites {sorted(unknown)}, expected some of {sorted(REWRITES)}")
    copied: SeparationModel = copy.deepcopy(model).requires_grad_(False)
    enabled = set(enabled) & set(applicable(copied))
    if "embedding" in enabled:
        _fold_embeddings(copied)
    if "attention" in enabled:
        for layer in copied.modules():
            if isinstance(layer, TransformerLayer):
                fold_attention(layer)
    if "positions" in enabled and copied.crosstransformer is not None:
        _fold_positions(copied, copied.crosstransformer)
    if "shares" in enabled and isinstance(copied, MultiResolution):
        copied.shares = tuple(copied.bottleneck_weights.double().tolist())
    if "fusion" in enabled:
        copied._modules["fusion_conv"] = BlockedFusion(copied.fusion_conv)
    _rewrite_layers(copied, enabled)
    return copied.eval().requires_grad_(False)


def applicable(model: SeparationModel) -> tuple[str, ...]:
    """The rewrites that find something to do in a model of this family; layers may still lack what they rewrite."""
    transformer = model.crosstransformer is not None
    needs = {
        "embedding": any(embedding is not None for _, _, embedding in model.branches),
        "positions": transformer,
        "attention": transformer,
        "shares": transformer and isinstance(model, MultiResolution),
        "fusion": model.config.fusion == "convolution",
    }
    return tuple(name for name in REWRITES if needs.get(name, True))


def _fold_embeddings(model: SeparationModel) -> None:
    embeddings = [embedding for _, _, embedding in model.branches]
    for branch, embedding in enumerate(embeddings):
        if embedding is None:
            continue
        bins = model.plan.bins(model.config.nfft_list[branch])[0]
        constant = ConstantEmbedding(embedding, model.config.freq_emb, bins)
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child is embedding:
                    setattr(parent, name, constant)


def _fold_positions(model: SeparationModel, transformer: CrossTransformer) -> None:
    channels = model.config.bottom_channels or model.config.bottleneck_channels
    size = bottleneck_size(model.config, model.plan)
    model._modules["crosstransformer"] = ConstantPositions(transformer, channels, *size)


def _rewrite_layers(model: SeparationModel, enabled: Collection[str]) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, EncoderLayer):
                setattr(module, name, RewrittenEncoderLayer(child, enabled))
            elif isinstance(child, DecoderLayer):
                setattr(module, name, RewrittenDecoderLayer(child, enabled))
            elif isinstance(child, TokenGroupNorm):
                setattr(module, name, spelled_norm(child))
