"""The CUDA runtime API through ``cuda-python``: its calls, their errors, and what GPUs there are."""

from __future__ import annotations

from typing import Any

from mrsep_deploy.devices.cuda import (
    CONTEXT_LOST,
    INSTALL_DRIVER,
    NO_DRIVER,
    NO_GPU,
    UPDATE_DRIVER,
    CudaProperties,
    version_text,
)
from mrsep_deploy.errors import EngineError, EngineUnavailableError
from mrsep_deploy.process.libraries import library

INSTALL = "pip install cuda-python"

# After these no call in the process works any more.
_LOST = frozenset(
    f"cudaError{name}"
    for name in (
        "Assert", "ECCUncorrectable", "HardwareStackError", "IllegalAddress", "IllegalInstruction",
        "InvalidAddressSpace", "InvalidPc", "LaunchFailure", "LaunchTimeout", "MisalignedAddress", "Unknown",
    )
)  # fmt: skip


def _module() -> Any:
    try:
        return library("cuda.bindings.runtime")
    except ImportError:
        # Releases of cuda-python before 12.6 have the same calls there.
        return library("cuda.cudart")


class CudaCallError(EngineError):
    """A call of the runtime failed. ``code`` is CUDA's name for the error."""

    def __init__(self, call: str, code: str, text: str) -> None:
        fix = CONTEXT_LOST if code in _LOST else ""
        super().__init__(f"CUDA failed in {call}: {text} ({code})", fix)
        self.code = code


class CudaRuntime:
    """The runtime's calls by name, with the error that each returns raised.

    Raises:
        EngineUnavailableError: cuda-python cannot be imported.
    """

    def __init__(self) -> None:
        try:
            self.module: Any = _module()
        except ImportError as error:
            raise EngineUnavailableError(f"cuda-python cannot be imported ({error})", INSTALL) from error

    def __call__(self, call: str, *arguments: Any) -> Any:
        """The call's result; a tuple if it has several."""
        error, *results = getattr(self.module, call)(*arguments)
        if error != self.module.cudaError_t.cudaSuccess:
            _, text = self.module.cudaGetErrorString(error)
            raise CudaCallError(call, error.name, text.decode(errors="replace"))
        return results[0] if len(results) == 1 else tuple(results)

    def release(self, call: str, handle: Any) -> None:
        """Give something back. The error is of no use here: such calls also return those of earlier,
        asynchronous work, which synchronizing has raised or will raise."""
        getattr(self.module, call)(handle)


def find_gpus() -> list[CudaProperties]:
    """All GPUs, without making a context on any.

    Raises:
        EngineUnavailableError: there is no cuda-python, no driver, or one too old for it.
    """
    runtime = CudaRuntime()
    driver, own = runtime("cudaDriverGetVersion"), runtime("cudaRuntimeGetVersion")
    if not driver:
        raise EngineUnavailableError(NO_DRIVER, INSTALL_DRIVER)
    try:
        count = runtime("cudaGetDeviceCount")
    except CudaCallError as error:
        raise _unavailable(error, version_text(driver), version_text(own)) from error
    return [
        CudaProperties(
            properties.name.split(b"\0")[0].decode(errors="replace"),
            (properties.major, properties.minor),
            properties.totalGlobalMem,
            version_text(driver),
            version_text(own),
        )
        for properties in (runtime("cudaGetDeviceProperties", index) for index in range(count))
    ]


def _unavailable(error: CudaCallError, driver: str, own: str) -> EngineUnavailableError:
    if error.code == "cudaErrorInsufficientDriver":
        return EngineUnavailableError(
            f"the NVIDIA driver supports CUDA {driver}, cuda-python needs {own}",
            f'{UPDATE_DRIVER} Here: pip install "cuda-python=={driver.split(".")[0]}.*"',
        )
    if error.code == "cudaErrorNoDevice":
        return EngineUnavailableError(NO_GPU, INSTALL_DRIVER)
    return EngineUnavailableError(error.message, INSTALL_DRIVER)
