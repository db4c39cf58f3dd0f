"""The model that is trained: the paper's form over three resolutions, and how its weights start.

A network whose outputs are spectrograms learns slowly from random weights, because it first has to learn to
pass the mixture through. Here the outermost layers start as that:

- the first convolution takes the strided bins apart, each with both signs, as ``gelu(x) - gelu(-x) = x``,
- the last layer's GLU has copies of them for some sources, other ones in every resolution: transients are
  for short windows, low notes for long ones; the gates are then masks of those sources,
- every other weight starts at random, such that features keep unit deviation through the layers.

Everything is learnt from there; the structure is the published one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from store import SAMPLE_RATE, SOURCES
from torch import Tensor, nn

from mrsep_deploy.export.families.demucs.config import ModelConfig, parse_config
from mrsep_deploy.export.families.demucs.layers import DecoderLayer, EncoderLayer, FrequencyEmbedding
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.variants import build_model

FAMILY = "mrhdemucs"
KLASS = "mrsep_deploy.export.models.MRHDemucs"
ARGUMENTS: dict[str, Any] = {
    "nfft_list": [2048, 4096, 8192],
    "channels": 32,
    "growth": 1.25,
    "depth": 4,
    "context": 1,
    "dconv_mode": 0,
    "freq_emb": 0.3,
    "t_layers": 2,
    "t_heads": 8,
    "bottom_channels": 192,
    "attention": "linear",
    "samplerate": SAMPLE_RATE,
}
# Gates at the start: a third of the mixture for each instrument, an eighth for the vocals.
_SHARES = {"drums": 0.3, "bass": 0.3, "other": 0.35, "vocals": 0.12}
# Whose copies a resolution has, as far as its channels go: the shortest, those between, the longest.
_COPIES = (
    ("drums", "vocals", "other", "bass"),
    ("other", "drums", "bass", "vocals"),
    ("bass", "other", "vocals", "drums"),
)
_EMBEDDING_DEVIATION = 0.3
# Of the usual random weights, where the mixture passes: little enough that it does.
_GATE_WEIGHTS = 0.3
_OTHER_TAPS = 0.05


def configuration(segment: float, **changes: object) -> ModelConfig:
    """The model's structure for segments of so many seconds; its parameters do not depend on them."""
    arguments = {**ARGUMENTS, "segment": segment, **changes}
    return parse_config(FAMILY, (list(SOURCES),), arguments)[0]


def new_model(config: ModelConfig, mixture: Tensor) -> SeparationModel:
    """A model with fresh weights.

    Args:
        mixture: some music ``[B, 2, samples]``, to set the deviations of the features by.
    """
    model = build_model(config)
    resolutions = len(config.nfft_list)
    with torch.no_grad():
        for branch in range(resolutions):
            encoder, decoder, embedding = model.branches[branch]
            _start_embedding(embedding, config)
        handles = []
        for branch in range(resolutions):
            encoder, decoder, embedding = model.branches[branch]
            for layer in (*encoder, *list(decoder)[:-1]):
                for name in ("conv", "rewrite", "conv_tr"):
                    module = getattr(layer, name, None)
                    if module is not None:
                        handles.append(module.register_forward_hook(_to_unit_deviation()))
        model(mixture)
        for handle in handles:
            handle.remove()
        for branch in range(resolutions):
            encoder, decoder, embedding = model.branches[branch]
            _pass_in(encoder[0], embedding, config)
            _pass_out(decoder[-1], decoder[-2] if len(decoder) > 1 else None, branch, config)
    return model.train()


def _to_unit_deviation() -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        deviation = float(output.std()) + 1e-8
        for parameter in module.parameters():
            parameter.data /= deviation
        return output / deviation

    return hook


def _start_embedding(embedding: FrequencyEmbedding | None, config: ModelConfig) -> None:
    """Waves along frequency, so that neighbouring bins start alike."""
    if embedding is None:
        return
    weight = embedding.embedding.weight
    bins, channels = weight.shape
    place = torch.log1p(torch.arange(bins) / bins * 63) / math.log(64)
    rate = torch.linspace(0.5, 12, channels)
    phase = torch.rand(channels) * 2 * math.pi
    waves = torch.sin(2 * math.pi * place[:, None] * rate + phase)
    weight.copy_(waves * _EMBEDDING_DEVIATION / (embedding.scale * config.freq_emb))


