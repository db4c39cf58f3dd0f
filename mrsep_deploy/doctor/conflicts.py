"""Known conflicts and limits: pure checks of an :class:`~mrsep_deploy.doctor.environment.Environment`.

Each check yields findings, none if all is well. A finding says what was found and the one line that fixes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from mrsep_deploy.devices import CUDA_VARIABLE, PYCUDA
from mrsep_deploy.doctor.environment import THREAD_VARIABLES, Environment
from mrsep_deploy.files.paths import SET_HOME
from mrsep_deploy.terminal.tables import file_size

Level = Literal["error", "warning", "note"]

LOW_DISK = 2_000_000_000
"""Bytes: a few bundles and the engines built from them."""

ORT_GPU = "onnxruntime-gpu"
_ORT_BUILDS = ("onnxruntime", ORT_GPU, *(f"onnxruntime-{kind}" for kind in ("directml", "openvino", "qnn")))
_TENSORRT = re.compile(r"tensorrt(-cu\d+)?(-libs|-bindings)?")
_CUDA_WHEEL = re.compile(r"nvidia-(cuda-runtime|cublas|cufft|cudnn)(-cu(\d+))?")
_CUDNN = 9


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (``error``), may go wrong (``warning``) or is worth knowing (``note``)."""

    check: str
    level: Level
    message: str
    fix: str


def find_conflicts(env: Environment) -> list[Finding]:
    """Every finding, the worst first."""
    found = [finding for check in CHECKS for finding in check(env)]
    return sorted(found, key=lambda finding: get_args(Level).index(finding.level))


def several_onnxruntimes(env: Environment) -> Iterator[Finding]:
    """All builds install the same folder, so the last one overwrites part of the others."""
    found = [name for name in _ORT_BUILDS if name in env.distributions]
    if len(found) > 1:
        keep = ORT_GPU if ORT_GPU in found else found[0]
        fix = f"pip uninstall -y {' '.join(found)} && pip install {keep}"
        yield Finding("onnxruntime", "error", f"{' and '.join(found)} overwrite each other's files", fix)


def onnxruntime_libraries(env: Environment) -> Iterator[Finding]:
    """The CUDA and cuDNN that pip installed are those ONNX Runtime is built for."""
    wanted = _major(env.onnxruntime_cuda)
    if ORT_GPU not in env.distributions or not wanted:
        return
    fix = f'pip install --upgrade "{ORT_GPU}[cuda,cudnn]"'
    matches = ((_CUDA_WHEEL.fullmatch(name), version) for name, version in env.distributions.items())
    wheels = [(match, version) for match, version in matches if match]
    # from CUDA 13 on a wheel's version tells the CUDA it is for, before that its name
    majors = {int(match[3] or _major(version)) for match, version in wheels if match[1] == "cuda-runtime"}
    if majors and wanted not in majors:
        found = ", ".join(map(str, sorted(majors)))
        message = f"{ORT_GPU} needs CUDA {wanted}, pip has installed the libraries of CUDA {found}"
        yield Finding("onnxruntime-cuda", "error", message, fix)
    for match, version in wheels:
        if match[1] == "cudnn" and match[3] in (None, str(wanted)) and _major(version) != _CUDNN:
            message = f"{ORT_GPU} needs cuDNN {_CUDNN}, {match[0]} is {version}"
            yield Finding("onnxruntime-cudnn", "error", message, fix)


def tensorrt_of_onnxruntime(env: Environment) -> Iterator[Finding]:
    """ONNX Runtime's TensorRT provider is linked against one TensorRT, whatever else is installed."""
    found = {name: version for name, version in env.distributions.items() if _TENSORRT.fullmatch(name)}
    wanted = env.onnxruntime_tensorrt
    others = sorted(name for name, version in found.items() if _major(version) != wanted)
    there = any(f"nvinfer.so.{wanted}" in name for name in env.libraries)
    if ORT_GPU in env.distributions and wanted and others and not there:
        message = f"{others[0]} {found[others[0]]} is installed, the engine ort-trt needs TensorRT {wanted}"
        yield Finding("onnxruntime-tensorrt", "warning", message, "Choose --engine trt, which runs on both.")


