"""Where a bundle comes from: the manifest's free-form ``provenance`` and ``checks`` as typed data.

Nothing computes with any of it, so what is missing or of another kind is left out, and text is made
printable: a bundle may come from anyone.
"""

from __future__ import annotations

import ntpath
from collections.abc import Mapping
from dataclasses import dataclass

from mrsep_deploy.measuring.deviation import Deviation


@dataclass(frozen=True)
class Provenance:
    """Attributes:
    checkpoint, sha256, klass: file name, hash and class name of the checkpoint; empty if untrained.
    storage: element types the weights are stored in.
    seed: of the random weights of an untrained model.
    ignored: constructor arguments that only steered training.
    rewrites: exact rewrites that the export applied.
    exported: when, ISO 8601 in UTC.
    tools: version of each tool that took part.
    """

    checkpoint: str = ""
    sha256: str = ""
    klass: str = ""
    storage: tuple[str, ...] = ()
    seed: int | None = None
    ignored: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    exported: str = ""
    tools: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, found: Mapping[str, object]) -> Provenance:
        """From a manifest's ``provenance``."""
        seed, tools = within(found, "untrained", "seed"), within(found, "tools")
        return cls(
            # the path is that of another machine, perhaps of another system
            checkpoint=ntpath.basename(_text(found, "checkpoint", "path")),
            sha256=_text(found, "checkpoint", "sha256"),
            klass=_text(found, "checkpoint", "klass"),
            storage=_texts(found, "checkpoint", "storage"),
            seed=seed if isinstance(seed, int) else None,
            ignored=_texts(found, "ignored_arguments"),
            rewrites=_texts(found, "rewrites"),
            exported=_text(found, "exported"),
            tools=tuple((_printable(tool), _text(tools, tool)) for tool in tools)
            if isinstance(tools, Mapping)
            else (),
        )


@dataclass(frozen=True)
class Check:
    """Deviation from PyTorch in float64 of an exported graph, and of PyTorch's own float32."""

    exported: Deviation
    pytorch: Deviation

    @classmethod
    def read(cls, checks: Mapping[str, object], stage: str) -> Check | None:
        """From a manifest's ``checks``; None if that stage was not checked."""
        exported, pytorch = (
            within(checks, stage, key) for key in ("relative_l2", "pytorch_float32_relative_l2")
        )
        if not isinstance(exported, (int, float)) or not isinstance(pytorch, (int, float)):
            return None
        return cls(Deviation(abs(exported)), Deviation(abs(pytorch)))


def within(found: object, *keys: str) -> object:
    """Returns what lies below these keys of a manifest's free-form part; None where nothing does."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _text(found: object, *keys: str) -> str:
    value = within(found, *keys)
    return _printable(value) if isinstance(value, str) else ""


def _texts(found: object, *keys: str) -> tuple[str, ...]:
    items = within(found, *keys)
    items = items if isinstance(items, (list, tuple)) else ()
    return tuple(_printable(item) for item in items if isinstance(item, str))


def _printable(text: str) -> str:
    """Text without characters that steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
