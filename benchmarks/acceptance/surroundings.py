"""What is being accepted: GPU, driver, clocks, versions, and which TensorRT lies on the machine."""

from __future__ import annotations

import glob
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from machine_info import machine_info

from mrsep_deploy.devices import CUDA_PYTHON, PYCUDA, cuda_status
from mrsep_deploy.engines import ENGINE_NAMES, engine_class

_QUERIES = (
    "name", "driver_version", "vbios_version", "memory.total", "power.limit", "power.max_limit",
    "clocks.current.sm", "clocks.max.sm", "clocks.current.memory", "clocks.max.memory", "temperature.gpu",
    "pstate", "ecc.mode.current", "mig.mode.current", "persistence_mode",
)  # fmt: skip
_DISTRIBUTIONS = (
    "torch", "triton", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "cuda-bindings",
    "cuda-python", "pycuda", "tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13-libs",
    "tensorrt-rtx-cu13-bindings", "nvidia-cudnn-cu13", "nvidia-cublas",
)  # fmt: skip
_LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local", "/opt")
_SECONDS = 20


def gpu() -> dict[str, Any]:
    """The GPU as torch sees it."""
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "multiprocessors": found.multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def nvidia_smi() -> dict[str, Any]:
    """Clocks, limits and modes; a query that this driver does not know is left out."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise FileNotFoundError("nvidia-smi is not on the PATH")
    found = {}
    for query in _QUERIES:
        answer = _output([program, f"--query-gpu={query}", "--format=csv,noheader", "--id=0"])
        if answer and not answer.startswith("["):  # [Not Supported], [N/A]
            found[query] = answer
    return found


def software() -> dict[str, Any]:
    """Versions, and the machine around the GPU."""
    versions = {}
    for name in _DISTRIBUTIONS:
        distributions = list(importlib.metadata.distributions(name=name))
        if distributions:
            versions[name] = distributions[0].version
    machine = machine_info()
    machine.pop("versions")
    return {**machine, "kernel": platform.release(), "installed": versions}


def devices() -> dict[str, Any]:
    """What each Python package for CUDA says of the GPU."""
    return {name: vars(cuda_status(name)) for name in (CUDA_PYTHON, PYCUDA)}


def engines() -> dict[str, Any]:
    """What each engine says of itself."""
    return {name: vars(engine_class(name).availability()) for name in ENGINE_NAMES}


def tensorrt() -> dict[str, Any]:
    """Where full TensorRT lies, if it does: its libraries in the linker's list and on the disk, its module."""
    listed = _output(["ldconfig", "-p"]) or ""
    linker = [line.split("=>")[-1].strip() for line in listed.splitlines() if "libnvinfer" in line]
    folders = [*_LIBRARY_FOLDERS, str(Path(torch.__file__).parents[1])]
    disk = [path for folder in folders for path in glob.glob(f"{folder}/**/libnvinfer.so*", recursive=True)]
    try:
        import tensorrt as module

        python = str(module.__version__)
    except Exception as error:  # a library that does not load raises what it likes
        python = f"not importable ({type(error).__name__}: {error})"
    found = sorted({*linker, *disk})
    return {"libraries": found or ["none found"], "python_module": python}


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
