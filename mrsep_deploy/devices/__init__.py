"""Devices: the CPU, and CUDA through cuda-python or pycuda, behind one small interface.

open_cuda(0)        a GPU, in the implementation that MRSEP_DEPLOY_CUDA names (cuda-python by default)
cuda_status()       whether there is one, and what to do if not
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from mrsep_deploy.errors import EngineUnavailableError, UsageError

if TYPE_CHECKING:
    from mrsep_deploy.devices.cuda import CudaDevice

__all__ = ["CUDA_PYTHON", "CUDA_VARIABLE", "PYCUDA", "CudaStatus", "cuda_status", "open_cuda"]

CUDA_PYTHON = "cuda-python"
PYCUDA = "pycuda"
CUDA_VARIABLE = "MRSEP_DEPLOY_CUDA"

_CLASSES = {
    CUDA_PYTHON: "mrsep_deploy.devices.cuda_python:CudaPythonDevice",
    PYCUDA: "mrsep_deploy.devices.pycuda:PyCudaDevice",
}


@dataclass(frozen=True)
class CudaStatus:
    """Whether CUDA works here.

    Attributes:
        implementation: the Python package that was asked.
        driver: the newest CUDA version the driver supports, ``13.0``.
        release: the driver's own version, ``580.95.05``; empty where it does not say.
        names, compute_capabilities: of the GPUs, in CUDA's order; ``(8, 6)``.
        reason, fix: why it does not work, and what makes it work.
    """

    works: bool
    implementation: str
    driver: str = ""
    names: tuple[str, ...] = ()
    compute_capabilities: tuple[tuple[int, int], ...] = ()
    reason: str = ""
    fix: str = ""
    release: str = ""

    def gpu(self, index: int) -> tuple[str, tuple[int, int]]:
        """The name and the compute capability of one GPU.

        Raises:
            EngineUnavailableError: CUDA does not work here, or there is no such GPU.
        """
        if not self.works:
            raise EngineUnavailableError(self.reason, self.fix)
        if not 0 <= index < len(self.names):
            known = ", ".join(f"{number} ({name})" for number, name in enumerate(self.names))
            raise EngineUnavailableError(
                f"there is no GPU {index}, CUDA finds {known}", "Choose one of these."
            )
        return self.names[index], self.compute_capabilities[index]


def open_cuda(index: int = 0, implementation: str | None = None) -> CudaDevice:
    """Open a GPU.

    Args:
        index: in CUDA's order.
        implementation: ``cuda-python`` or ``pycuda``; by default what ``MRSEP_DEPLOY_CUDA`` names, and
            cuda-python, which alone captures graphs, if it names none.

    Raises:
        EngineUnavailableError: the package, the driver or the GPU is missing.
        UsageError: there is no such implementation.
    """
    return _class(_chosen(implementation))(index)


def cuda_status(implementation: str | None = None) -> CudaStatus:
    """Look for GPUs without making a context on any; never raises."""
    from mrsep_deploy.devices.cuda import driver_release

    chosen = ""
    try:
        chosen = _chosen(implementation)
        found = _class(chosen).probe()
    except (UsageError, EngineUnavailableError) as error:
        return CudaStatus(False, chosen, reason=error.message, fix=error.fix)
    except Exception as error:  # a broken installation can raise anything
        return CudaStatus(False, chosen, reason=f"{chosen} failed while looking for GPUs: {error}")
    if not found:
        return CudaStatus(False, chosen, reason="the NVIDIA driver finds no GPU")
    names, capabilities = zip(*((each.name, each.compute_capability) for each in found), strict=True)
    return CudaStatus(True, chosen, found[0].driver, names, capabilities, release=driver_release())


def _class(implementation: str) -> type[CudaDevice]:
    module, _, name = _CLASSES[implementation].partition(":")
    found: type[CudaDevice] = getattr(import_module(module), name)
    return found


def _chosen(implementation: str | None) -> str:
    name = implementation or os.environ.get(CUDA_VARIABLE) or CUDA_PYTHON
    if name not in _CLASSES:
        where = "" if implementation else f" ({CUDA_VARIABLE})"
        raise UsageError(f"CUDA has no implementation {name!r}{where}", f"Choose {' or '.join(_CLASSES)}.")
    return name
