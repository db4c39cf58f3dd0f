"""TensorRT below ONNX Runtime: its libraries, loaded as its provider needs them, and the engines that it keeps."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from mrsep_deploy.files.parts import write_file

TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
SET_TF32 = f"Set {TF32_VARIABLE}=0 before the program starts."

_WINDOWS = os.name == "nt"
_PROVIDER = "onnxruntime_providers_tensorrt.dll" if _WINDOWS else "libonnxruntime_providers_tensorrt.so"
_NEEDED = re.compile(rb"nvinfer_(\d+)\.dll" if _WINDOWS else rb"libnvinfer\.so\.(\d+)")
_PARTS = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_NOTE = "sha256.txt"


def needed_tensorrt() -> int | None:
    """The release of TensorRT that ONNX Runtime's provider is linked against; None where there is no provider."""
    for folder in _folders("onnxruntime"):
        with contextlib.suppress(OSError):
            found = _NEEDED.search(Path(folder, "capi", _PROVIDER).read_bytes())
            if found is not None:
                return int(found[1])
    return None


def load_tensorrt() -> tuple[str, str] | None:
    """Load TensorRT's libraries for the provider; returns what is in the way of that, and what helps.

    They are found where the dynamic linker looks or in pip's package; once loaded, the provider has them.
    """
    major = needed_tensorrt()
    if major is None:
        return f"{_PROVIDER} is missing, or names no TensorRT", "Run mrsep-deploy doctor."
    if not switch_off_tf32():
        return f"TensorRT was loaded before {TF32_VARIABLE} was set, and may multiply in TF32", SET_TF32
    folders = ["", *_folders("tensorrt_libs")]
    for name in _names(major):
        if not any(_loads(os.path.join(folder, name)) for folder in folders):
            install = f'pip install "tensorrt-cu13=={major}.*" --extra-index-url https://pypi.nvidia.com'
            return f"{name} of TensorRT {major} cannot be loaded", install
    return None


def switch_off_tf32() -> bool:
    """Let float32 be float32; returns false if it is too late for that.

    The provider has no option for it, and NVIDIA's libraries read the variable once, when they are loaded. Somebody who
    set it has said what they want.
    """
    if TF32_VARIABLE in os.environ:
        return True
    major = needed_tensorrt()
    if major is not None and _is_loaded(_names(major)[0]):
        return False
    os.environ[TF32_VARIABLE] = "0"
    return True


@contextlib.contextmanager
def verified(folder: Path) -> Iterator[None]:
    """Holds a folder where a library keeps engines, which are native code, for as long as it reads and writes there.

    Before, files go that are not as they were noted when the folder was last held; all of them, since they belong
    together. Afterwards, unless it failed, they are noted.
    """
    with FileLock(f"{folder}.lock"):
        found = _digests(folder)
        if found != _noted(folder):
            for name in found:
                (folder / name).unlink()
        yield
        lines = (f"{digest}  {name}\n" for name, digest in _digests(folder).items())
        write_file(folder / _NOTE, "".join(lines).encode())


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != _NOTE)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _noted(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / _NOTE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _names(major: int) -> list[str]:
    return [f"{part}_{major}.dll" if _WINDOWS else f"lib{part}.so.{major}" for part in _PARTS]


def _folders(package: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that something else has put in its place
        return []
    return list(spec.submodule_search_locations or []) if spec else []


def _is_loaded(library: str) -> bool:
    """Whether a library is in this process already; Windows has no way to ask that loads nothing."""
    without_loading = getattr(os, "RTLD_NOLOAD", None)
    if without_loading is None:
        return False
    try:
        ctypes.CDLL(library, mode=without_loading)
    except OSError:
        return False
    return True


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
