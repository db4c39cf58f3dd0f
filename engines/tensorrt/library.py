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
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mrsep_deploy.devices import cuda_status
from mrsep_deploy.errors import EngineError, EngineUnavailableError, first_line
from mrsep_deploy.process.libraries import library

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""NumPy's names of element types where they are not TensorRT's own in lower case."""
_CAPABILITY = re.compile(r"SM(\d+)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries.

    Attributes:
        modules: names that its Python module has, the usual one first.
        portable: its engines are built for compute capabilities and run on every device that has one of them.
        oldest: the first release that will do.
    """

    title: str
    modules: tuple[str, ...]
    install: str
    portable: bool = False
    oldest: tuple[int, ...] = ()


TRT = Flavour(
    "TensorRT",
    ("tensorrt",),
    'pip install "mrsep-deploy[trt]", with NVIDIA\'s own package index as an extra index',
    oldest=(10, 9),  # the first whose strongly typed networks and ONNX parser take these graphs
)
RTX = Flavour(
    "TensorRT for RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    'pip install "mrsep-deploy[rtx]"',
    portable=True,
)


@dataclass(frozen=True)
class Library:
    """A TensorRT that is installed: its Python module."""

    flavour: Flavour
    module: Any

    @property
    def version(self) -> str:
        """Of the library, exact."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        return f"{self.flavour.title} {self.version}"

    @property
    def logger(self) -> Any:
        """The process's one logger for this library, which keeps each thread's errors."""
        return _logger(self.module)

    def last_error(self) -> str:
        """What the library said last of an error in this thread or in one of its own, and forget it."""
        return str(self.logger.errors.take())

    def made(self, what: str, make: Callable[[], Any]) -> Any:
        """What a constructor or a factory of the library makes.

        Raises:
            EngineError: it made nothing: pybind raises for a null pointer of a constructor, others return None.
        """
        self.last_error()  # forget what came before
        try:
            found = make()
        except (TypeError, RuntimeError) as error:
            raise EngineError(f"{self.title} cannot make {what}: {self.last_error()}") from error
        if found is None:
            raise EngineError(f"{self.title} cannot make {what}: {self.last_error()}")
        return found

    def capabilities(self) -> dict[str, Any]:
        """The compute capabilities it builds for by name, ``sm_86``; empty for TensorRT."""
        if not self.flavour.portable:
            return {}
        members = self.module.ComputeCapability.__members__
        found = ((_CAPABILITY.fullmatch(name), value) for name, value in members.items())
        return {f"sm_{match[1]}": value for match, value in found if match}

    @property
    def user_allocation(self) -> Any:
        """The flag of engines that allocate nothing while they run, which capturing demands of TensorRT for RTX; None
        where the library has none."""
        return getattr(self.module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)

    def dtype(self, data_type: Any) -> str:
        """NumPy's name of an element type."""
        name = str(data_type.name)
        return _DTYPES.get(name, name.lower())


def find_library(flavour: Flavour) -> Library:
    """The installed library.

    Raises:
        EngineUnavailableError: it is not installed, does not load, or is too old.
    """
    there = [name for name in flavour.modules if name in sys.modules or importlib.util.find_spec(name)]
    if not there:
        raise EngineUnavailableError(f"{flavour.title} is not installed", flavour.install)
    try:
        found = Library(flavour, library(there[0]))
    except (ImportError, OSError, RuntimeError) as error:  # one of its shared libraries does not load
        reason = first_line(error, "no reason given")
        message = f"{flavour.title} is installed but does not load: {reason}"
        raise EngineUnavailableError(message, flavour.install) from error
    release = tuple(int(part) for part in re.findall(r"\d+", found.version)[:2])
    if release < flavour.oldest:
        oldest = ".".join(map(str, flavour.oldest))
        message = f"{found.title} is installed, expected {oldest} or newer"
        raise EngineUnavailableError(message, 'Update it: pip install --upgrade "mrsep-deploy[trt]"')
    return found


class _Errors:
    """Error messages: of each thread that asks for them, since stages may be built side by side, and of the others.

    The library compiles kernels in threads of its own, which never ask.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._others: deque[str] = deque(maxlen=1)

    def add(self, message: str) -> None:
        """Takes down what the library said in this thread."""
        own = getattr(self._own, "messages", None)
        (self._others if own is None else own).append(message)

    def take(self) -> str:
        """Returns the last message that this thread may be meant by; from here on it is one that asks."""
        own: deque[str] | None = getattr(self._own, "messages", None)
        found = [*self._others, *(own or ())]
        self._own.messages = deque(maxlen=1)
        self._others.clear()
        return found[-1] if found else "the library gave no reason"


@functools.cache
def _logger(module: Any) -> Any:
    # The class can only be made once the library is there: its base is the library's own.
    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors = _Errors()

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.errors.add(" ".join(message.split()))
                log.debug("%s", message)

    return Logger()


@dataclass(frozen=True)
class Gpu:
    """The GPU that an engine is built for or runs on, its compute capability (``sm_86``), and its driver's version.

    Two releases of the driver can support the same CUDA; where the driver does not say its own, CUDA's stands for it.
    """

    name: str
    capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"


def find_gpu(index: int) -> Gpu:
    """The GPU of that index in CUDA's order; makes no context on it.

    Raises:
        EngineUnavailableError: CUDA does not work here, or there is no such GPU.
    """
    found = cuda_status()
    name, (major, minor) = found.gpu(index)
    return Gpu(name, f"sm_{major}{minor}", found.release or f"CUDA {found.driver}")
