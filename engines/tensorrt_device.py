"""The NVIDIA GPU an engine is built for or runs on: its name, compute capability and driver."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from mrsep_deploy.errors import EngineUnavailableError

INSTALL_DRIVER = "Install NVIDIA's driver, or use a machine with an NVIDIA GPU."


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as NVIDIA calls it.
        capability: its compute capability, ``sm_86``.
        driver: the newest CUDA version its driver supports, ``13.0``.
    """

    name: str
    capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"


def find_gpu(index: int, extra: str) -> Gpu:
    """The GPU of that index.

    Args:
        index: in CUDA's order.
        extra: this package's extra that brings cuda-python.

    Raises:
        EngineUnavailableError: no cuda-python, no driver, or no such GPU.
    """
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        message = f"cuda-python cannot be imported ({error})"
        raise EngineUnavailableError(message, f'pip install "mrsep-deploy[{extra}]"') from error
    try:
        _call(driver.cuInit, 0)
        count = _call(driver.cuDeviceGetCount)
        if not 0 <= index < count:
            message = f"there is no GPU {index}, CUDA finds {count}"
            raise EngineUnavailableError(message, "Choose one that nvidia-smi lists.")
        return _describe(driver, _call(driver.cuDeviceGet, index))
    except RuntimeError as error:  # cuda-python's own, where the driver is missing altogether
        raise EngineUnavailableError("this machine has no CUDA driver", INSTALL_DRIVER) from error


def _describe(driver: Any, device: Any) -> Gpu:
    name = _call(driver.cuDeviceGetName, 128, device).split(b"\0")[0].decode(errors="replace")
    kinds = driver.CUdevice_attribute
    major = _call(driver.cuDeviceGetAttribute, kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    minor = _call(driver.cuDeviceGetAttribute, kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    version = _call(driver.cuDriverGetVersion)
    return Gpu(name, f"sm_{major}{minor}", f"{version // 1000}.{version % 1000 // 10}")


def _call(function: Any, *arguments: Any) -> Any:
    """The result of a driver call, which gives a status first."""
    status, *results = function(*arguments)
    if status.value != 0:
        raise EngineUnavailableError(f"CUDA says {status.name} in {function.__name__}", INSTALL_DRIVER)
    return results[0] if results else None
