"""OpenVINO on the CPU: ``--engine openvino``, with the extra ``mrsep-deploy[openvino]``."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest, Stage
from mrsep_deploy.devices.interface import Runner, Stream, Tensors
from mrsep_deploy.engines.cache import EngineCache, NewEngine
from mrsep_deploy.engines.contract import Engine, Preference, graph_hash
from mrsep_deploy.engines.side_car import EngineKey
from mrsep_deploy.errors import EngineError, first_line
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.process.interrupts import aside
from mrsep_deploy.process.libraries import library

DEVICE = "CPU"

log = logging.getLogger(__name__)


class OpenVinoEngine(Engine):
    """Compiles graphs with ``openvino`` and computes in float32 straight into the given buffers.

    Graphs of lower precision compute in float32 too: OpenVINO makes float32 of every tensor inside and takes
    out the casts, so that only weights, and tensors between stages, are as coarse as they say.

    Compiled stages are kept in the engine cache. OpenVINO's own cache finds a model by its path and time of
    change, so it would take a bundle that was exported again for the old one.
    """

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO (CPU)"
    package: ClassVar[str] = "openvino"
    install: ClassVar[str] = 'pip install "mrsep-deploy[openvino]"'
    preference: ClassVar[Preference] = Preference(4, "on a CPU it takes a little less time than ONNX Runtime")
    measured: ClassVar[bool] = True
    caches: ClassVar[bool] = True
    cache: EngineCache
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")
    emulation: str = "in float32 with rounded weights, so with less error than on a GPU"

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        return self.prepare_lanes(bundle, stage, threads, [stream])[0]

    def prepare_lanes(
        self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]
    ) -> list[Runner]:
        compiled = self._compiled(bundle, stage, self.settings(threads, len(streams)))
        return [OpenVinoRunner(compiled, bundle.manifest, stage) for _ in streams]

    def _compiled(self, bundle: Bundle, stage: Stage, settings: Mapping[str, object]) -> Any:
        """A stage out of the cache, or compiled and kept there."""
        if bundle.manifest.precision == "bfloat16":
            # 2026.2 compiles such graphs and computes something else
            raise EngineError(
                f"OpenVINO computes no bfloat16, found it in stage {stage.name}", "Choose --engine ort."
            )
        compiled: list[Any] = []

        def build() -> NewEngine:
            compiled.append(self._compile(bundle, stage, settings))
            data = io.BytesIO()
            compiled[0].export_model(data)
            return NewEngine(data.getvalue(), {"model": bundle.manifest.name, "stage": stage.name})

        key = self._key(bundle, stage)
        found = self.cache.get_or_build(key, build)
        if not compiled:
            try:
                compiled.append(aside(lambda: _core().import_model(found.data, DEVICE, settings)))
            except RuntimeError as error:
                log.warning("the cached %s is compiled anew: %s", stage.name, reason(error))
                self.cache.get_or_build(key, build, fresh=True)
        return compiled[0]

    def _compile(self, bundle: Bundle, stage: Stage, settings: Mapping[str, object]) -> Any:
        def compiled() -> Any:
            model = _core().read_model(bundle.graph_path(stage))
            # fixes the batch
            model.reshape({name: bundle.manifest.tensor(name).shape for name in stage.inputs})
            return _core().compile_model(model, DEVICE, settings)

        try:
            return aside(compiled)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile stage {stage.name}: {reason(error)}") from error

    def _key(self, bundle: Bundle, stage: Stage) -> EngineKey:
        """Threads and lanes are no part of it: they are set when a compiled stage is loaded."""
        properties = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES")
        return EngineKey(
            graph=graph_hash(bundle, stage),
            engine=self.name,
            library=_core().get_versions(DEVICE)[DEVICE].build_number,
            target=", ".join(str(_core().get_property(DEVICE, name)) for name in properties),
            driver="",
            precision=self.options.precision,
            batch=bundle.manifest.batch,
            options={name: str(value) for name, value in self.settings(0).items()},
        )

    def settings(self, threads: int, lanes: int = 1) -> dict[str, object]:
        """How a stage is compiled, as OpenVINO's properties; its streams share the weights."""
        return {
            # Where a CPU has bfloat16 units OpenVINO would compute in them.
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "NUM_STREAMS": str(lanes),
            "INFERENCE_NUM_THREADS": str(threads * lanes),
            # Stages that run side by side would be pinned to the same first cores.
            "ENABLE_CPU_PINNING": "NO",
            # Dense float32 arithmetic fills a core; a second thread on it only divides its caches.
            "ENABLE_HYPER_THREADING": "NO",
        }


@functools.cache
def _core() -> Any:
    """The one core of this process, made aside and kept to the end.

    The thread that makes OpenVINO's CPU plug-in gets a signal stack, and loses it when the plug-in goes. Where the
    main thread had made it and another let it go, the next signal, a Ctrl-C, ended the process by SIGSEGV.
    """

    def make() -> Any:
        core = library("openvino").Core()
        core.get_versions(DEVICE)  # loads the plug-in
        return core

    return aside(make)


class OpenVinoRunner(Runner):
    """One compiled stage, with one request that is bound anew at every run.

    Raises:
        EngineError: the graph's tensors are not those that the manifest declares.
    """

    def __init__(self, compiled: Any, manifest: Manifest, stage: Stage) -> None:
        self.stage = stage
        for names, ports in ((stage.inputs, compiled.inputs), (stage.outputs, compiled.outputs)):
            found = {port.any_name: (tuple(port.shape), port.element_type.to_dtype().name) for port in ports}
            wanted = {name: (manifest.tensor(name).shape, manifest.tensor(name).dtype) for name in names}
            if found != wanted:
                raise EngineError(f"the graph of stage {stage.name} has tensors {found}, expected {wanted}")
        self.compiled = compiled
        self.tensor = library("openvino").Tensor
        self.request = compiled.create_infer_request()

    def __call__(self, tensors: Tensors) -> None:
        try:
            for name in (*self.stage.inputs, *self.stage.outputs):
                view = borrowed(cast("NDArray[Any]", tensors[name]))
                self.request.set_tensor(name, self.tensor(view, shared_memory=True))
            # Without sharing, the results would be copied once more.
            self.request.infer(share_outputs=True)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed in stage {self.stage.name}: {reason(error)}") from error

    def close(self) -> None:
        self.request = self.compiled = None


def borrowed(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory without owning it: a request keeps its tensors until it is given others."""
    return np.asarray(SimpleNamespace(__array_interface__=array.__array_interface__))


def reason(error: Exception) -> str:
    """What went wrong, out of OpenVINO's message, which begins with places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return telling[0] if telling else first_line(error)
