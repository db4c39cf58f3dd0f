"""The published families, and the paper's own form, as concrete modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrsep_deploy.bundle.manifest import MIX, STEMS, FusionShares
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.model import BranchLayers, SeparationModel
from mrsep_deploy.export.families.demucs.stages import make_branches, split
from mrsep_deploy.export.families.staged import run


class WholeModel(SeparationModel):
    """A model that is also run as one module, through its stages."""

    def forward(self, mix: Tensor) -> Tensor:
        """Separate segments: ``[B, C, L] -> [B, S, C, L]``, ``L`` at most the model's segment."""
        length, longest = mix.shape[-1], self.config.segment_samples
        if length > longest:
            raise ValueError(f"{length} samples are more than the model's segment, {longest}")
        stages = split(self, make_branches(self.config))
        return run(stages, {MIX: F.pad(mix, (0, longest - length))})[STEMS][..., :length]


class HTDemucs(WholeModel):
    """Hybrid Transformer Demucs (Rouard et al. 2023): one spectrogram and one waveform branch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = self._layers(self.plan.spectrogram)
        self._add_waveform_branch()
        self.freq_emb = self._embedding(config.nfft_list[0]) if config.freq_emb else None
        self._add_bottleneck()

    @property
    def spectrogram_branches(self) -> list[BranchLayers]:
        return [(self.encoder, self.decoder, self.freq_emb)]

    def bottleneck(self, *deepest: Tensor) -> tuple[Tensor, ...]:
        """Without the waveform's features where the model merges: its decoder continues from the spectrogram's."""
        x, xt = self._transform(*deepest)
        return (x,) if xt is None or self.plan.merge is not None else (x, xt)


class MultiResolution(WholeModel):
    """Several spectrogram branches, fused into a shared bottleneck and again at the output.

    Serves HTDemucs_n, _nn, _2nn, _nf, _dnf and the paper's form (``mrhdemucs``); the configuration
    says which parts there are. Published training state (``weight_ema``, ``final_weight_ema``) has no
    place here.

    Attributes:
        shares: ``bottleneck_weights`` worked out as numbers, for a model that is only exported.
    """

    shares: tuple[float, ...] | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        resolutions = len(config.nfft_list)
        if config.t_layers or config.family in ("htdemucs_n", "htdemucs_nn", "htdemucs_2nn"):
            self.fusion_weights = nn.Parameter(torch.full((resolutions,), 1 / resolutions))
        if config.fusion in ("source", "shared"):
            shape = (len(config.sources), resolutions) if config.fusion == "source" else (resolutions,)
            self.final_fusion_weights = nn.Parameter(torch.full(shape, 1 / resolutions))
        pairs = [self._layers(self.plan.spectrogram) for _ in range(resolutions)]
        self.encoders = nn.ModuleList(encoder for encoder, _ in pairs)
        self.decoders = nn.ModuleList(decoder for _, decoder in pairs)
        self._add_waveform_branch()
        self._add_fusion()
        self.freq_embeddings: nn.ModuleList | None = None
        if config.freq_emb:
            self.freq_embeddings = nn.ModuleList(self._embedding(n) for n in config.nfft_list)
        self._add_bottleneck()

    @property
    def spectrogram_branches(self) -> list[BranchLayers]:
        embeddings = self.freq_embeddings or [None] * len(self.encoders)
        return list(zip(self.encoders, self.decoders, embeddings, strict=True))  # type: ignore[arg-type]

    @property
    def gains(self) -> Tensor:
        if self.config.fusion == "source":
            return torch.softmax(self.final_fusion_weights, dim=-1).t()
        if self.config.fusion == "shared":
            weights = torch.softmax(self.final_fusion_weights, dim=0)
            return weights[:, None].expand(-1, len(self.config.sources))
        return super().gains

    @property
    def bottleneck_weights(self) -> Tensor:
        """Share of each resolution in the shared bottleneck, ``[K]``, summing to one."""
        return torch.softmax(self.fusion_weights, dim=0)

    def fusion_shares(self) -> tuple[FusionShares, ...]:
        found = []
        if self.crosstransformer is not None:
            found.append(FusionShares("bottleneck", (), _rows(self.bottleneck_weights[None])))
        if self.config.fusion == "source":
            found.append(FusionShares("output", self.config.sources, _rows(self.gains.t())))
        elif self.config.fusion == "shared":
            found.append(FusionShares("output", (), _rows(self.gains[:, 0][None])))
        return tuple(found)

    def bottleneck(self, *deepest: Tensor) -> tuple[Tensor, ...]:
        """Fuse the resolutions, transform, and give each its share back.

        ``x_k <- w_k resample(T(sum_j w_j resample(x_j))) + (1 - w_k) x_k``
        """
        resolutions = len(self.config.nfft_list)
        xs, waveform = deepest[:resolutions], deepest[resolutions:]
        weights: Sequence[Tensor | float] = self.shares or list(self.bottleneck_weights)
        size = xs[len(xs) // 2].shape[-2:]
        fused = weights[0] * resample(xs[0], size)
        for weight, x in zip(weights[1:], xs[1:], strict=True):
            fused = fused + weight * resample(x, size)
        fused, xt = self._transform(fused, *waveform)
        shared = [
            weight * resample(fused, x.shape[-2:]) + (1 - weight) * x
            for weight, x in zip(weights, xs, strict=True)
        ]
        return tuple(shared) if xt is None else (*shared, xt)


def resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resampling of ``[B, C, F, T]`` to ``size``, half-pixel centres (``align_corners=False``)."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def build_model(config: ModelConfig) -> WholeModel:
    """A model with fresh weights, in evaluation mode."""
    model = HTDemucs(config) if config.family == "htdemucs" else MultiResolution(config)
    return model.eval()


def _rows(weights: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in weights.detach().double().tolist())
