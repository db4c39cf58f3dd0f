"""Exact rewriting of a model before export: the same function in a form engines run fast and true.

Every rewrite is algebra, not approximation; the modules that do it derive it (``rewrite_layers``,
``rewrite_attention``, ``rewrite_fusion``). ``rewrite`` puts those asked for in place.

    >>> rewrite(model, ["dconv", "glu"])              # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection

from mrsep_deploy.export.families.demucs.layers import DecoderLayer, EncoderLayer, FrequencyEmbedding
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.rewrite_attention import ConstantPositions, fold_attention
from mrsep_deploy.export.families.demucs.rewrite_fusion import BlockedFusion
from mrsep_deploy.export.families.demucs.rewrite_layers import (
    ConstantEmbedding,
    rewrite_layer,
    spelled_norm,
)
from mrsep_deploy.export.families.demucs.shapes import bottleneck_size
from mrsep_deploy.export.families.demucs.transformer import TokenGroupNorm, TransformerLayer
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
    if "attention" in enabled:
        for layer in model.modules():
            if isinstance(layer, TransformerLayer):
                fold_attention(layer)
    if "positions" in enabled and model.crosstransformer is not None:
        size = bottleneck_size(model.config, model.plan)
        positions = ConstantPositions(model.crosstransformer, model.config.transformer_channels, *size)
        model._modules["crosstransformer"] = positions
    if "shares" in enabled and isinstance(model, MultiResolution):
        model.shares = tuple(model.bottleneck_weights.double().tolist())
    if "fusion" in enabled:
        model._modules["fusion_conv"] = BlockedFusion(model.fusion_conv)
    windows = zip(model.spectrogram_branches, model.config.nfft_list, strict=True)
    bins = {embedding: model.plan.bins(n_fft)[0] for (_, _, embedding), n_fft in windows}
    for module in list(model.modules()):
        if isinstance(module, (EncoderLayer, DecoderLayer)):
            rewrite_layer(module, enabled)
        for name, child in list(module.named_children()):
            if isinstance(child, TokenGroupNorm):
                setattr(module, name, spelled_norm(child))
            elif isinstance(child, FrequencyEmbedding) and "embedding" in enabled:
                setattr(module, name, ConstantEmbedding(child, model.config.freq_emb, bins[child]))
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
