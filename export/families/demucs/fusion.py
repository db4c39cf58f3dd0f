"""How the branches' signals become stems: sums with learnt weights, a convolution, or a small U-Net.

Every fusion takes one time signal per resolution, ``[B, S, C, L]``, and where the model has a
waveform branch its signal too. ``gains`` are the weights that multiply a resolution's signal before
everything else; they are constants, so the bundle folds them into the de-normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn

from mrsep_deploy.export.families.demucs.config import ModelConfig

CONV_WIDTH = 129
"""Samples seen by the fusing convolution (the published value, not a constructor argument)."""


class ConvolutionFusion(nn.Conv2d):
    """Convolution over (resolution, 129 samples), grouped by source: ``[B, S*C, K, L] -> [B, S*C, 1, L]``."""

    def __init__(self, config: ModelConfig) -> None:
        channels = len(config.sources) * config.audio_channels
        super().__init__(
            channels,
            channels,
            (len(config.nfft_list), CONV_WIDTH),
            padding=(0, CONV_WIDTH // 2),
            groups=len(config.sources),
        )


class UNetFusion(nn.Module):
    """U-Net without activations over (resolution, time): ``[B, S*C, K, L] -> [B, S*C, 1, L]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.t_kernel_size
        channels = [len(config.sources) * config.audio_channels]
        channels += [config.t_channels * 2**i for i in range(config.t_depth)]
        rows = [len(config.nfft_list)] + [1] * (config.t_depth - 1)
        self.encoder = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], (rows[i], width), padding=(0, width // 2))
            for i in range(config.t_depth)
        )
        self.decoder = nn.ModuleList(
            nn.Conv2d(channels[i + 1], channels[i], (1, width), padding=(0, width // 2))
            for i in reversed(range(config.t_depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        for layer in self.decoder:
            x = layer(x + skips.pop())
        return x