def _identity_width(config: ModelConfig) -> int:
    """Channels of one copy of the input: (real, imaginary) of each audio channel, and the strided bins."""
    return 2 * config.audio_channels * config.stride


def _pass_in(layer: EncoderLayer, embedding: FrequencyEmbedding | None, config: ModelConfig) -> None:
    """The first channels that leave the layer are the input's bins, the next their magnitudes."""
    width, stride, first = _identity_width(config), config.stride, config.kernel_size // 4
    conv, rewrite = layer.conv, layer.rewrite
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(rewrite, nn.Conv2d)
    if 2 * width > config.channels:
        raise ValueError(f"{config.channels} channels cannot pass the input, expected at least {2 * width}")
    conv.weight[: 2 * width] = 0
    conv.bias[: 2 * width] = 0  # type: ignore[index]
    for index in range(width):
        component, offset = divmod(index, stride)
        conv.weight[index, component, first + offset] = 1
        conv.weight[width + index, component, first + offset] = -1
    rewrite.weight[: 2 * width] = 0
    rewrite.bias[: 2 * width] = 0  # type: ignore[index]
    gates = config.channels
    rewrite.weight[gates : gates + 2 * width] = 0
    rewrite.bias[gates : gates + 2 * width] = 0  # type: ignore[index]
    for index in range(width):
        # A gate of a half, twice.
        rewrite.weight[index, index], rewrite.weight[index, width + index] = 2, -2
        rewrite.weight[width + index, index] = rewrite.weight[width + index, width + index] = 1
    if embedding is not None:
        embedding.embedding.weight[:, :width] = 0


def _copies(branch: int, config: ModelConfig) -> tuple[str, ...]:
    """The sources that a resolution starts with a mask for."""
    resolutions = len(config.nfft_list)
    which = 0 if branch == 0 and resolutions > 1 else 2 if branch == resolutions - 1 else 1
    known = [source for source in _COPIES[which] if source in config.sources]
    return tuple(known[: config.channels // _identity_width(config)])


def _pass_out(layer: DecoderLayer, inside: DecoderLayer | None, branch: int, config: ModelConfig) -> None:
    """The layer's values are copies of the skip's first channels, each for one source, behind its gate."""
    width, stride, first = _identity_width(config), config.stride, config.kernel_size // 4
    rewrite, out = layer.rewrite, layer.conv_tr
    assert isinstance(rewrite, nn.Conv2d)
    assert isinstance(out, nn.ConvTranspose2d)
    if inside is not None:
        assert isinstance(inside.conv_tr, nn.ConvTranspose2d)
        inside.conv_tr.weight[:, :width] = 0
        inside.conv_tr.bias[:width] = 0  # type: ignore[index]
    rewrite.weight[config.channels :] *= _GATE_WEIGHTS
    out.weight *= _OTHER_TAPS
    out.bias.zero_()  # type: ignore[union-attr]
    components = 2 * config.audio_channels
    centre = config.context
    everywhere = [_copies(index, config) for index in range(len(config.nfft_list))]
    for copy, source in enumerate(everywhere[branch]):
        share = _SHARES[source]
        # Every resolution counts for as much as the others in the sum.
        gain = len(everywhere) / sum(source in copies for copies in everywhere)
        for index in range(width):
            component, offset = divmod(index, stride)
            value = copy * width + index
            target = config.sources.index(source) * components + component
            rewrite.weight[value] = 0
            rewrite.bias[value] = 0  # type: ignore[index]
            rewrite.weight[value, index, centre, centre] = 1
            rewrite.bias[config.channels + value] = math.log(share / (1 - share))  # type: ignore[index]
            out.weight[value, target, first + offset] = gain


def parameter_count(model: nn.Module) -> int:
    """How many numbers are learnt."""
    return sum(parameter.numel() for parameter in model.parameters())
