"""What a checkpoint's constructor arguments mean: one validated configuration for every family.

Argument names are those of the published constructors, because they are the file format. Defaults
are per family and match the published classes. Arguments that only steer training are read and
reported, not used; arguments that would change the output in a way no family here computes are
errors that name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.values import shown

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

LARGEST = 1e9
"""Arguments that are not whole numbers stay below this in magnitude (``t_max_period`` is 1e4)."""


@dataclass(frozen=True)
class ModelConfig:
    """Structure of one separation model. Lengths are samples, ``segment`` is seconds."""

    family: str
    sources: tuple[str, ...]
    audio_channels: int = 2
    channels: int = 24
    channels_time: int | None = None
    growth: float = 2
    nfft_list: tuple[int, ...] = (2048, 4096, 8192)
    hop_divisor: int = 4
    depth: int = 4
    rewrite: bool = True
    freq_emb: float = 0.3
    emb_scale: float = 10
    kernel_size: int = 8
    stride: int = 4
    time_stride: int = 2
    context: int = 1
    context_enc: int = 0
    norm_starts: int = 4
    norm_groups: int = 4
    dconv_mode: int = 1
    dconv_depth: int = 2
    dconv_comp: float = 8
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
    samplerate: int = 44100
    segment: Fraction | float | int = 10
    use_train_segment: bool = True
    attention: str = "linear"
    fusion: str = "convolution"
    waveform: bool = True

    @property
    def segment_samples(self) -> int:
        """Length of the input in samples, as the published ``valid_length`` rounds it."""
        return int(self.segment * self.samplerate)

    @property
    def hops(self) -> tuple[int, ...]:
        """Hop of each resolution in samples."""
        return tuple(n // self.hop_divisor for n in self.nfft_list)

    @property
    def bottleneck_channels(self) -> int:
        """Channels of the innermost encoder layer of a spectrogram branch."""
        return layer_channels(self.channels, self.growth, self.depth)[-1]

    @property
    def transformer_channels(self) -> int:
        """Width of the transformer's tokens."""
        return self.bottom_channels or self.bottleneck_channels


def layer_channels(first: int, growth: float, depth: int) -> list[int]:
    """Output channels of the encoder layers, outermost first."""
    channels = [first]
    for _ in range(depth - 1):
        channels.append(int(growth * channels[-1]))
    return channels


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
    if len(args) > 1:
        raise CheckpointError(
            f"the checkpoint gives {len(args)} constructor arguments by position, expected at most 1"
        )
    if args and "sources" in kwargs:
        raise CheckpointError("the checkpoint gives its sources twice, by position and by name")
    given = {**kwargs, "sources": args[0]} if args else kwargs
    accepted = _accepted(family)
    used: dict[str, object] = dict(_FAMILY_DEFAULTS[family])
    ignored: list[str] = []
    unknown: list[str] = []
    for name, value in given.items():
        if name in REQUIRED:
            if value not in REQUIRED[name]:
                raise CheckpointError(
                    f"the checkpoint was made with {name}={shown(value)}; "
                    f"only {name}={REQUIRED[name][0]!r} is supported"
                )
        elif name in accepted:
            used["nfft_list" if name == "nfft" else name] = (value,) if name == "nfft" else value
        elif name in TRAINING_ONLY or (family in _NO_TRANSFORMER and name == "channels_time"):
            ignored.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"the checkpoint gives constructor arguments that {family} does not know: "
            + ", ".join(sorted(shown(name) for name in unknown))
        )
    config = _typed(family, used)
    _check(config)
    return config, sorted(ignored)


def _typed(family: str, used: Mapping[str, object]) -> ModelConfig:
    """Check the kind of every value against the kind of its default."""
    if "sources" not in used:
        raise CheckpointError("the checkpoint does not name its sources")
    sources = _list_of("sources", used["sources"], "name", lambda v: isinstance(v, str) and v != "")
    template = ModelConfig(family=family, sources=sources)
    others = {name: value for name, value in used.items() if name != "sources"}
    typed: Any = {name: _coerce(name, value, getattr(template, name)) for name, value in others.items()}
    return replace(template, **typed)


