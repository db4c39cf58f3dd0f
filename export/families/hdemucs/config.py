"""What the constructor arguments of ``HDemucs`` and ``Demucs`` mean: one validated configuration for each.

Argument names and defaults are those of the published constructors.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.values import shown
from mrsep_deploy.export.families.demucs.arguments import (
    list_of,
    require,
    shared_rules,
    sort_arguments,
    spectrogram_rules,
    typed,
)
from mrsep_deploy.export.families.demucs.layer_config import HEADS, MAX_WIDTH, LayerConfig, layer_channels

HYBRID, WAVEFORM = "hdemucs", "demucs_time"
"""Names of the variants."""

TRAINING_ONLY = frozenset(("emb_smooth", "dconv_init", "rescale"))
"""Arguments without effect on what a trained model computes."""

REQUIRED: Mapping[str, tuple[object, ...]] = {
    "hybrid": (True,),
    "wiener_iters": (0,),
    "end_iters": (0,),
    "wiener_residual": (False,),
}
"""Arguments of ``HDemucs`` with the only values that are computed here, those of all published models."""


@dataclass(frozen=True)
class HybridConfig(LayerConfig):
    """Structure of an ``HDemucs``: a spectrogram and a waveform branch that meet where one bin is left.

    Attributes:
        cac: whether spectrograms are complex, as channels; else they are magnitudes, with the mix's phase at the end.
        hybrid_old: whether a segment has zeros around it, and its synthesis is early by what lies before it.
        multi_freqs: where the outermost spectrogram layers are cut into bands, as shares of the bins.
        multi_freqs_depth: how many layers are.
        dconv_attn, dconv_lstm: the first layers whose DConv has a local attention, an LSTM.
    """

    channels: int = 48
    nfft_list: tuple[int, ...] = (4096,)
    depth: int = 6
    freq_emb: float = 0.2
    dconv_comp: float = 4
    segment: Fraction | float | int = 40
    cac: bool = True
    hybrid_old: bool = False
    multi_freqs: tuple[float, ...] = ()
    multi_freqs_depth: int = 2
    dconv_attn: int = 4
    dconv_lstm: int = 4

    @property
    def merges(self) -> bool:
        return True

    @property
    def numbers(self) -> int:
        return 2 if self.cac else 1

    @property
    def recurrent_from(self) -> int:
        return self.dconv_lstm

    @property
    def attentive_from(self) -> int:
        return self.dconv_attn

    @property
    def banded_layers(self) -> int:
        return self.multi_freqs_depth if self.multi_freqs else 0


@dataclass(frozen=True)
class WaveformConfig:
    """Structure of a ``Demucs``: one branch along time. ``segment`` is seconds.

    Attributes:
        lstm_layers: layers of the LSTM at the bottom.
        gelu: whether convolutions are followed by a GELU; else by a ReLU.
        glu: whether pointwise convolutions are followed by a GLU; else by a ReLU.
        normalize: whether the segment's level is taken out first.
        resample: whether the layers run at twice the sample rate.
    """

    family: str
    sources: tuple[str, ...]
    audio_channels: int = 2
    channels: int = 64
    growth: float = 2.0
    depth: int = 6
    rewrite: bool = True
    lstm_layers: int = 0
    kernel_size: int = 8
    stride: int = 4
    context: int = 1
    gelu: bool = True
    glu: bool = True
    norm_starts: int = 4
    norm_groups: int = 4
    dconv_mode: int = 1
    dconv_depth: int = 2
    dconv_comp: float = 4
    dconv_attn: int = 4
    dconv_lstm: int = 4
    normalize: bool = True
    resample: bool = True
    samplerate: int = 44100
    segment: Fraction | float | int = 40

    @property
    def kept_samples(self) -> int:
        """Samples of a segment's stems."""
        return int(self.segment * self.samplerate)

    @property
    def segment_samples(self) -> int:
        """Samples that the model takes for them: the next length at which its layers leave nothing over."""
        return valid_length(self, self.kept_samples)


