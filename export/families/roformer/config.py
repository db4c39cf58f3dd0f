"""What the model section of a configuration means: one validated structure for both models.

Names are those of the published constructors, because they are the file format. Arguments without effect on what a
trained model computes are read and reported; variants that are not computed here are errors that name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.values import shown
from mrsep_deploy.export.families.roformer.bands import SIDE_BY_SIDE, Band, mel_bands, side_by_side

BS, MEL = "bs_roformer", "mel_band_roformer"

FIX = "Correct the configuration, or export a checkpoint of a supported model."

WITHOUT_EFFECT = frozenset(
    (
        *("attn_dropout", "ff_dropout", "flash_attn", "sage_attention", "use_torch_checkpoint"),
        *("dim_freqs_in", "match_input_audio_length", "multi_stft_resolution_loss_weight"),
        *("multi_stft_resolutions_window_sizes", "multi_stft_hop_size", "multi_stft_normalized"),
    )
)
"""Arguments that a trained model computes the same with, whatever they are."""

VARIANTS_OFF: Mapping[str, tuple[object, ...]] = {
    "linear_transformer_depth": (0,),
    "use_pope": (False,),
    "num_residual_streams": (1,),
    "use_value_residual_learning": (False,),
    "use_shared_bias": (False,),
    "skip_final_norm": (False,),
    "stft_window_fn": (None,),
    "multi_stft_window_fn": (None,),
}
"""Arguments of variants, with the values that leave them off."""

MAX_MODULES = 4096
"""Transformer blocks, and bands times stems, of one model."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class RoformerConfig:
    """Structure of a model, and what it separates.

    Attributes:
        kind: ``bs_roformer`` or ``mel_band_roformer``.
        sources: what comes out, in order.
        stems: how many masks the checkpoint has weights for.
        target: which of the masks is used, alone; the other source is then the mix less it. None: all.
        freqs_per_bands: widths of the bands of a BS-RoFormer, in bins.
        num_bands, filter_bank_rate: bands of a Mel-Band RoFormer, and the rate in Hz that they are laid out for.
        mask_layers: linear layers in a row for each mask.
        segment_samples: of a chunk.
        num_overlap: chunks that each sample of a song is in.
        normalize: whether a song is normalised first.
    """

    kind: str
    sources: tuple[str, ...]
    dim: int
    depth: int
    audio_channels: int
    stems: int
    target: int | None
    time_transformer_depth: int
    freq_transformer_depth: int
    heads: int
    dim_head: int
    freqs_per_bands: tuple[int, ...]
    num_bands: int
    filter_bank_rate: int
    n_fft: int
    hop: int
    normalized: bool
    zero_dc: bool
    skip_connection: bool
    mask_layers: int
    mlp_expansion_factor: int
    sample_rate: int
    segment_samples: int
    num_overlap: int
    normalize: bool

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def used_stems(self) -> tuple[int, ...]:
        """The masks that are computed."""
        return tuple(range(self.stems)) if self.target is None else (self.target,)

    @property
    def complement(self) -> bool:
        """Whether the last source is the mix less the first."""
        return len(self.sources) > len(self.used_stems)

    @cached_property
    def bands(self) -> tuple[Band, ...]:
        if self.kind == BS:
            return side_by_side(self.freqs_per_bands, self.bins)
        return mel_bands(self.num_bands, self.n_fft, self.filter_bank_rate)


