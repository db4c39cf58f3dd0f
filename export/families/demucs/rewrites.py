"""Exact rewriting of a model before export: the same function in a form engines run fast and true.

Every rewrite is algebra, not approximation; the modules that do it derive it (``rewrite_layers``,
``rewrite_attention``, ``rewrite_fusion``). ``rewrite`` puts those asked for in place.

    >>> rewrite(model, ["dconv", "glu"])              # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection

from mrsep_deploy.export.families.demucs.layers import DecoderLayer, EncoderLayer
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.rewrite_attention import ConstantPositions, fold_attention
from mrsep_deploy.export.families.demucs.rewrite_fusion import BlockedFusion
from mrsep_deploy.export.families.demucs.rewrite_layers import (
    ConstantEmbedding,
    rewrite_layer,
    spelled_norm,
)
from mrsep_deploy.export.families.demucs.shapes import bottleneck_size
from mrsep_deploy.export.families.demucs.transformer import CrossTransformer, TokenGroupNorm, TransformerLayer
from mrsep_deploy.export.families.demucs.variants import MultiResolution


def rewrite(model: SeparationModel, enabled: Collection[str]) -> None:
    """Rewrites ``model`` in place, so that it computes the same function and is ready to export.

    Spelling out group norms is not optional: it is what makes them come out right.

    Args:
        enabled: names out of ``Demucs.rewrites``.
    """
    model.requires_grad_(False)
    found = applicable(model)
    enabled = {name for name in enabled if found.get(name, True)}
    if "embedding" in enabled:
        _fold_embeddings(model)
    if "attention" in enabled:
        for layer in model.modules():
            if isinstance(layer, TransformerLayer):
                fold_attention(layer)
    if "positions" in enabled and model.crosstransformer is not None:
        _fold_positions(model, model.crosstransformer)
    if "shares" in enabled and isinstance(model, MultiResolution):
        model.shares = tuple(model.bottleneck_weights.double().tolist())
    if "fusion" in enabled:
        model._modules["fusion_conv"] = BlockedFusion(model.fusion_conv)
    for module in list(model.modules()):
        if isinstance(module, (EncoderLayer, DecoderLayer)):
            rewrite_layer(module, enabled)
        for name, child in list(module.named_children()):
            if isinstance(child, TokenGroupNorm):
                setattr(module, name, spelled_norm(child))
    model.eval().requires_grad_(False)


def applicable(model: SeparationModel) -> dict[str, bool]:
    """For rewrites that not every model needs, whether this one does; layers may still lack what they rewrite."""
    transformer = model.crosstransformer is not None
    return {
        "embedding": any(embedding is not None for _, _, embedding in model.branches),
        "positions": transformer,
        "attention": transformer,
        "shares": transformer and isinstance(model, MultiResolution),
        "fusion": model.config.fusion == "convolution",
    }


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
    channels = model.config.transformer_channels
    size = bottleneck_size(model.config, model.plan)
    model._modules["crosstransformer"] = ConstantPositions(transformer, channels, *size)
