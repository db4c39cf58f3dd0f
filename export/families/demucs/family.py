"""The family of Demucs as one object; see :class:`mrsep_deploy.export.families.family.Family`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from mrsep_deploy.bundle.manifest import Branch, FusionShares, Stage
from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.families.demucs.config import VARIANTS, ModelConfig, parse_config
from mrsep_deploy.export.families.demucs.paper import paper_tables
from mrsep_deploy.export.families.family import Audio, Family, PaperTable, StageSource

if TYPE_CHECKING:
    from mrsep_deploy.export.families.demucs.model import SeparationModel


class Demucs(Family):
    """HTDemucs (Rouard et al. 2023) and the classes with several resolutions that descend from it."""

    name: ClassVar[str] = "demucs"
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    classes: ClassVar[Mapping[str, str]] = {
        "demucs.htdemucs.HTDemucs": "htdemucs",
        **{f"demucs.htdemucs_{x}.HTDemucs_{x}": f"htdemucs_{x}" for x in ("n", "nf", "nn", "2nn", "dnf")},
        "mrsep_deploy.export.models.MRHDemucs": "mrhdemucs",
    }
    ignored_state: ClassVar[tuple[str, ...]] = ("weight_ema", "final_weight_ema")
    rewrites: ClassVar[Mapping[str, str]] = {
        "dconv": "DConv as 2-D convolutions, its second norm and layer scale folded into the pointwise one",
        "glu": "GLU as two convolutions instead of one and a split",
        "crop": "the crop after a transposed convolution as its padding",
        "embedding": "the frequency embedding with its gain and scale as one constant",
        "positions": "the positions of the transformer's tokens as constants, time and frequency apart",
        "attention": "queries, keys, values by linear layers, sums over tokens as means, layer scales folded",
        "shares": "the softmaxed weights of the resolutions in the bottleneck as numbers",
        "fusion": "the convolution that fuses the resolutions as matrix products over blocks of time",
    }

    def config(
        self, variant: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[ModelConfig, list[str]]:
        return parse_config(variant, args, kwargs)

    def model(self, config: ModelConfig) -> SeparationModel:
        from mrsep_deploy.export.families.demucs.variants import build_model

        return build_model(config)

    def audio(self, config: ModelConfig) -> Audio:
        return Audio(config.sources, config.samplerate, config.audio_channels, config.segment_samples)

    def branches(self, model: SeparationModel) -> tuple[Branch, ...]:
        from mrsep_deploy.export.families.demucs.stages import make_branches

        gains = model.gains.detach()
        return make_branches(model.config, () if gains.is_meta else gains.double().tolist())

    def stages(self, model: SeparationModel, branches: Sequence[Branch]) -> list[StageSource]:
        from mrsep_deploy.export.families.demucs.stages import split

        return split(model, branches)

    def rewrite(self, model: SeparationModel, enabled: Collection[str]) -> None:
        from mrsep_deploy.export.families.demucs.rewrites import rewrite

        super().rewrite(model, enabled)
        rewrite(model, enabled)

    def applicable(self, model: SeparationModel) -> tuple[str, ...]:
        from mrsep_deploy.export.families.demucs.rewrites import applicable

        found = applicable(model)
        return tuple(name for name in self.rewrites if found.get(name, True))

    def float32(
        self, model: SeparationModel, stages: Sequence[Stage]
    ) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        from mrsep_deploy.export.families.demucs.float32 import float32_nodes

        return float32_nodes(model, stages)

    def shares(self, model: SeparationModel) -> tuple[FusionShares, ...]:
        return model.fusion_shares()

    def paper_tables(self) -> tuple[PaperTable, ...]:
        return paper_tables()

    def windows(self, variant: str, n_fft: Sequence[int]) -> dict[str, object]:
        if variant != "htdemucs":
            return super().windows(variant, n_fft)
        if len(n_fft) > 1:
            raise UsageError(f"htdemucs has one spectrogram, --nfft names {len(n_fft)}.")
        return {"nfft": n_fft[0]}
