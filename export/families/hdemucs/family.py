"""The family of HDemucs as one object; see :class:`mrsep_deploy.export.families.family.Family`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from mrsep_deploy.bundle.manifest import Application, Branch, Stage
from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.families.family import (
    MODELS_TABLE,
    Audio,
    Family,
    PaperModel,
    PaperTable,
    StageSource,
)
from mrsep_deploy.export.families.hdemucs.config import (
    HYBRID,
    WAVEFORM,
    HybridConfig,
    WaveformConfig,
    parse_hybrid,
    parse_waveform,
)

if TYPE_CHECKING:
    from mrsep_deploy.export.families.hdemucs.hybrid import HDemucs as Hybrid
    from mrsep_deploy.export.families.hdemucs.waveform import Demucs as Waveform

Config = HybridConfig | WaveformConfig


class HDemucs(Family):
    """``HDemucs`` and ``Demucs`` of version 3 (Défossez, "Hybrid Spectrogram and Waveform Source Separation", 2021)."""

    name: ClassVar[str] = "hdemucs"
    variants: ClassVar[tuple[str, ...]] = (HYBRID, WAVEFORM)
    classes: ClassVar[Mapping[str, str]] = {
        "demucs.hdemucs.HDemucs": HYBRID,
        "demucs.demucs.Demucs": WAVEFORM,
    }
    any_segment: ClassVar[bool] = True
    rewrites: ClassVar[Mapping[str, str]] = {
        "dconv": "DConv as 2-D convolutions, its second norm and layer scale folded into the pointwise one",
        "glu": "GLU as two convolutions instead of one and a split",
        "crop": "the crop after a transposed convolution as its padding",
        "embedding": "the frequency embedding with its gain and scale as one constant",
    }

    def config(
        self, variant: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[Config, list[str]]:
        return parse_hybrid(args, kwargs) if variant == HYBRID else parse_waveform(args, kwargs)

    def model(self, config: Config) -> Hybrid | Waveform:
        from mrsep_deploy.export.families.hdemucs.hybrid import HDemucs as Hybrid
        from mrsep_deploy.export.families.hdemucs.waveform import Demucs as Waveform

        return (Hybrid(config) if isinstance(config, HybridConfig) else Waveform(config)).eval()

    def audio(self, config: Config) -> Audio:
        application = Application()
        if isinstance(config, WaveformConfig):
            application = Application(context=config.segment_samples - config.kept_samples)
        return Audio(
            config.sources, config.samplerate, config.audio_channels, config.segment_samples, application
        )

    def branches(self, model: Hybrid | Waveform) -> tuple[Branch, ...]:
        from mrsep_deploy.export.families.hdemucs.stages import hybrid_branches, waveform_branches

        config = model.config
        return hybrid_branches(config) if isinstance(config, HybridConfig) else waveform_branches(config)

    def stages(self, model: Hybrid | Waveform, branches: Sequence[Branch]) -> list[StageSource]:
        from mrsep_deploy.export.families.hdemucs.hybrid import HDemucs as Hybrid
        from mrsep_deploy.export.families.hdemucs.stages import split_hybrid, split_waveform

        return split_hybrid(model, branches) if isinstance(model, Hybrid) else split_waveform(model, branches)

    def rewrite(self, model: Hybrid | Waveform, enabled: Collection[str]) -> None:
        from mrsep_deploy.export.families.hdemucs.rewrites import rewrite

        super().rewrite(model, enabled)
        rewrite(model, enabled)

    def applicable(self, model: Hybrid | Waveform) -> tuple[str, ...]:
        config = model.config
        hybrid = config if isinstance(config, HybridConfig) else None
        found = {"embedding": hybrid is not None and hybrid.freq_emb != 0, "crop": hybrid is not None}
        return tuple(name for name in self.rewrites if found.get(name, True))

    def float32(
        self, model: Hybrid | Waveform, stages: Sequence[Stage]
    ) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        from mrsep_deploy.export.families.hdemucs.float32 import float32_nodes

        return float32_nodes(model, stages)

    def paper_tables(self) -> tuple[PaperTable, ...]:
        """What the paper compares its models with, with the published defaults on the others' 10 s."""
        model = PaperModel("hdemucs", HYBRID, {"segment": 10})
        return (PaperTable(MODELS_TABLE, "model", (("HDemucs", model),)),)

    def windows(self, variant: str, n_fft: Sequence[int]) -> dict[str, object]:
        if variant == WAVEFORM or len(n_fft) > 1:
            held = "no spectrogram" if variant == WAVEFORM else "one spectrogram"
            raise UsageError(f"{variant} has {held}, --nfft names {len(n_fft)}.")
        return {"nfft": n_fft[0]}