def _list_of(name: str, value: object, kind: str, fits: Callable[[object], bool]) -> tuple[Any, ...]:
    """The entries of an argument that is a list of at least one ``kind``, all of which fit."""

    def quoted(found: object) -> str:
        return repr(shown(found)) if isinstance(found, str) else shown(found)

    if not isinstance(value, (list, tuple)):
        raise CheckpointError(f"{name} is {quoted(value)}, expected a list of {kind}s")
    if not value:
        raise CheckpointError(f"{name} is an empty list, expected at least one {kind}")
    for index, entry in enumerate(value):
        if not fits(entry):
            raise CheckpointError(f"{name}[{index}] is {quoted(entry)}, expected a {kind}")
    return tuple(value)


def _coerce(name: str, value: object, default: object) -> object:
    if name == "nfft_list":
        return _list_of(name, value, "whole number", lambda v: type(v) is int)
    if name == "channels_time" and value is None:
        return None
    if isinstance(default, bool):
        # Some published switches are counts underneath (groups of a norm): only 0 and 1 are switches.
        if isinstance(value, (bool, int)) and value in (0, 1):
            return bool(value)
    elif isinstance(default, str):
        if isinstance(value, str):
            return value
    elif isinstance(value, bool):
        pass
    elif name == "segment" or isinstance(default, float) or name in ("growth", "emb_scale", "dconv_comp"):
        if isinstance(value, Fraction) and name != "segment":
            pass
        elif isinstance(value, (int, float, Fraction)) and -LARGEST < value < LARGEST:  # NaN is not
            return value
    elif isinstance(value, int):
        return int(value)
    raise CheckpointError(
        f"{name} has an impossible value, {shown(value)} (such as the default {default!r} was expected)"
    )


def _check(c: ModelConfig) -> None:
    """Refuse structures that cannot be computed, before any module is made."""
    rules = [
        (len(set(c.sources)) == len(c.sources), "sources with distinct names"),
        (len(c.sources) <= 64, "1 to 64 sources"),
        (1 <= c.audio_channels <= 64, "1 to 64 audio channels"),
        (1 <= c.channels <= 4096, "1 to 4096 channels"),
        (c.channels_time is None or 1 <= c.channels_time <= 4096, "1 to 4096 time channels"),
        (1 <= c.depth <= 8, "a depth of 1 to 8"),
        (1 <= len(c.nfft_list) <= 16, "1 to 16 resolutions"),
        (all(n in range(64, 65537, 16) for n in c.nfft_list), "nfft of 64 to 65536 in steps of 16"),
        (1 <= c.samplerate <= 768_000, "a sample rate of 1 to 768000 Hz"),
        (0 < c.segment <= 600 and c.segment_samples > 1, "a segment of 2 samples to 600 s"),
        (1 <= c.kernel_size <= 1024, "a kernel size of 1 to 1024"),
        (1 <= c.stride <= c.kernel_size, "a stride of 1 to the kernel size"),
        (1 <= c.time_stride <= 64, "a time_stride of 1 to 64"),
        (0 <= c.context <= 16 and 0 <= c.context_enc <= 16, "contexts of 0 to 16"),
        (1 <= c.norm_groups <= 4096 and c.norm_starts >= 0, "1 to 4096 norm_groups"),
        (c.dconv_comp > 0 and abs(c.dconv_depth) <= 16, "a positive dconv_comp and a dconv_depth to 16"),
        (0 <= c.dconv_mode <= 3, "a dconv_mode of 0 to 3"),
        (0 <= c.t_layers <= 64 and c.t_heads >= 1, "0 to 64 transformer layers and 1 head or more"),
        (0 < c.t_hidden_scale <= 64, "a t_hidden_scale of up to 64"),
        (c.t_max_period > 0, "a positive t_max_period"),
        (0 <= c.bottom_channels <= 16384, "0 to 16384 bottom channels"),
        (0 < c.growth <= 64, "a growth of up to 64"),
        (c.attention in ("softmax", "linear"), "attention softmax or linear"),
        (1 <= c.t_channels <= 4096 and 1 <= c.t_depth <= 8, "a fusion U-Net of depth 1 to 8"),
        (c.t_kernel_size in range(1, 4098, 2), "an odd t_kernel_size to 4097"),
    ]
    for holds, expected in rules:
        if not holds:
            raise CheckpointError(f"the constructor arguments make no model: expected {expected}")
    width = c.transformer_channels
    if c.t_layers and (width < 4 or width % c.t_heads or width % 4 or width * c.t_hidden_scale < 1):
        raise CheckpointError(
            f"a transformer of {width} channels does not divide into {c.t_heads} heads "
            "(and by 4 for its positions)"
        )
