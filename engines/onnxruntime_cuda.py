"""ONNX Runtime on NVIDIA GPUs: its CUDA provider (``ort-cuda``) and its TensorRT provider (``ort-trt``).

Both need the package ``onnxruntime-gpu`` in place of ``onnxruntime``. Nothing ever runs on the CPU instead:
a session that would put a single node there is refused.
"""

from __future__ import annotations

import importlib.util
import os
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import BATCH, Stage
from mrsep_deploy.devices import cuda_status
from mrsep_deploy.devices.interface import Closable, Device, DeviceKind, Runner, Stream
from mrsep_deploy.engines.contract import Availability, Engine, EngineOptions, Preference, graph_hash
from mrsep_deploy.engines.onnxruntime import ERRORS_ONLY, OrtRunner
from mrsep_deploy.engines.onnxruntime_tensorrt import load_tensorrt, switch_off_tf32, verified
from mrsep_deploy.errors import EngineError, EngineUnavailableError, first_line
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import make_folder
from mrsep_deploy.process.libraries import library

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

CPU_PACKAGE, GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
REPLACE = (
    f'pip install "mrsep-deploy[cuda]" && pip uninstall -y {CPU_PACKAGE} {GPU_PACKAGE} && '
    f'pip install "{GPU_PACKAGE}[cuda,cudnn]"'
)
"""In this order: installing this package installs ``onnxruntime``, and the two share a folder, so whichever
is removed takes files of the other along."""

COLLECT_EVERY = 64
"""Runs of a stage from one that lets go of staged memory to the next; what waits by then is some kilobytes."""

Providers = list[tuple[str, dict[str, str]]]


class OrtCudaEngine(Engine):
    """The CUDA provider."""

    name: ClassVar[str] = "ort-cuda"
    title: ClassVar[str] = "ONNX Runtime (CUDA)"
    preference: ClassVar[Preference | None] = Preference(3, "it has been accepted on a GPU", accepted=True)
    provider: ClassVar[str] = CUDA
    package: ClassVar[str] = CPU_PACKAGE
    install: ClassVar[str] = REPLACE
    runs_on: ClassVar[DeviceKind] = "cuda"
    graph_transforms: ClassVar[bool] = True
    # A captured copy reads the host's memory again at every launch, when somebody else may have it: on a GPU
    # the process crashed. onnxruntime's pull requests 32081 and 32121 tell of it.
    uncapturable: ClassVar[str] = (
        "ONNX Runtime's kernels copy from host memory that they give back after a run"
    )

    @classmethod
    def availability(cls, device: int = 0) -> Availability:
        found = super().availability(device)
        if not found.works:
            return found
        status, fix = cuda_status(), cls.install
        if _installed(CPU_PACKAGE) and _installed(GPU_PACKAGE):
            reason = f"{CPU_PACKAGE} and {GPU_PACKAGE} are both installed and overwrite each other's files"
        elif cls.provider not in library(cls.package).get_available_providers():
            reason = f"this build of onnxruntime has no {cls.provider}"
        else:
            try:
                name, _ = status.gpu(device)
            except EngineUnavailableError as error:
                reason, fix = error.message, error.fix
            else:
                if (problem := cls.missing_library()) is None:
                    return Availability(True, found.version, f"{name}, CUDA {status.driver}")
                reason, fix = problem
        return Availability(False, found.version, reason=reason, fix=fix)

    @classmethod
    def missing_library(cls) -> tuple[str, str] | None:
        """What else the provider needs and does not find, and the line that installs it."""
        return None

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        graph_hash(bundle, stage)  # raises where there is no graph
        session = self._session(bundle, stage, stream)
        return OrtGpuRunner(self.device, session, stage, self.options.device)

    def _session(self, bundle: Bundle, stage: Stage, stream: Stream) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.add_free_dimension_override_by_name(BATCH, bundle.manifest.batch)
        # What is no session's: a warning that the provider is not one of the plug-ins, once a session.
        ort.set_default_logger_severity(ERRORS_ONLY)
        # Without it a provider that fails to load, or lacks an operator, is a slow run on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        ort.preload_dlls()  # CUDA's and cuDNN's libraries out of pip's packages
        graph = str(bundle.graph_path(stage))
        providers = self.providers(bundle, stage, stream.handle)
        try:
            session = ort.InferenceSession(graph, options, providers=providers)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime cannot load stage {stage.name} on {self.provider}: {first_line(error)}",
                "Run mrsep-deploy doctor.",
            ) from error
        found = session.get_providers()
        if found[:1] != [self.provider]:
            raise EngineError(
                f"ONNX Runtime put stage {stage.name} on {found[0]}, not {self.provider}",
                "Run mrsep-deploy doctor.",
            )
        return session

    def providers(self, bundle: Bundle, stage: Stage, stream: int) -> Providers:
        """Providers in order of preference, each with its options, for a session on one stream."""
        options = {
            "device_id": str(self.options.device),
            "user_compute_stream": str(stream),
            "use_tf32": "0",
            # Every convolution is timed once, at a stage's first run; a song has hundreds of runs.
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": "1",
            # The shapes are static, so the arena never needs more than the first run took.
            "arena_extend_strategy": "kSameAsRequested",
            # The scheduler captures whole segments; a graph inside of a capture cannot be.
            "enable_cuda_graph": "0",
        }
        return [(CUDA, options)]


