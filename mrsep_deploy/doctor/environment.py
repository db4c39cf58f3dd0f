"""Reads what is installed and what the machine allows, as plain data for ``mrsep-deploy doctor``.

Nothing here imports the packages it looks at, but for ONNX Runtime, and nothing raises: what cannot be found
out is empty.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from mrsep_deploy.devices import CUDA_VARIABLE
from mrsep_deploy.engines.onnxruntime_tensorrt import needed_tensorrt
from mrsep_deploy.errors import MrsepError
from mrsep_deploy.files import paths
from mrsep_deploy.process.libraries import library
from mrsep_deploy.process.machine import cpu_budget, cpu_instructions

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class FolderState:
    """A folder this program keeps things in.

    Attributes:
        use: what for.
        path: where; empty if there is no such place (``problem`` says why).
        problem: why nothing can be written there; empty if something can.
        free_bytes: on its disk.
    """

    use: str
    path: str
    problem: str = ""
    free_bytes: int = 0


@dataclass(frozen=True)
class Environment:
    """Everything the checks look at.

    Attributes:
        distributions: installed packages, version by normalised name.
        libraries: names of NVIDIA's shared libraries in pip's packages, ``libnvinfer.so.10``.
        onnxruntime_cuda: CUDA version that the installed ONNX Runtime is built for; empty for none.
        torch_cuda: the same for torch.
        onnxruntime_tensorrt: release of TensorRT that ONNX Runtime's provider is linked against; 0 for none.
        driver: newest CUDA version the NVIDIA driver supports; empty without one.
        cores: CPU cores of the machine, as libraries count them.
        budget: how many of them this process may use.
        instructions: of the processor, those that decide how fast it multiplies: ``AVX512-BF16``.
        variables: those environment variables that matter and are set.
        folders: where models and caches go.
    """

    distributions: Mapping[str, str] = field(default_factory=dict)
    libraries: frozenset[str] = frozenset()
    onnxruntime_cuda: str = ""
    torch_cuda: str = ""
    onnxruntime_tensorrt: int = 0
    driver: str = ""
    cores: int = 1
    budget: int = 1
    instructions: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[FolderState, ...] = ()


def look() -> Environment:
    """The environment of this process."""
    names = (*THREAD_VARIABLES, CUDA_VARIABLE)
    return Environment(
        distributions=_distributions(),
        libraries=_libraries(),
        onnxruntime_cuda=_onnxruntime_cuda(),
        torch_cuda=_torch_cuda(),
        onnxruntime_tensorrt=needed_tensorrt() or 0,
        driver=_driver(),
        cores=os.cpu_count() or 1,
        budget=cpu_budget(),
        instructions=cpu_instructions(),
        variables={name: os.environ[name] for name in names if os.environ.get(name)},
        folders=(_folder("models", paths.models_dir), _folder("caches", lambda: paths.cache_dir("engines"))),
    )


def _distributions() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a folder left over from a broken installation has none
            # The first on the path is the one that is imported.
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def _libraries() -> frozenset[str]:
    folders: list[Path] = []
    for package in ("nvidia", "tensorrt_libs"):
        spec = importlib.util.find_spec(package)
        folders += [Path(place) for place in (spec.submodule_search_locations or [] if spec else [])]
    return frozenset(path.name for folder in folders for path in folder.rglob("*.so.*"))


def _onnxruntime_cuda() -> str:
    try:
        return str(getattr(library("onnxruntime"), "cuda_version", "") or "")
    except Exception:  # a broken installation can raise anything; the engine's own check says what
        return ""


def _torch_cuda() -> str:
    """Out of its file ``version.py``, because importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else ""


def _driver() -> str:
    """From the driver's library itself, so that no CUDA package has to be installed to ask."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return ""
    except (OSError, AttributeError):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _folder(use: str, find: Callable[[], Path]) -> FolderState:
    try:
        path = find()
    except MrsepError as error:
        return FolderState(use, "", problem=error.message)
    # What does not exist yet is made when it is needed, in the first folder above it that does.
    present = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    try:
        with tempfile.TemporaryFile(dir=present):
            pass
        return FolderState(use, str(path), free_bytes=shutil.disk_usage(present).free)
    except OSError as error:
        return FolderState(use, str(path), problem=error.strerror or str(error))
