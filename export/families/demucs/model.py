"""The common form of every family: branches, an optional bottleneck, a fusion.

A :class:`SeparationModel` has the parts that stages are made of (``stages``):

    spectrogram or waveform -> encode_* -> bottleneck -> decode_* -> signals -> fuse
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.fusion import ConvolutionFusion, UNetFusion, stack_resolutions
from mrsep_deploy.export.families.demucs.layers import DecoderLayer, EncoderLayer, FrequencyEmbedding
from mrsep_deploy.export.families.demucs.shapes import LayerPlan, plan_layers
from mrsep_deploy.export.families.demucs.transformer import CrossTransformer


class SeparationModel(nn.Module):
    """Base of all families; subclasses own the parameters under the published names.

    Attributes:
        config: the structure.
        encoder_branches, decoder_branches: the layers of each spectrogram branch.
        embeddings: the frequency embedding of each spectrogram branch, or none.
    """

    tencoder: nn.ModuleList
    tdecoder: nn.ModuleList
    crosstransformer: CrossTransformer | None
    channel_upsampler: nn.Module
    channel_downsampler: nn.Module
    channel_upsampler_t: nn.Module
    channel_downsampler_t: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.plan: LayerPlan = plan_layers(config)

    # --- construction, in the published order of the parameters

    def _spectrogram_layers(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Encoder (outermost first) and decoder (innermost first) of one spectrogram branch."""
        encoder = nn.ModuleList(EncoderLayer(s, self.config) for s in self.plan.spectrogram)
        decoder = nn.ModuleList(DecoderLayer(s, self.config) for s in reversed(self.plan.spectrogram))
        return encoder, decoder

    def _embedding(self, n_fft: int) -> FrequencyEmbedding:
        config = self.config
        bins = n_fft // 2 // self.plan.spectrogram[0].stride
        if config.family == "htdemucs" and n_fft // 2 <= config.kernel_size:
            bins = 1
        return FrequencyEmbedding(bins, self.plan.spectrogram[0].inner, config.emb_scale)

    def _add_waveform_branch(self) -> None:
        if self.config.waveform:
            self.tencoder = nn.ModuleList(EncoderLayer(s, self.config) for s in self.plan.waveform)
            self.tdecoder = nn.ModuleList(DecoderLayer(s, self.config) for s in reversed(self.plan.waveform))

    def _add_bottleneck(self) -> None:
        config = self.config
        width = config.bottleneck_channels
        if config.bottom_channels:
            sides = ("", "_t") if config.waveform else ("",)
            for side in sides:
                self.add_module(f"channel_upsampler{side}", nn.Conv1d(width, config.bottom_channels, 1))
                self.add_module(f"channel_downsampler{side}", nn.Conv1d(config.bottom_channels, width, 1))
        self.crosstransformer = None
        if config.t_layers:
            self.crosstransformer = CrossTransformer(config.bottom_channels or width, config)

    # --- the parts

    @property
    def branches(self) -> list[tuple[nn.ModuleList, nn.ModuleList, FrequencyEmbedding | None]]:
        """Encoder, decoder and embedding of every spectrogram branch."""
        raise NotImplementedError

    @property
    def gains(self) -> Tensor:
        """Weight of each resolution's signal in each source, ``[K, S]``; ones where the fusion has none."""
        return torch.ones(len(self.config.nfft_list), len(self.config.sources))

    def encode_spectrogram(self, branch: int, x: Tensor, inject: Tensor | None = None) -> list[Tensor]:
        """Outputs of every encoder layer, outermost first; the last one enters the bottleneck."""
        encoder, _, embedding = self.branches[branch]
        skips: list[Tensor] = []
        for index, layer in enumerate(encoder):
            x = layer(x, inject if index == self.plan.merge else None)
            if index == 0 and embedding is not None:
                x = embedding(x, self.config.freq_emb)
            skips.append(x)
        return skips

    def encode_waveform(self, x: Tensor) -> list[Tensor]:
        """Outputs of every waveform encoder layer; in a merging model the last is what it injects."""
        skips: list[Tensor] = []
        for layer in self.tencoder:
            x = layer(x)
            skips.append(x)
        return skips

    def bottleneck(self, xs: Sequence[Tensor], xt: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Transform the innermost features ``[B, C, F_k, T_k]`` and ``[B, C, N]``."""
        raise NotImplementedError

    def _transform(self, x: Tensor, xt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The shared transformer, between its channel adapters."""
        if self.crosstransformer is None:
            return x, xt
        adapt = bool(self.config.bottom_channels)
        if adapt:
            x = _pointwise(self.channel_upsampler, x)
            xt = None if xt is None else self.channel_upsampler_t(xt)
        x, xt = self.crosstransformer(x, xt)
        if adapt:
            x = _pointwise(self.channel_downsampler, x)
            xt = None if xt is None else self.channel_downsampler_t(xt)
        return x, xt

    def decode_spectrogram(
        self, branch: int, x: Tensor, skips: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The branch's estimate ``[B, S*2C, F, T]``, and what a merged waveform decoder continues from."""
        _, decoder, _ = self.branches[branch]
        before: Tensor | None = None
        for index, layer in enumerate(decoder):
            outer = len(decoder) - 1 - index
            # Layers along time give back as many frames as entered them, the stride may not divide those.
            x, last = layer(x, skips[outer], skips[max(outer - 1, 0)].shape[-1])
            if outer == self.plan.merge:
                before = last
        return x, before

    def decode_waveform(self, x: Tensor, skips: Sequence[Tensor | None]) -> Tensor:
        """The waveform estimate ``[B, S*C, L]``."""
        lengths = self.plan.waveform_lengths
        for index, layer in enumerate(self.tdecoder):
            outer = len(self.tdecoder) - 1 - index
            skip = None if self.plan.waveform[outer].empty else skips[outer]
            x, _ = layer(x, skip, lengths[outer])
        return x

    def fuse(self, signals: Sequence[Tensor], waveform: Tensor | None) -> Tensor:
        """Stems ``[B, S, C, L]`` from signals that already carry their ``gains``."""
        b, s, c, length = signals[0].shape
        module: nn.Module | None = getattr(self, "fusion_conv", None) or getattr(self, "fusion_unet", None)
        if module is None:
            stems = signals[0]
            for signal in signals[1:]:
                stems = stems + signal
        else:
            stems = module(stack_resolutions(signals)).view(b, s, c, length)
        return stems if waveform is None else stems + waveform

    def _add_fusion(self) -> None:
        if self.config.fusion == "convolution":
            self.fusion_conv = ConvolutionFusion(self.config)
        elif self.config.fusion == "unet":
            self.fusion_unet = UNetFusion(self.config)


def _pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a 1-D pointwise convolution to ``[B, C, F, T]``."""
    b, _, f, t = x.shape
    y: Tensor = conv(x.flatten(2))
    return y.view(b, -1, f, t)
