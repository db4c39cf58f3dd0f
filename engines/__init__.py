"""Engines that run the graph stages of a bundle. Every heavy import waits until an engine is used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

from mrsep_deploy.engines.contract import (
    Availability,
    BuildOptions,
    BuildsEngines,
    BuiltStage,
    Engine,
    EngineOptions,
)
from mrsep_deploy.errors import EngineUnavailableError, UsageError

__all__ = [
    "AUTO",
    "ENGINE_NAMES",
    "PREFERENCE",
    "Availability",
    "BuildOptions",
    "BuildsEngines",
    "BuiltStage",
    "Choice",
    "Engine",
    "EngineOptions",
    "choose",
    "choose_engine",
    "engine_class",
    "parse_device",
]

AUTO = "auto"

_CLASSES = {
    "openvino": "mrsep_deploy.engines.openvino:OpenVinoEngine",
    "ort": "mrsep_deploy.engines.onnxruntime:OnnxRuntimeEngine",
    "ort-cuda": "mrsep_deploy.engines.onnxruntime_cuda:OrtCudaEngine",
    "ort-trt": "mrsep_deploy.engines.onnxruntime_cuda:OrtTensorRtEngine",
    "torch": "mrsep_deploy.engines.torch:TorchEngine",
    "trt": "mrsep_deploy.engines.tensorrt.engine:TensorRtEngine",
    "trt-rtx": "mrsep_deploy.engines.tensorrt.engine:TensorRtRtxEngine",
}
ENGINE_NAMES = tuple(_CLASSES)

DeviceKind = Literal["cpu", "cuda"]
ON_CPU = ("openvino", "ort", "torch")
"""Engines that compute on the processor; the others need CUDA."""

PREFERENCE: dict[str, str] = {
    "trt": "TensorRT times its kernels on the very GPU",
    "trt-rtx": "TensorRT for RTX compiles for the GPU",
    "ort-cuda": "it runs on the GPU",
    "openvino": "on a CPU it takes a little less time than ONNX Runtime",
    "ort": "no faster engine is installed",
}
"""What ``auto`` tries, the fastest first, and why it takes it.

``ort-trt`` is TensorRT with a detour, and ``torch`` the reference: both have to be asked for.
"""


@dataclass(frozen=True)
class Choice:
    """An engine that works here, and why it is this one; ``reason`` is empty where it was named."""

    engine: Engine
    reason: str


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
        UsageError: there is no such engine, or it has no such precision.
    """
    return choose(name, options).engine


def parse_device(name: str | None) -> tuple[DeviceKind | None, int]:
    """What ``cpu``, ``cuda`` or ``cuda:1`` stands for: the kind (None for any), and which GPU.

    Raises:
        UsageError: it is none of these.
    """
    if name is None:
        return None, 0
    if name == "cpu":
        return "cpu", 0
    found = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", name)
    if found is None:
        raise UsageError(f"there is no device {name!r}", "Choose cpu, cuda, or cuda:1 for the second GPU.")
    return "cuda", int(found[1] or 0)


def choose(name: str, options: EngineOptions, kind: DeviceKind | None = None) -> Choice:
    """:func:`choose_engine`, on a device of that kind, with the reason for the choice."""
    if name != AUTO:
        if kind is not None and name not in _running_on(kind):
            raise UsageError(
                f"engine {name} does not run on {kind}",
                f"Choose one of {', '.join(_running_on(kind))}, or leave out --device.",
            )
        return Choice(_named(name, options), "")
    for candidate, reason in PREFERENCE.items():
        if kind is not None and candidate not in _running_on(kind):
            continue
        engine = engine_class(candidate)
        if engine.availability().works and options.precision in engine.precisions:
            asked = AUTO if kind is None else f"{AUTO} on {kind}"
            hint = "; see mrsep-deploy doctor" if candidate == list(PREFERENCE)[-1] else ""
            return Choice(engine(options), f"{asked}: {reason}{hint}")
    raise EngineUnavailableError(*_nothing_works(options, kind))


def _named(name: str, options: EngineOptions) -> Engine:
    engine = engine_class(name)
    found = engine.availability()
    if not found.works:
        raise EngineUnavailableError(f"engine {name} does not work here: {found.reason}", found.fix)
    return engine(options)


def _running_on(kind: DeviceKind) -> list[str]:
    return [name for name in ENGINE_NAMES if (name in ON_CPU) == (kind == "cpu")]


def _nothing_works(options: EngineOptions, kind: DeviceKind | None) -> tuple[str, str]:
    """Message and fix where ``auto`` finds nothing: those of the engine that is easiest to install."""
    allowed = [name for name in PREFERENCE if kind is None or name in _running_on(kind)]
    fitting = [name for name in allowed if options.precision in engine_class(name).precisions]
    found = engine_class(fitting[-1]).availability()
    where = "here" if kind is None else f"here on {kind}"
    what = f"no engine for {options.precision} works {where}; {fitting[-1]}: {found.reason}"
    return what, found.fix
