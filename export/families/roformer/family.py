"""The family of RoFormers as one object; see :class:`mrsep_deploy.export.families.family.Family`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from mrsep_deploy.bundle.manifest import Application, Branch, Stage
from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.checkpoint.config_file import ConfigFile
from mrsep_deploy.export.families.family import (
    MODELS_TABLE,
    Audio,
    Family,
    PaperModel,
    PaperTable,
    StageSource,
)
from mrsep_deploy.export.families.roformer.config import BS, MEL, RoformerConfig, parse_config

if TYPE_CHECKING:
    from torch import Tensor

    from mrsep_deploy.export.families.roformer.model import Roformer


class RoFormer(Family):
    """BS-RoFormer (Lu et al. 2023) and Mel-Band RoFormer (Wang et al. 2023)."""

    name: ClassVar[str] = "roformer"
    variants: ClassVar[tuple[str, ...]] = (BS, MEL)
    rewrites: ClassVar[Mapping[str, str]] = {
        "bands": "bands of one width as one batched matrix product, overlapping masks averaged by gathers",
        "rotation": "rotation by constant tables, halves instead of pairs, queries, keys and values from three layers",
        "gains": "the gains of norms folded into the linear layers behind them",
    }
    opset: ClassVar[int] = 23

    def config(
        self, variant: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[RoformerConfig, list[str]]:
        return parse_config(variant, args, kwargs)

    def from_file(self, file: ConfigFile, names: Collection[str]) -> tuple[str, dict[str, object]] | None:
        from mrsep_deploy.export.families.roformer.toolkit import arguments

        return arguments(file, names)

    def check_state(self, config: RoformerConfig, state: Mapping[str, Tensor]) -> None:
        from mrsep_deploy.export.families.roformer.toolkit import require_rotations

        require_rotations(config, state)

    def model(self, config: RoformerConfig) -> Roformer:
        from mrsep_deploy.export.families.roformer.model import Roformer

        return Roformer(config).eval()

    def audio(self, config: RoformerConfig) -> Audio:
        samples = config.segment_samples
        application = Application(
            normalise="song" if config.normalize else "none",
            weights="linear",
            fade=max(samples // 10, 1),
            overlap=overlap_of(samples, config.num_overlap),
            edges="reflected",
            last="filled",
        )
        return Audio(config.sources, config.sample_rate, config.audio_channels, samples, application)

    def branches(self, model: Roformer) -> tuple[Branch, ...]:
        from mrsep_deploy.export.families.roformer.stages import make_branches

        return make_branches(model.config)

    def stages(self, model: Roformer, branches: Sequence[Branch]) -> list[StageSource]:
        from mrsep_deploy.export.families.roformer.stages import split

        return split(model, branches)

    def rewrite(self, model: Roformer, enabled: Collection[str]) -> None:
        from mrsep_deploy.export.families.roformer.rewrites import rewrite

        super().rewrite(model, enabled)
        rewrite(model, enabled)

    def float32(
        self, model: Roformer, stages: Sequence[Stage]
    ) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        from mrsep_deploy.export.families.roformer.float32 import float32_nodes

        return float32_nodes(model, stages)

    def paper_tables(self) -> tuple[PaperTable, ...]:
        """What the paper compares its models with: the size that is most used, one source, the others' 10 s."""
        arguments = {
            "target": "vocals",
            "sources": ["vocals", "other"],
            "time_transformer_depth": 1,
            "freq_transformer_depth": 1,
            "stft_hop_length": 441,
            "chunk_size": 441000,
        }
        model = PaperModel("bs_roformer", BS, arguments)
        return (PaperTable(MODELS_TABLE, "model", (("BS-RoFormer, 512 x 12, vocals", model),)),)

    def windows(self, variant: str, n_fft: Sequence[int]) -> dict[str, object]:
        if len(n_fft) > 1:
            raise UsageError(f"{variant} has one spectrogram, --nfft names {len(n_fft)}.")
        return {"stft_n_fft": n_fft[0]}


def overlap_of(segment: int, chunks: int) -> float:
    """The share of a segment that the next one repeats, for steps of ``segment // chunks`` samples exactly.

    A share is rounded, and ``int((1 - share) * segment)`` down: it is made a little smaller where that loses a sample.
    """
    step = segment // chunks
    overlap = 1 - step / segment
    return overlap if int((1 - overlap) * segment) == step else 1 - (step + 0.5) / segment