class OrtTensorRtEngine(OrtCudaEngine):
    """The TensorRT provider, which is built against one TensorRT; nodes it leaves go to CUDA's.

    It is TensorRT with a detour, so ``auto`` does not take it.
    """

    name: ClassVar[str] = "ort-trt"
    title: ClassVar[str] = "ONNX Runtime (TensorRT)"
    preference: ClassVar[Preference | None] = None
    provider: ClassVar[str] = TENSORRT

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        switch_off_tf32()

    @classmethod
    def missing_library(cls) -> tuple[str, str] | None:
        return load_tensorrt()

    def _session(self, bundle: Bundle, stage: Stage, stream: Stream) -> Any:
        with verified(self._folder(bundle, stage)):
            return super()._session(bundle, stage, stream)

    def _folder(self, bundle: Bundle, stage: Stage) -> Path:
        """A folder for each graph, batch, ONNX Runtime, GPU and driver: none meets an engine that is not its own."""
        status = cuda_status()
        name, _ = status.gpu(self.options.device)
        about = f"{library(self.package).__version__} {name} {status.release or status.driver}"
        kept = f"{graph_hash(bundle, stage)[:32]}-{bundle.manifest.batch}-{sha256(about.encode()).hexdigest()[:16]}"
        return make_folder(paths.cache_dir("ort-trt") / kept, paths.SET_HOME)

    def providers(self, bundle: Bundle, stage: Stage, stream: int) -> Providers:
        folder = str(self._folder(bundle, stage))
        options = {
            "device_id": str(self.options.device),
            "user_compute_stream": str(stream),
            "trt_fp16_enable": "0",
            "trt_int8_enable": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
            # Branches have streams of their own.
            "trt_auxiliary_streams": "0",
            "trt_cuda_graph_enable": "0",
        }
        return [(TENSORRT, options), *super().providers(bundle, stage, stream)]


class OrtGpuRunner(Closable, OrtRunner):
    """A runner whose session was made for its stream, and uses it when it goes."""

    def __init__(self, owner: Device, session: Any, stage: Stage, index: int) -> None:
        OrtRunner.__init__(self, session, stage, index)
        Closable.__init__(self, owner)
        self.runs = 0
        self.enqueueing, self.collecting = _run_options("1"), _run_options("0")

    def run_options(self) -> Any:
        """Those of a run that only enqueues, but now and then of one that waits for the stream.

        Kernels stage small arrays in pinned memory, which ONNX Runtime gives back only after a run that waits.
        """
        self.runs += 1
        return self.enqueueing if self.runs % COLLECT_EVERY else self.collecting

    def _release(self) -> None:
        self.binding = self.session = None


def _run_options(enqueue_only: str) -> Any:
    import onnxruntime as ort

    options = ort.RunOptions()
    # The work is enqueued and no more: events order it, and the host waits once a segment.
    options.add_run_config_entry("disable_synchronize_execution_providers", enqueue_only)
    return options


def _installed(distribution: str) -> bool:
    """Whether a distribution is installed in the folder that ``onnxruntime`` is imported from.

    One that lies in another folder is hidden by it, and disturbs nobody.
    """
    spec = importlib.util.find_spec(CPU_PACKAGE)
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    folder = os.path.realpath(str(found.locate_file(CPU_PACKAGE)))
    return spec is not None and folder in map(os.path.realpath, spec.submodule_search_locations or [])
