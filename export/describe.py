"""What a loaded model is, in the terms of a manifest."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction

from mrsep_deploy.bundle.manifest import FusionShares, ModelInfo
from mrsep_deploy.export.families.demucs.config import ModelConfig
from mrsep_deploy.export.families.demucs.variants import fusion_shares
from mrsep_deploy.export.load import LoadedModel


def model_info(loaded: LoadedModel) -> ModelInfo:
    """Family, sources, audio format and size."""
    config = loaded.config
    return ModelInfo(
        family=config.family,
        sources=config.sources,
        sample_rate=config.samplerate,
        audio_channels=config.audio_channels,
        segment=Fraction(config.segment_samples, config.samplerate),
        segment_samples=config.segment_samples,
        trained=loaded.trained,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        config=_plain_config(config),
    )


def _plain_config(config: ModelConfig) -> dict[str, object]:
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    plain["segment"] = str(config.segment)
    return plain


def learnt_shares(loaded: LoadedModel) -> tuple[FusionShares, ...]:
    """The learnt weights of the resolutions, at the bottleneck and at the output, if there are any."""
    shares = []
    for where, weights in fusion_shares(loaded.model).items():
        per_source = weights.dim() == 2
        rows = weights.double().tolist() if per_source else [weights.double().tolist()]
        sources = loaded.config.sources if per_source else ()
        shares.append(FusionShares(where, tuple(sources), tuple(tuple(row) for row in rows)))
    return tuple(shares)
