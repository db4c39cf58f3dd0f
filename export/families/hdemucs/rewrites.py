"""Exact rewriting of ``HDemucs`` and ``Demucs`` before export; the rewrites are those of :mod:`..demucs`."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from torch import nn

from mrsep_deploy.export.families.demucs.layers import DConv, DecoderLayer, EncoderLayer, FrequencyEmbedding
from mrsep_deploy.export.families.demucs.rewrite_layers import (
    ConstantEmbedding,
    DConv2d,
    PlainGLU,
    SplitGLU,
    rewrite_layer,
    spelled_norm,
)
from mrsep_deploy.export.families.demucs.rewrite_sequence import rewrite_lstm
from mrsep_deploy.export.families.demucs.sequence import BiLSTM
from mrsep_deploy.export.families.hdemucs.hybrid import HDemucs
from mrsep_deploy.export.families.hdemucs.waveform import Demucs


def rewrite(model: HDemucs | Demucs, enabled: Collection[str]) -> None:
    """Rewrites ``model`` in place, so that it computes the same function and is ready to export.

    Spelling out group norms and LSTMs is not optional: it is what makes them come out right.

    Args:
        enabled: names out of the family's rewrites.
    """
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, BiLSTM):
            rewrite_lstm(module)
        elif isinstance(module, (EncoderLayer, DecoderLayer)):
            rewrite_layer(module, enabled)
    if isinstance(model, HDemucs):
        embedding = model.freq_emb
        if "embedding" in enabled and isinstance(embedding, FrequencyEmbedding):
            bins = model.plan.bins(model.config.nfft_list[0])[0]
            model._modules["freq_emb"] = ConstantEmbedding(embedding, model.config.freq_emb, bins)
    else:
        for layers in (model.encoder, model.decoder):
            for index, layer in enumerate(layers):
                layers[index] = _sequence(cast(nn.Sequential, layer), enabled)
    model.eval().requires_grad_(False)


def _sequence(layer: nn.Sequential, enabled: Collection[str]) -> nn.Sequential:
    """A layer of ``Demucs``, its norms spelled out; DConv and GLU rewritten where that is enabled."""
    parts: list[nn.Module] = []
    for part in layer:
        if isinstance(part, nn.GLU):
            conv, norm = parts[-2:]
            split = "glu" in enabled and isinstance(norm, nn.Identity)
            del parts[-2:]
            parts.append(SplitGLU(cast(nn.Conv1d, conv)) if split else PlainGLU(conv, norm))
        elif isinstance(part, DConv):
            parts.append(DConv2d(part) if "dconv" in enabled else _spelled(part))
        else:
            parts.append(spelled_norm(part))
    return nn.Sequential(*parts)


def _spelled(dconv: DConv) -> DConv:
    for layer in dconv.layers:
        for index, module in enumerate(cast(nn.Sequential, layer)):
            cast(nn.Sequential, layer)[index] = spelled_norm(module)
    return dconv
