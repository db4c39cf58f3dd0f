"""What the two CUDA implementations share: finding a GPU, what it says of itself, tensors in its memory."""

from __future__ import annotations

import abc
import ctypes
import os
from dataclasses import dataclass
from typing import Any

from mrsep_deploy.devices.interface import Device, DeviceKind, DeviceTensor, Memory
from mrsep_deploy.errors import EngineError, EngineUnavailableError

NO_DRIVER = "there is no NVIDIA driver"
NO_GPU = "the NVIDIA driver finds no GPU"
INSTALL_DRIVER = "Install NVIDIA's driver, until nvidia-smi lists the GPU; start a container with --gpus all."
UPDATE_DRIVER = "Update NVIDIA's driver, or install the CUDA libraries of the version it supports."
SEE_GPU = "Choose one that nvidia-smi lists, and see that CUDA_VISIBLE_DEVICES does not hide it."
CONTEXT_LOST = (
    "Everything on this GPU that the process held is lost: start it again, "
    "with CUDA_LAUNCH_BLOCKING=1 to see which call failed."
)


NVML = "nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1"
"""The driver's own library."""


def driver_release(name: str = NVML) -> str:
    """The release of NVIDIA's driver, ``580.95.05``; empty where its library is not there or does not say."""
    try:
        library, text = ctypes.CDLL(name), ctypes.create_string_buffer(80)
        if library.nvmlInit_v2():
            return ""
        failed = library.nvmlSystemGetDriverVersion(text, len(text))
        library.nvmlShutdown()
    except (OSError, AttributeError):  # it is not there, or lacks a call
        return ""
    return "" if failed else text.value.decode(errors="replace")


@dataclass(frozen=True)
class CudaProperties:
    """One GPU.

    Attributes:
        driver: the newest CUDA version its driver supports, ``13.0``.
        runtime: the CUDA version of the library that asked.
    """

    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    driver: str
    runtime: str


class CudaDevice(Device):
    """GPU ``index``, in CUDA's order; its streams run beside the host, in the device's primary context.

    The primary context is the one that torch and ONNX Runtime use too, so that their tensors, kernels
    and streams and this device's can be mixed in one process.

    Raises:
        EngineUnavailableError: there is no package for CUDA, no driver or no such GPU.
    """

    kind: DeviceKind = "cuda"

    def __init__(self, index: int = 0) -> None:
        found = self.probe()
        if not found:
            raise EngineUnavailableError(NO_GPU, SEE_GPU)
        if not 0 <= index < len(found):
            raise EngineUnavailableError(
                f"there is no GPU {index}, CUDA finds {len(found)}, counted from 0", SEE_GPU
            )
        super().__init__()
        self.index, self.properties, self.name = index, found[index], found[index].name

    @classmethod
    @abc.abstractmethod
    def probe(cls) -> list[CudaProperties]:
        """All GPUs, without making a context on any.

        Raises:
            EngineUnavailableError: there is no package for CUDA, no driver, or one too old for it.
        """

    @abc.abstractmethod
    def free_bytes(self) -> int:
        """Device memory nobody has taken, other programs included."""

    def out_of_memory(self, size: int) -> EngineError:
        """The error of an allocation that does not fit."""
        free, total = self.free_bytes() / 1e6, self.properties.total_bytes / 1e6
        return EngineError(
            f"{self.name} has no {size / 1e6:,.1f} MB for buffers, {free:,.0f} of its {total:,.0f} MB are free",
            "Take a smaller batch (--batch), or close other programs on the GPU.",
        )


class CudaMemory(Memory):
    """A block at the address ``native``, which is None once the block is closed."""

    native: Any

    def _placed(self, tensor: DeviceTensor) -> DeviceTensor:
        assert self.native is not None, "the block is closed"
        return DeviceTensor(int(self.native) + tensor.pointer, tensor.shape, tensor.dtype)


def version_text(version: int) -> str:
    """``13000`` -> ``13.0``, as CUDA writes versions."""
    return f"{version // 1000}.{version % 1000 // 10}"
