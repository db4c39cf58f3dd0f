"""Exact rewriting of a model before export: the same function in a form engines run fast and true.

Every rewrite is algebra, not approximation; ``rewrite_bands`` and ``rewrite_attention`` derive it.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from mrsep_deploy.export.families.roformer.layers import Attention, FeedForward
from mrsep_deploy.export.families.roformer.model import Roformer
from mrsep_deploy.export.families.roformer.rewrite_attention import ConstantAttention, fold_gain
from mrsep_deploy.export.families.roformer.rewrite_bands import GroupedBandSplit, GroupedMasks


def rewrite(model: Roformer, enabled: Collection[str]) -> None:
    """Rewrites ``model`` in place.

    Args:
        enabled: names out of ``RoFormer.rewrites``.
    """
    model.requires_grad_(False)
    config = model.config
    if "bands" in enabled:
        model._modules["band_split"] = GroupedBandSplit(model.band_split, config.bins)
        for index in config.used_stems:
            masks = model.mask_estimators[index]
            model.mask_estimators[index] = GroupedMasks(masks)  # type: ignore[arg-type]
    tokens = config.segment_samples // config.hop + 1, len(config.bands)
    for block in model.layers:
        for transformer, count in zip(block.children(), tokens, strict=True):
            for layer in transformer.layers:  # type: ignore[union-attr]
                _rewrite_layer(layer, count, enabled)
    model.eval().requires_grad_(False)


def _rewrite_layer(layer: nn.ModuleList, tokens: int, enabled: Collection[str]) -> None:
    attention, feed_forward = layer
    assert isinstance(attention, Attention)
    assert isinstance(feed_forward, FeedForward)
    if "rotation" in enabled:
        layer[0] = ConstantAttention(attention, tokens)
    if "gains" in enabled:
        fold_gain(layer[0])  # type: ignore[arg-type]
        fold_gain(feed_forward)