def valid_length(config: WaveformConfig, length: int) -> int:
    """The shortest input, of at least ``length`` samples, whose output is as long as itself."""
    length = 2 * length if config.resample else length
    for _ in range(config.depth):
        length = max(1, -(-(length - config.kernel_size) // config.stride) + 1)
    for _ in range(config.depth):
        length = (length - 1) * config.stride + config.kernel_size
    return -(-length // 2) if config.resample else length


def parse_hybrid(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[HybridConfig, list[str]]:
    """The configuration that the arguments of ``HDemucs`` ask for, and those that only steered training.

    Raises:
        CheckpointError: an argument is unknown, of a wrong kind, or asks for what is not computed here.
    """
    fixed = {"family", "sources", "nfft_list", "hop_divisor", "waveform", "multi_freqs"}
    accepted = {f.name for f in fields(HybridConfig)} - fixed | {"sources", "nfft", "multi_freqs"}
    used, ignored = sort_arguments(
        HYBRID, args, kwargs, accepted=accepted, required=REQUIRED, training=TRAINING_ONLY
    )
    ratios = _ratios(used.pop("multi_freqs", None))
    config = replace(typed(HybridConfig, HYBRID, used), multi_freqs=ratios)
    require([*shared_rules(config), *spectrogram_rules(config), *_inside(config)])
    require(
        [
            (config.multi_freqs_depth >= 0, "a multi_freqs_depth of 0 or more"),
            (config.banded_layers <= config.norm_starts, "no norm in the layers that multi_freqs cuts"),
        ]
    )
    return config, ignored


def parse_waveform(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[WaveformConfig, list[str]]:
    """The configuration that the arguments of ``Demucs`` ask for, and those that only steered training.

    Raises:
        CheckpointError: an argument is unknown, of a wrong kind, or asks for what is not computed here.
    """
    accepted = {f.name for f in fields(WaveformConfig)} - {"family"}
    used, ignored = sort_arguments(
        WAVEFORM, args, kwargs, accepted=accepted, required={}, training=TRAINING_ONLY
    )
    config = typed(WaveformConfig, WAVEFORM, used)
    require([*shared_rules(config), *_inside(config), (0 <= config.lstm_layers <= 16, "0 to 16 lstm_layers")])
    for index, width in enumerate(layer_channels(config.channels, config.growth, config.depth)):
        hidden = int(width / config.dconv_comp)
        attentive = config.dconv_mode and config.dconv_depth and index >= config.dconv_attn
        if not 1 <= width <= MAX_WIDTH or not 1 <= hidden <= MAX_WIDTH:
            raise CheckpointError(f"channels, growth and dconv_comp give layer {index + 1} {width} channels")
        if attentive and hidden % HEADS:
            raise CheckpointError(
                f"the {hidden} channels in the DConv of layer {index + 1} do not divide into {HEADS} heads"
            )
        if index >= config.norm_starts and width % config.norm_groups:
            raise CheckpointError(
                f"norm_groups={config.norm_groups} does not divide the {width} channels of layer {index + 1}"
            )
    return config, ignored


def _inside(config: HybridConfig | WaveformConfig) -> list[tuple[bool, str]]:
    return [(min(config.dconv_attn, config.dconv_lstm) >= 0, "a dconv_attn and a dconv_lstm of 0 or more")]


def _ratios(value: object) -> tuple[float, ...]:
    """Where bands end, as shares of all bins, rising."""
    if value in (None, [], ()):
        return ()
    found = list_of("multi_freqs", value, "number", lambda v: type(v) in (int, float))
    ends = (0.0, *map(float, found), 1.0)
    if len(found) > 15 or not all(a < b for a, b in itertools.pairwise(ends)):
        raise CheckpointError(
            f"multi_freqs is {shown(value)}, expected at most 15 rising numbers between 0 and 1"
        )
    return tuple(map(float, found))
