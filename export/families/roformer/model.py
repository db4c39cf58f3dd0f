"""BS-RoFormer and Mel-Band RoFormer as one module, from a spectrogram to the spectrograms of the stems.

Shapes: ``B`` items, ``C`` audio channels, ``F`` bins, ``T`` frames, ``K`` bands, ``D`` width of a token, ``S`` sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.export.families.roformer.bands import Band
from mrsep_deploy.export.families.roformer.config import BS, MEL, RoformerConfig
from mrsep_deploy.export.families.roformer.layers import RMSNorm, Transformer


class BandSplit(nn.Module):
    """One token for every band of every frame."""

    def __init__(self, bands: Sequence[Band], channels: int, dim: int) -> None:
        super().__init__()
        self.bands = tuple(bands)
        widths = (2 * channels * band.width for band in bands)
        self.to_features = nn.ModuleList(nn.Sequential(RMSNorm(w), nn.Linear(w, dim)) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Spectrogram ``[B, 2C, F, T]`` -> tokens ``[B, K, T, D]``."""
        pairs = zip(self.bands, self.to_features, strict=True)
        tokens = [layer(x[:, :, b.start : b.stop].permute(0, 3, 2, 1).flatten(2)) for b, layer in pairs]
        return torch.stack(tokens, dim=1)


class MaskEstimator(nn.Module):
    """The complex mask of one stem, a small network for every band; where bands overlap, the mean of theirs."""

    def __init__(self, config: RoformerConfig) -> None:
        super().__init__()
        self.bands, self.bins, self.channels = config.bands, config.bins, config.audio_channels
        hidden, layers = config.dim * config.mlp_expansion_factor, config.mask_layers
        self.to_freqs = nn.ModuleList()
        for band in config.bands:
            sizes = [config.dim, *[hidden] * (layers - 1), 4 * self.channels * band.width]
            linear = [nn.Linear(*pair) for pair in pairwise(sizes)]
            inner = [part for layer in linear[:-1] for part in (layer, nn.Tanh())]
            self.to_freqs.append(nn.Sequential(nn.Sequential(*inner, linear[-1]), nn.GLU(dim=-1)))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, K, T, D]`` -> mask ``[B, 2C, F, T]``, real and imaginary parts as in a spectrogram."""
        total: Tensor | None = None
        counts = [0] * self.bins
        for index, (band, network) in enumerate(zip(self.bands, self.to_freqs, strict=True)):
            mask = network(x[:, index]).unflatten(-1, (band.width, -1)).permute(0, 3, 2, 1)
            mask = F.pad(mask, (0, 0, band.start, self.bins - band.stop))
            total = mask if total is None else total + mask
            counts[band.start : band.stop] = [count + 1 for count in counts[band.start : band.stop]]
        assert total is not None
        return total / torch.tensor(counts, dtype=x.dtype, device=x.device)[:, None]


class Roformer(nn.Module):
    """The part of a model between spectrograms, in three steps: tokens, attention, masks."""

    def __init__(self, config: RoformerConfig) -> None:
        super().__init__()
        self.config = config
        depths = (config.time_transformer_depth, config.freq_transformer_depth)
        sizes = (config.heads, config.dim_head, config.kind == MEL)
        self.layers = nn.ModuleList(
            nn.ModuleList(Transformer(config.dim, depth, *sizes) for depth in depths)
            for _ in range(config.depth)
        )
        self.final_norm = RMSNorm(config.dim) if config.kind == BS else None
        self.band_split = BandSplit(config.bands, config.audio_channels, config.dim)
        self.mask_estimators = nn.ModuleList(MaskEstimator(config) for _ in range(config.stems))
        self.product = ComplexProduct()

    def attend(self, x: Tensor) -> Tensor:
        """Tokens ``[B, K, T, D]`` -> the same: attention over the frames of a band, then over the bands of a frame."""
        _, k, t, _ = x.shape
        earlier: list[Tensor] = []
        for block in self.layers:
            time, frequency = block.children()
            if self.config.skip_connection:
                x = sum(earlier, start=x)
            x = time(x.flatten(0, 1)).unflatten(0, (-1, k)).transpose(1, 2)
            x = frequency(x.flatten(0, 1)).unflatten(0, (-1, t)).transpose(1, 2)
            earlier.append(x)
        return x if self.final_norm is None else self.final_norm(x)

    def separate(self, x: Tensor, spectrogram: Tensor) -> Tensor:
        """Tokens ``[B, K, T, D]`` and spectrogram ``[B, 2C, F, T]`` -> those of the sources, ``[B, S*2C, F, T]``."""
        masked = spectrogram
        if self.config.zero_dc:
            keep = [0.0] + [1.0] * (self.config.bins - 1)
            masked = spectrogram * torch.tensor(keep, dtype=x.dtype, device=x.device)[:, None]
        estimates = [self.product(masked, self.mask_estimators[stem](x)) for stem in self.config.used_stems]
        if self.config.complement:
            estimates.append(spectrogram - estimates[0])
        return torch.cat(estimates, dim=1)


class ComplexProduct(nn.Module):
    """The product of ``[B, 2C, F, T]``, (real, imaginary) adjacent for each channel, in real arithmetic."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        (a, b), (c, d) = (torch.unflatten(each, 1, (-1, 2)).unbind(2) for each in (x, y))
        return torch.stack([a * c - b * d, a * d + b * c], dim=2).flatten(1, 2)
