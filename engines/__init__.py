"""Engines that run the graph stages of a bundle: a table of their names that imports none of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from mrsep_deploy.errors import UsageError

if TYPE_CHECKING:
    from mrsep_deploy.engines.contract import Engine

__all__ = ["AUTO", "ENGINE_NAMES", "engine_class"]

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


def engine_class(name: str) -> type[Engine]:
    """Import and return the engine of that name; its library waits until the engine is used.

    Raises:
        UsageError: there is no such engine.
    """
    if name not in _CLASSES:
        raise UsageError(f"there is no engine {name!r}", f"Choose one of {AUTO}, {', '.join(ENGINE_NAMES)}.")
    module, attribute = _CLASSES[name].split(":")
    return cast("type[Engine]", getattr(import_module(module), attribute))
