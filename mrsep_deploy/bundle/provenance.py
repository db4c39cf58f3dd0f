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
        checkpoint, untrained = _mapping(found, "checkpoint"), _mapping(found, "untrained")
        seed, tools = untrained.get("seed"), _mapping(found, "tools")
        return cls(
            # the path is that of another machine, perhaps of another system
            checkpoint=ntpath.basename(_text(checkpoint, "path")),
            sha256=_text(checkpoint, "sha256"),
            klass=_text(checkpoint, "klass"),
            storage=_texts(checkpoint, "storage"),
            seed=seed if isinstance(seed, int) else None,
            ignored=_texts(found, "ignored_arguments"),
            rewrites=_texts(found, "rewrites"),
            exported=_text(found, "exported"),
            tools=tuple((printable(tool), _text(tools, tool)) for tool in tools),
        )


@dataclass(frozen=True)
class Check:
    """Deviation from PyTorch in float64 of an exported graph, and of PyTorch's own float32."""

    exported: Deviation
    pytorch: Deviation

    @classmethod
    def read(cls, checks: Mapping[str, object], stage: str) -> Check | None:
        """From a manifest's ``checks``; None if that stage was not checked."""
        found = _mapping(checks, stage)
        exported, pytorch = found.get("relative_l2"), found.get("pytorch_float32_relative_l2")
        if not isinstance(exported, (int, float)) or not isinstance(pytorch, (int, float)):
            return None
        return cls(Deviation(abs(exported)), Deviation(abs(pytorch)))


def printable(text: str) -> str:
    """Text without characters that steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _mapping(found: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(found: Mapping[str, object], key: str) -> str:
    value = found.get(key)
    return printable(value) if isinstance(value, str) else ""


def _texts(found: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = found.get(key)
    items = value if isinstance(value, (list, tuple)) else ()
    return tuple(printable(item) for item in items if isinstance(item, str))
