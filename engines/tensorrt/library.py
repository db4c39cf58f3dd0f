"""TensorRT and TensorRT for RTX behind one face: the same Python calls in two libraries.

    trt       ``tensorrt``: builds for the GPU that is present, timing its kernels there
    trt-rtx   ``tensorrt_rtx``: builds for named compute capabilities, with or without a GPU; kernels are
              compiled on the machine that runs them

Neither is imported before it is asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import sys
import threading
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from mrsep_deploy.errors import EngineUnavailableError, first_line
from mrsep_deploy.process.libraries import library

Flavour = Literal["trt", "trt-rtx"]

OLDEST = (10, 9)
"""The first TensorRT whose strongly typed networks and ONNX parser take these graphs."""

_MODULES: dict[Flavour, tuple[str, ...]] = {
    "trt": ("tensorrt",),
    "trt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_TITLES: dict[Flavour, str] = {"trt": "TensorRT", "trt-rtx": "TensorRT for RTX"}
INSTALL: dict[Flavour, str] = {
    "trt": 'pip install "mrsep-deploy[trt]", with NVIDIA\'s own package index as an extra index',
    "trt-rtx": 'pip install "mrsep-deploy[rtx]"',
}

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_CAPABILITY = re.compile(r"SM(\d+)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Library:
    """A TensorRT that is installed.

    Attributes:
        flavour: which of the two.
        module: its Python module.
        version: of the library, exact.
    """

    flavour: Flavour
    module: Any
    version: str

    @property
    def title(self) -> str:
        return f"{_TITLES[self.flavour]} {self.version}"

    @property
    def portable(self) -> bool:
        """Its engines are built for compute capabilities and run on every device that has one of them."""
        return self.flavour == "trt-rtx"

    @property
    def logger(self) -> Any:
        """The process's one logger for this library, which keeps each thread's last error."""
        return _logger(self.module)

    def last_error(self) -> str:
        """What the library said last of an error in this thread, and forget it."""
        messages: list[str] = self.logger.messages.taken()
        return messages[-1] if messages else "the library gave no reason"

    def capabilities(self) -> dict[str, Any]:
        """The compute capabilities it builds for by name, ``sm_86``; empty for TensorRT."""
        if not self.portable:
            return {}
        members = self.module.ComputeCapability.__members__
        found = ((_CAPABILITY.fullmatch(name), value) for name, value in members.items())
        return {f"sm_{match[1]}": value for match, value in found if match}

    def dtype(self, data_type: Any) -> str:
        """NumPy's name of an element type."""
        name = str(data_type.name)
        return _DTYPES.get(name, name.lower())


def find_library(flavour: Flavour) -> Library:
    """The installed library.

    Raises:
        EngineUnavailableError: it is not installed, does not load, or is too old.
    """
    module = _import(flavour)
    version = str(module.__version__)
    library = Library(flavour, module, version)
    if flavour == "trt" and _release(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        message = f"{_TITLES[flavour]} {version} is installed, expected {oldest} or newer"
        raise EngineUnavailableError(message, 'Update it: pip install --upgrade "mrsep-deploy[trt]"')
    return library


def _import(flavour: Flavour) -> ModuleType:
    name = next((name for name in _MODULES[flavour] if _is_there(name)), None)
    if name is None:
        raise EngineUnavailableError(f"{_TITLES[flavour]} is not installed", INSTALL[flavour])
    try:
        found: ModuleType = library(name)
        return found
    except (ImportError, OSError, RuntimeError) as error:  # one of its shared libraries does not load
        reason = first_line(error, "no reason given")
        message = f"{_TITLES[flavour]} is installed but does not load: {reason}"
        raise EngineUnavailableError(message, INSTALL[flavour]) from error


def _is_there(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _release(version: str) -> tuple[int, int]:
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


@dataclass
class _Messages:
    """Error messages by thread: stages may be built side by side."""

    local: threading.local = field(default_factory=threading.local)

    def add(self, message: str) -> None:
        self.local.errors = [*getattr(self.local, "errors", []), message]

    def taken(self) -> list[str]:
        found: list[str] = getattr(self.local, "errors", [])
        self.local.errors = []
        return found


@functools.cache
def _logger(module: Any) -> Any:
    # The class can only be made once the library is there: its base is the library's own.
    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages = _Messages()

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.messages.add(" ".join(message.split()))
                log.debug("%s", message)

    return Logger()
