"""Reading a checkpoint's constructor arguments: kinds are those of the defaults, and errors name what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeVar

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.values import shown
from mrsep_deploy.export.families.demucs.layer_config import LayerConfig

LARGEST = 1e9
"""Arguments that are not whole numbers stay below this in magnitude (``t_max_period`` is 1e4)."""

Config = TypeVar("Config")


def sort_arguments(
    variant: str,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    accepted: Collection[str],
    required: Mapping[str, tuple[object, ...]],
    training: Collection[str],
) -> tuple[dict[str, object], list[str]]:
    """The arguments with an effect, and the names of those that only steered training.

    Args:
        variant: which model, for errors.
        args: positional arguments; only ``sources`` is ever given by position.
        kwargs: keyword arguments.
        accepted: names of the arguments with an effect.
        required: arguments with the only values that are supported.
        training: names of the arguments without effect on a trained model.

    Raises:
        CheckpointError: an argument is unknown, or asks for what is not supported.
    """
    if len(args) > 1:
        raise CheckpointError(
            f"the checkpoint gives {len(args)} constructor arguments by position, expected at most 1"
        )
    if args and "sources" in kwargs:
        raise CheckpointError("the checkpoint gives its sources twice, by position and by name")
    given = {**kwargs, "sources": args[0]} if args else kwargs
    used: dict[str, object] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for name, value in given.items():
        if name in required:
            if value not in required[name]:
                raise CheckpointError(
                    f"the checkpoint was made with {name}={shown(value)}; "
                    f"only {name}={required[name][0]!r} is supported"
                )
        elif name in accepted:
            used["nfft_list" if name == "nfft" else name] = (value,) if name == "nfft" else value
        elif name in training:
            ignored.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"the checkpoint gives constructor arguments that {variant} does not know: "
            + ", ".join(sorted(shown(name) for name in unknown))
        )
    return used, sorted(ignored)


def typed(made: Callable[..., Config], variant: str, used: Mapping[str, object]) -> Config:
    """A configuration of these arguments, each of the kind of its default.

    Args:
        made: a dataclass with the fields ``family`` and ``sources``, and defaults for all others.
        variant: its ``family``.
        used: values by name.

    Raises:
        CheckpointError: a value is of another kind.
    """
    if "sources" not in used:
        raise CheckpointError("the checkpoint does not name its sources")
    sources = list_of("sources", used["sources"], "name", lambda v: isinstance(v, str) and v != "")
    template: Any = made(family=variant, sources=sources)
    others = {name: value for name, value in used.items() if name != "sources"}
    values: Any = {name: _coerce(name, value, getattr(template, name)) for name, value in others.items()}
    changed: Config = replace(template, **values)
    return changed


def list_of(name: str, value: object, kind: str, fits: Callable[[object], bool]) -> tuple[Any, ...]:
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
        return list_of(name, value, "whole number", lambda v: type(v) is int)
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


Rules = Iterable[tuple[bool, str]]
"""Whether each rule holds, and what it expects."""


def shared_rules(c: Any) -> list[tuple[bool, str]]:
    """Rules for the arguments that every Demucs has."""
    return [
        (len(set(c.sources)) == len(c.sources), "sources with distinct names"),
        (len(c.sources) <= 64, "1 to 64 sources"),
        (1 <= c.audio_channels <= 64, "1 to 64 audio channels"),
        (1 <= c.channels <= 4096, "1 to 4096 channels"),
        (1 <= c.depth <= 8, "a depth of 1 to 8"),
        (1 <= c.samplerate <= 768_000, "a sample rate of 1 to 768000 Hz"),
        (0 < c.segment <= 600 and int(c.segment * c.samplerate) > 1, "a segment of 2 samples to 600 s"),
        (1 <= c.kernel_size <= 1024, "a kernel size of 1 to 1024"),
        (1 <= c.stride <= c.kernel_size, "a stride of 1 to the kernel size"),
        (0 <= c.context <= 16, "contexts of 0 to 16"),
        (1 <= c.norm_groups <= 4096 and c.norm_starts >= 0, "1 to 4096 norm_groups"),
        (c.dconv_comp > 0 and abs(c.dconv_depth) <= 16, "a positive dconv_comp and a dconv_depth to 16"),
        (0 <= c.dconv_mode <= 3, "a dconv_mode of 0 to 3"),
        (0 < c.growth <= 64, "a growth of up to 64"),
    ]


def spectrogram_rules(c: LayerConfig) -> list[tuple[bool, str]]:
    """Rules for the arguments of models with spectrograms."""
    return [
        (c.channels_time is None or 1 <= c.channels_time <= 4096, "1 to 4096 time channels"),
        (1 <= len(c.nfft_list) <= 16, "1 to 16 resolutions"),
        (all(n in range(64, 65537, 16) for n in c.nfft_list), "nfft of 64 to 65536 in steps of 16"),
        (1 <= c.time_stride <= 64, "a time_stride of 1 to 64"),
        (0 <= c.context_enc <= 16, "contexts of 0 to 16"),
    ]


def require(rules: Rules) -> None:
    """Raise ``CheckpointError`` for the first rule that does not hold."""
    for holds, expected in rules:
        if not holds:
            raise CheckpointError(f"the constructor arguments make no model: expected {expected}")
