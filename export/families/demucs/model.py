"""The common form of every family: branches, an optional bottleneck, a fusion.

A :class:`SeparationModel` has the parts that stages are made of (``stages``):

    spectrogram or waveform -> encode_* -> bottleneck -> decode_* -> signals -> fuse
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrsep_deploy.bundle.manifest import FusionShares
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.fusion import ConvolutionFusion, UNetFusion
from mrsep_deploy.export.families.demucs.layers import (
    DecoderLayer,
    EncoderLayer,
    FrequencyEmbedding,
    LayerShape,
)
from mrsep_deploy.export.families.demucs.shapes import LayerPlan, plan_layers
from mrsep_deploy.export.families.demucs.transformer import CrossTransformer

BranchLayers = tuple[nn.ModuleList, nn.ModuleList, FrequencyEmbedding | None]
"""Encoder, decoder and embedding of one branch."""


class SeparationModel(nn.Module):
    """Base of all families; subclasses own the parameters under the published names.

    Attributes:
        config: the structure.
        plan: the shapes of its layers.
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

    def _layers(self, shapes: Sequence[LayerShape]) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Encoder (outermost first) and decoder (innermost first) of one branch."""
        encoder = nn.ModuleList(EncoderLayer(shape, self.config) for shape in shapes)
        decoder = nn.ModuleList(DecoderLayer(shape, self.config) for shape in reversed(shapes))
        return encoder, decoder

    def _embedding(self, n_fft: int) -> FrequencyEmbedding:
        config = self.config
        bins = n_fft // 2 // self.plan.spectrogram[0].stride
        if config.merges and n_fft // 2 <= config.kernel_size:
            bins = 1
        return FrequencyEmbedding(bins, self.plan.spectrogram[0].inner, config.emb_scale)

    def _add_waveform_branch(self) -> None:
        if self.config.waveform:
            self.tencoder, self.tdecoder = self._layers(self.plan.waveform)

    def _add_bottleneck(self) -> None:
        config = self.config
        width = config.bottleneck_channels
        if config.bottom_channels:
            for side in ("", "_t") if config.waveform else ("",):
                self.add_module(f"channel_upsampler{side}", nn.Conv1d(width, config.bottom_channels, 1))
                self.add_module(f"channel_downsampler{side}", nn.Conv1d(config.bottom_channels, width, 1))
        self.crosstransformer = None
        if config.t_layers:
            self.crosstransformer = CrossTransformer(config.transformer_channels, config)

    def _add_fusion(self) -> None:
        if self.config.fusion == "convolution":
            self.fusion_conv = ConvolutionFusion(self.config)
        elif self.config.fusion == "unet":
            self.fusion_unet = UNetFusion(self.config)

    # --- the parts

    @property
    def spectrogram_branches(self) -> list[BranchLayers]:
        """The layers of every resolution."""
        raise NotImplementedError

    @property
    def branches(self) -> list[BranchLayers]:
        """The layers of every resolution, then of the waveform."""
        waveform = [(self.tencoder, self.tdecoder, None)] if self.config.waveform else []
        return [*self.spectrogram_branches, *waveform]

    @property
    def fusion(self) -> nn.Module | None:
        """What fuses the signals, unless they are added up."""
        return getattr(self, "fusion_conv", None) or getattr(self, "fusion_unet", None)

    @property
    def gains(self) -> Tensor:
        """Weight of each resolution's signal in each source, ``[K, S]``; ones where the fusion has none."""
        return torch.ones(len(self.config.nfft_list), len(self.config.sources))

    def fusion_shares(self) -> tuple[FusionShares, ...]:
        """The learnt weights per resolution: of the bottleneck, of the output for every source or for all."""
        return ()

    def encode(self, branch: int, x: Tensor, inject: Tensor | None = None) -> tuple[Tensor, ...]:
        """Outputs of every encoder layer of a branch, outermost first; ``inject`` is what merges into it.

        The last one enters the bottleneck; of the waveform branch of a merging model, it is what merges.
        """
        encoder, _, embedding = self.branches[branch]
        skips: list[Tensor] = []
        for index, layer in enumerate(encoder):
            x = layer(x, inject if index == self.plan.merge else None)
            if index == 0 and embedding is not None:
                x = embedding(x, self.config.freq_emb)
            skips.append(x)
        return tuple(skips)

    def bottleneck(self, *deepest: Tensor) -> tuple[Tensor, ...]:
        """Innermost features ``[B, C, F_k, T_k]`` and ``[B, C, N]`` -> the same, transformed."""
        raise NotImplementedError

    def _transform(self, x: Tensor, xt: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The shared transformer, between its channel adapters."""
        assert self.crosstransformer is not None
        if self.config.bottom_channels:
            x = _pointwise(self.channel_upsampler, x)
            xt = None if xt is None else self.channel_upsampler_t(xt)
        x, xt = self.crosstransformer(x, xt)
        if self.config.bottom_channels:
            x = _pointwise(self.channel_downsampler, x)
            xt = None if xt is None else self.channel_downsampler_t(xt)
        return x, xt

    def decode(self, branch: int, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
        """The branch's estimate, ``[B, S*2C, F, T]`` or ``[B, S*C, L]``.

        Where the model merges, its spectrogram gives what the waveform decoder continues from as well, ``[B, C, T]``.
        """
        _, decoder, _ = self.branches[branch]
        outputs: list[Tensor] = []
        for outer, layer in zip(reversed(range(len(decoder))), decoder, strict=True):
            assert isinstance(layer, DecoderLayer)
            # Layers along time give back as much as entered them, the stride may not divide that.
            length = skips[outer - 1].shape[-1] if outer else self.config.segment_samples
            x, before = layer(x, None if layer.shape.empty else skips[outer], length)
            if outer == self.plan.merge and layer.shape.frequency:
                outputs = [before.flatten(1, 2)]
        return x, *outputs

    def encode_and_decode(self, branch: int, x: Tensor, inject: Tensor | None = None) -> tuple[Tensor, ...]:
        """:meth:`decode` of :meth:`encode`: a branch that meets no bottleneck."""
        skips = self.encode(branch, x, inject)
        return self.decode(branch, skips[-1], *skips)

    def fuse(self, *signals: Tensor) -> tuple[Tensor]:
        """Stems ``[B, S, C, L]`` from signals that already carry their ``gains``, the waveform's last."""
        assert self.fusion is not None
        resolutions = len(self.config.nfft_list)
        stacked = torch.stack([signal.flatten(1, 2) for signal in signals[:resolutions]], dim=2)
        stems = self.fusion(stacked).view(signals[0].shape)
        return (stems + signals[-1] if self.config.waveform else stems,)


def _pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a 1-D pointwise convolution to ``[B, C, F, T]``."""
    b, _, f, t = x.shape
    y: Tensor = conv(x.flatten(2))
    return y.view(b, -1, f, t)