def cuda_versions(env: Environment) -> Iterator[Finding]:
    """Two CUDA runtimes in one process find each other's libraries; a driver runs those up to its own major version."""
    found = {"torch": _major(env.torch_cuda)} if "torch" in env.distributions else {}
    if ORT_GPU in env.distributions:
        found[ORT_GPU] = _major(env.onnxruntime_cuda)
    for name in env.distributions:
        match = re.search(r"^tensorrt(?:-rtx)?-cu(\d+)", name)
        if match:
            found[name] = int(match[1])
    majors = {name: major for name, major in found.items() if major}
    own, have = majors.get("torch"), _major(env.driver)
    other = [(name, major) for name, major in majors.items() if own and major != own]
    if other:
        message = "torch is built for CUDA {}, {} for CUDA {}".format(own, *other[0])
        fix = f"pip install --upgrade torch --index-url https://download.pytorch.org/whl/cu{other[0][1]}0"
        yield Finding("torch-cuda", "warning", message, fix)
    too_new = [f"{name} needs {major}" for name, major in majors.items() if have and major > have]
    if too_new:
        message = f"the NVIDIA driver supports CUDA up to {env.driver}, {', '.join(too_new)}"
        yield Finding("driver", "error", message, "Update NVIDIA's driver.")


def several_cuda_pythons(env: Environment) -> Iterator[Finding]:
    """``cuda-python`` is a shell around ``cuda-bindings`` of the same major version, which the driver must run."""
    names = ("cuda-python", "cuda-bindings")
    found = {name: env.distributions[name] for name in names if name in env.distributions}
    if len({_major(version) for version in found.values()}) > 1:
        message = " beside ".join(f"{name} {version}" for name, version in found.items())
        fix = f'pip install --force-reinstall "cuda-python=={_major(found["cuda-python"])}.*"'
        yield Finding("cuda-python", "error", message, fix)
    newest = max((_major(version) for version in found.values()), default=0)
    if env.driver and newest > _major(env.driver):
        message = f"cuda-python {newest} is installed, the NVIDIA driver supports CUDA up to {env.driver}"
        fix = f'pip install "cuda-python=={_major(env.driver)}.*"'
        yield Finding("cuda-python", "error", message, fix)


def pycuda_contexts(env: Environment) -> Iterator[Finding]:
    """Other libraries use a GPU's primary context; memory of another context is invisible to them."""
    version = env.distributions.get("pycuda")
    if version is None and env.variables.get(CUDA_VARIABLE) == PYCUDA:
        message = f"{CUDA_VARIABLE} is {PYCUDA}, which is not installed"
        yield Finding("pycuda", "error", message, f"pip install {PYCUDA}, or unset {CUDA_VARIABLE}.")
    if version is None:
        return
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (2021, 1):  # the first with pycuda.autoprimaryctx
        message = f"pycuda {version} has no pycuda.autoprimaryctx, so it cannot share a GPU's memory"
        yield Finding("pycuda", "warning", message, "pip install --upgrade pycuda")
    elif "torch" in env.distributions or ORT_GPU in env.distributions:
        message = "pycuda.autoinit makes a context that torch and ONNX Runtime cannot see into"
        yield Finding("pycuda", "note", message, "Import pycuda.autoprimaryctx instead where you use both.")


def compressed_audio(env: Environment) -> Iterator[Finding]:
    """FFmpeg comes with the package ``av``."""
    if "av" not in env.distributions:
        message = "m4a, mp4 and other files that need FFmpeg cannot be read"
        yield Finding("audio", "note", message, 'pip install "mrsep-deploy[av]"')


def folders(env: Environment) -> Iterator[Finding]:
    """Models and caches have a place, and it has room."""
    for folder in env.folders:
        if folder.problem:
            where = f" at {folder.path}" if folder.path else ""
            message = f"there is no place for {folder.use}{where}: {folder.problem}"
            yield Finding("folders", "error", message, SET_HOME)
        elif folder.free_bytes < LOW_DISK:
            message = f"{file_size(folder.free_bytes)} are free for {folder.use} at {folder.path}"
            yield Finding("disk", "warning", message, f"Free some space, or: {SET_HOME}")


def threads(env: Environment) -> Iterator[Finding]:
    """More threads than cores make every one of them slower."""
    for name in THREAD_VARIABLES:
        value = env.variables.get(name, "")
        if value.isdigit() and int(value) > env.budget:
            message = f"{name} is {value}, this process may use {env.budget} cores"
            yield Finding("threads", "warning", message, f"Unset {name}.")
    if env.budget < env.cores:
        found = f"{env.budget} of {env.cores} cores; {env.budget} threads are the default"
        fix = "Give the container more cores to go faster."
        yield Finding("threads", "note", f"this process may use {found}", fix)


CHECKS: tuple[Callable[[Environment], Iterator[Finding]], ...] = (
    several_onnxruntimes,
    onnxruntime_libraries,
    tensorrt_of_onnxruntime,
    cuda_versions,
    several_cuda_pythons,
    pycuda_contexts,
    compressed_audio,
    folders,
    threads,
)


def _major(version: str) -> int:
    """0 where there is none."""
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0
