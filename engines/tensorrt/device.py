"""The NVIDIA GPU an engine is built for or runs on: its name, compute capability and driver."""

from __future__ import annotations

from dataclasses import dataclass

from mrsep_deploy.devices import cuda_status
from mrsep_deploy.errors import EngineUnavailableError


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


def find_gpu(index: int) -> Gpu:
    """The GPU of that index in CUDA's order; makes no context on it.

    Raises:
        EngineUnavailableError: CUDA does not work here, or there is no such GPU.
    """
    found = cuda_status()
    if not found.works:
        raise EngineUnavailableError(found.reason, found.fix)
    if not 0 <= index < len(found.names):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(found.names))
        raise EngineUnavailableError(f"there is no GPU {index}, CUDA finds {known}", "Choose one of these.")
    major, minor = found.compute_capabilities[index]
    return Gpu(found.names[index], f"sm_{major}{minor}", found.driver)