def parse_config(
    kind: str, args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[RoformerConfig, list[str]]:
    """The configuration that constructor arguments ask for, and the names of those without effect.

    Raises:
        CheckpointError: an argument is unknown, impossible, or asks for a variant that is not computed here.
    """
    if args:
        raise CheckpointError(f"{kind} takes named arguments only, found {len(args)} others", FIX)
    given, mel = _Arguments(kwargs), kind == MEL
    n_fft, sources = given.whole("stft_n_fft", 2048, 16, 2**17, even=True), given.names("sources")
    target = given.one_of("target", (None, *sources), None)
    stems = given.whole("num_stems", 1 if target else len(sources), 1, 64)
    config = RoformerConfig(
        kind=kind,
        sources=sources,
        dim=given.whole("dim", 384 if mel else 512, 1, 16_384),
        depth=given.whole("depth", 6 if mel else 12, 1, 256),
        audio_channels=2 if given.flag("stereo", True) else 1,
        stems=stems,
        target=None,
        time_transformer_depth=given.whole("time_transformer_depth", 2, 1, 64),
        freq_transformer_depth=given.whole("freq_transformer_depth", 2, 1, 64),
        heads=given.whole("heads", 8, 1, 1024),
        dim_head=given.whole("dim_head", 64, 2, 4096, even=True),
        freqs_per_bands=() if mel else given.widths("freqs_per_bands", SIDE_BY_SIDE),
        num_bands=given.whole("num_bands", 60, 2, 1024) if mel else 0,
        filter_bank_rate=given.whole("filter_bank_rate", 44_100, 1000, 768_000) if mel else 0,
        n_fft=n_fft,
        hop=given.whole("stft_hop_length", 512, 1, n_fft // 2),
        normalized=given.flag("stft_normalized", False),
        zero_dc=given.flag("zero_dc", True),
        skip_connection=given.flag("skip_connection", False),
        mask_layers=given.whole("mask_layers", 2, 1, 16),
        mlp_expansion_factor=given.whole("mlp_expansion_factor", 4, 1, 64),
        sample_rate=given.whole("sample_rate", 44_100, 1000, 768_000),
        segment_samples=given.whole("chunk_size", 352_800, n_fft, 2**26),
        num_overlap=given.whole("num_overlap", 2, 1, 50),
        normalize=given.flag("normalize", False),
    )
    given.one_of("stft_win_length", (n_fft,), n_fft)  # a shorter window is another transform
    ignored = given.leftovers()
    _require_bounded(config)
    return _with_target(config, target), ignored


def _require_bounded(config: RoformerConfig) -> None:
    blocks = config.depth * (config.time_transformer_depth + config.freq_transformer_depth)
    masks = config.stems * len(config.bands)
    for what, found in (("transformer blocks", blocks), ("bands in all stems", masks)):
        if found > MAX_MODULES:
            raise CheckpointError(f"the model has {found:,} {what}, expected at most {MAX_MODULES:,}", FIX)


def _with_target(config: RoformerConfig, target: str | None) -> RoformerConfig:
    """Sources as they come out: all, or the target and, where it has a name, the other one."""
    sources, stems = config.sources, config.stems
    if target is None:
        if stems != len(sources):
            raise CheckpointError(
                f"num_stems is {stems} and there are {len(sources)} sources ({', '.join(map(shown, sources))}), "
                "expected as many",
                "Correct num_stems, training.instruments or training.target_instrument.",
            )
        return config
    if stems not in (1, len(sources)):
        raise CheckpointError(
            f"num_stems is {stems} for the target {shown(target)}, expected 1 or {len(sources)}", FIX
        )
    others = [name for name in sources if name != target]
    index = sources.index(target) if stems > 1 else 0
    kept = (target, *others) if len(others) == 1 else (target,)
    return replace(config, sources=kept, target=index)


class _Arguments:
    """Constructor arguments, each checked as it is read."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self.given, self.read = given, set[str]()

    def whole(self, name: str, default: int, least: int, most: int, even: bool = False) -> int:
        def fits(value: object) -> bool:
            return type(value) is int and least <= value <= most and not (even and value % 2)

        kind = "an even number" if even else "a whole number"
        return self._value(name, default, fits, f"{kind} from {least:,} to {most:,}")

    def flag(self, name: str, default: bool) -> bool:
        return self._value(name, default, lambda value: isinstance(value, bool), "true or false")

    def one_of(self, name: str, values: Sequence[Item], default: Item) -> Item:
        words = " or ".join(shown(value) for value in values)
        return self._value(name, default, lambda value: value in values, words)

    def names(self, name: str) -> tuple[str, ...]:
        def fits(value: object) -> bool:
            if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
                return False
            return 1 <= len(set(value)) == len(value) <= 64

        return tuple(self._value(name, (), fits, "a list of 1 to 64 different names"))

    def widths(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        def fits(value: object) -> bool:
            whole = isinstance(value, (list, tuple)) and all(type(each) is int and each > 0 for each in value)
            return whole and 2 <= len(value) <= 1024  # type: ignore[arg-type]

        return tuple(self._value(name, default, fits, "a list of 2 to 1,024 widths in bins"))

    def leftovers(self) -> list[str]:
        """Names of the arguments without effect.

        Raises:
            CheckpointError: another one is there that has not been read.
        """
        ignored = []
        for name in (name for name in self.given if name not in self.read):
            off = VARIANTS_OFF.get(name)
            if off is not None and self.given[name] not in off:
                raise CheckpointError(
                    f"{name} is {shown(self.given[name])}: this variant is not supported, expected {shown(off[0])}",
                    FIX,
                )
            if off is None and name not in WITHOUT_EFFECT:
                raise CheckpointError(f"unknown argument {shown(name)}: a variant that is not supported", FIX)
            ignored.append(name)
        return ignored

    def _value(self, name: str, default: Item, fits: Callable[[object], bool], expected: str) -> Item:
        self.read.add(name)
        value = self.given.get(name, default)
        if not fits(value):
            raise CheckpointError(f"{name} is {shown(value)}, expected {expected}", FIX)
        return value  # type: ignore[return-value]
