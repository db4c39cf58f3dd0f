"""What a checkpoint's constructor arguments mean: one validated configuration for every family.

Argument names are those of the published constructors, because they are the file format. Defaults
are per family and match the published classes. Arguments that only steer training are read and
reported, not used; arguments that would change the output in a way no family here computes are
errors that name them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families.demucs.arguments import (
    require,
    shared_rules,
    sort_arguments,
    spectrogram_rules,
    typed,
)
from mrsep_deploy.export.families.demucs.layer_config import LayerConfig, layer_channels

TRAINING_ONLY = frozenset(
    ("emb_smooth", "dconv_init", "rescale", "t_dropout", "t_weight_decay", "t_lr", "t_max_positions",
     "t_sin_random_shift", "t_cape_mean_normalize", "t_cape_augment", "t_cape_glob_loc_scale", "t_mask_type",
     "t_mask_random_seed", "t_sparse_attn_window", "t_global_window", "t_sparsity", "t_auto_sparsity",
     "multi_freqs_depth", "t_stride")
)  # fmt: skip
"""Arguments without effect on what a trained model computes (given the values ``REQUIRED`` asks for)."""

REQUIRED: Mapping[str, tuple[object, ...]] = {
    "cac": (True,),
    "wiener_iters": (0,),
    "end_iters": (0,),
    "wiener_residual": (False,),
    "multi_freqs": (None, [], ()),
    "t_emb": ("sin",),
    "t_sparse_self_attn": (False,),
    "t_sparse_cross_attn": (False,),
}
"""Arguments with the only values the supported families compute. Another value changes the output."""


@dataclass(frozen=True)
class ModelConfig(LayerConfig):
    """Structure of one separation model."""

    bottom_channels: int = 0
    t_layers: int = 5
    t_hidden_scale: float = 4.0
    t_heads: int = 8
    t_norm_in: bool = True
    t_norm_in_group: bool = False
    t_group_norm: bool = False
    t_norm_first: bool = True
    t_norm_out: bool = True
    t_max_period: float = 10000.0
    t_layer_scale: bool = True
    t_gelu: bool = True
    t_weight_pos_embed: float = 1.0
    t_cross_first: bool = False
    t_channels: int = 64
    t_depth: int = 2
    t_kernel_size: int = 17
    use_train_segment: bool = True
    attention: str = "linear"
    fusion: str = "convolution"

    @property
    def merges(self) -> bool:
        return self.family == "htdemucs"

    @property
    def bottleneck_channels(self) -> int:
        """Channels of the innermost encoder layer of a spectrogram branch."""
        return layer_channels(self.channels, self.growth, self.depth)[-1]

    @property
    def transformer_channels(self) -> int:
        """Width of the transformer's tokens."""
        return self.bottom_channels or self.bottleneck_channels


_FIVE = (1024, 2048, 4096, 8192, 16384)
_NO_WAVEFORM = {"waveform": False, "t_layers": 0}
_FAMILY_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "htdemucs": {
        "channels": 48,
        "freq_emb": 0.2,
        "nfft_list": (4096,),
        "attention": "softmax",
        "fusion": "sum",
    },
    "htdemucs_n": {"fusion": "convolution"},
    "htdemucs_nn": {"fusion": "source"},
    "htdemucs_2nn": {
        "fusion": "source",
        "hop_divisor": 2,
        "norm_starts": 3,
        "nfft_list": (512, *_FIVE, 32768),
    },
    "htdemucs_nf": {
        "fusion": "convolution",
        "norm_starts": 3,
        "dconv_mode": 0,
        "nfft_list": _FIVE,
        **_NO_WAVEFORM,
    },
    "htdemucs_dnf": {"fusion": "unet", "channels": 16, "dconv_mode": 0, "nfft_list": _FIVE, **_NO_WAVEFORM},
    "mrhdemucs": {"fusion": "shared", **_NO_WAVEFORM},
}
VARIANTS = tuple(_FAMILY_DEFAULTS)

_NO_TRANSFORMER = frozenset({"htdemucs_nf", "htdemucs_dnf"})
_FIXED = frozenset({"family", "hop_divisor", "fusion"})
_UNET_ONLY = frozenset({"t_channels", "t_depth", "t_kernel_size"})


def _accepted(family: str) -> set[str]:
    """Constructor arguments with an effect, for one family."""
    names = {f.name for f in fields(ModelConfig)} - _FIXED
    if family != "mrhdemucs":
        names -= {"attention", "waveform"}
    if family != "htdemucs_dnf":
        names -= _UNET_ONLY
    if family in _NO_TRANSFORMER:
        names -= {n for n in names if n.startswith("t_") and n not in _UNET_ONLY}
        names -= {"bottom_channels", "time_stride"}
    if family == "htdemucs":
        names = (names - {"nfft_list"}) | {"nfft"}
    return names


def parse_config(
    family: str, args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[ModelConfig, list[str]]:
    """Turn a checkpoint's constructor call into a configuration.

    Args:
        family: one of ``VARIANTS``.
        args: positional arguments; only ``sources`` is ever given by position.
        kwargs: keyword arguments.

    Returns:
        The configuration, and the names of the arguments that only steered training.

    Raises:
        CheckpointError: an argument is unknown, of a wrong kind, or asks for what the family does not compute.
    """
    training = {*TRAINING_ONLY, *(["channels_time"] if family in _NO_TRANSFORMER else [])}
    used, ignored = sort_arguments(
        family, args, kwargs, accepted=_accepted(family), required=REQUIRED, training=training
    )
    config = typed(ModelConfig, family, {**_FAMILY_DEFAULTS[family], **used})
    _check(config)
    return config, ignored


def _check(c: ModelConfig) -> None:
    """Refuse structures that cannot be computed, before any module is made."""
    require(
        [
            *shared_rules(c),
            *spectrogram_rules(c),
            (0 <= c.t_layers <= 64 and c.t_heads >= 1, "0 to 64 transformer layers and 1 head or more"),
            (0 < c.t_hidden_scale <= 64, "a t_hidden_scale of up to 64"),
            (c.t_max_period > 0, "a positive t_max_period"),
            (0 <= c.bottom_channels <= 16384, "0 to 16384 bottom channels"),
            (c.attention in ("softmax", "linear"), "attention softmax or linear"),
            (1 <= c.t_channels <= 4096 and 1 <= c.t_depth <= 8, "a fusion U-Net of depth 1 to 8"),
            (c.t_kernel_size in range(1, 4098, 2), "an odd t_kernel_size to 4097"),
        ]
    )
    width = c.transformer_channels
    if c.t_layers and (width < 4 or width % c.t_heads or width % 4 or width * c.t_hidden_scale < 1):
        raise CheckpointError(
            f"a transformer of {width} channels does not divide into {c.t_heads} heads "
            "(and by 4 for its positions)"
        )
