"""Engines that run the graph stages of a bundle. Every heavy import waits until an engine is used."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from mrsep_deploy.engines.contract import (
    Availability,
    BuildOptions,
    BuildsEngines,
    BuiltStage,
    Engine,
    EngineOptions,
    Runner,
)
from mrsep_deploy.errors import EngineUnavailableError, UsageError

__all__ = [
    "AUTO",
    "ENGINE_NAMES",
    "Availability",
    "BuildOptions",
    "BuildsEngines",
    "BuiltStage",
    "Engine",
    "EngineOptions",
    "Runner",
    "choose_engine",
    "engine_class",
]

AUTO = "auto"

_CLASSES = {
    "ort": "mrsep_deploy.engines.onnxruntime:OnnxRuntimeEngine",
    "torch": "mrsep_deploy.engines.torch:TorchEngine",
    "trt": "mrsep_deploy.engines.tensorrt:TensorRtEngine",
    "trt-rtx": "mrsep_deploy.engines.tensorrt:TensorRtRtxEngine",
}
ENGINE_NAMES = tuple(_CLASSES)

# The order in which `auto` looks. The torch engine is the reference, not a choice of its own.
_PREFERENCE = ("ort",)


def engine_class(name: str) -> type[Engine]:
    """The engine of that name.

    Raises:
        UsageError: there is no such engine.
    """
    if name not in _CLASSES:
        raise UsageError(f"there is no engine {name!r}", f"Choose one of {AUTO}, {', '.join(ENGINE_NAMES)}.")
    module, attribute = _CLASSES[name].split(":")
    return cast("type[Engine]", getattr(import_module(module), attribute))


def choose_engine(name: str, options: EngineOptions) -> Engine:
    """An engine ready for use; ``auto`` takes the fastest that works here.

    Raises:
        EngineUnavailableError: the named engine does not work here (never a silent substitute).
    """
    candidates = _PREFERENCE if name == AUTO else (name,)
    for candidate in candidates:
        engine = engine_class(candidate)
        found = engine.availability()
        if found.works:
            return engine(options)
    raise EngineUnavailableError(f"engine {candidate} does not work here: {found.reason}", found.fix)
