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
from mrsep_deploy.engines.contract import Engine, EngineOptions, Preference, graph_hash
from mrsep_deploy.engines.openvino_pins import low_tensors, pinned
from mrsep_deploy.engines.side_car import EngineKey
from mrsep_deploy.errors import EngineError, EngineUnavailableError, first_line
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.process.interrupts import aside
from mrsep_deploy.process.libraries import library
from mrsep_deploy.process.machine import cpu_model

DEVICE = "CPU"
PRECISION = "INFERENCE_PRECISION_HINT"

log = logging.getLogger(__name__)


class OpenVinoEngine(Engine):
    """Compiles graphs with ``openvino`` and computes straight into the given buffers.

    bfloat16 is the processor's own: its units multiply in it and add up in float32, and what the graph of a bundle
    keeps in float32 stays so (see ``openvino_pins``). Graphs in float16 compute in float32: OpenVINO makes float32 of
    every tensor inside and takes out the casts, so that only weights, and tensors between stages, are as coarse as
    they say.

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
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
    emulation: str = "in float32 with rounded weights, so with less error than on a GPU"

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        if options.precision == "bf16":
            _require_bfloat16()
            self.emulation = ""

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        return self.prepare_lanes(bundle, stage, threads, [stream])[0]

    def prepare_lanes(
        self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]
    ) -> list[Runner]:
        compiled = self._compiled(bundle, stage, self.settings(threads, len(streams)))
        return [OpenVinoRunner(compiled, bundle.manifest, stage) for _ in streams]

    def _compiled(self, bundle: Bundle, stage: Stage, settings: Mapping[str, object]) -> Any:
        """A stage out of the cache, or compiled and kept there."""
        compiled: list[Any] = []

        def build() -> NewEngine:
            model, computes = self._model(bundle, stage)
            compiled.append(self._compile(model, bundle.manifest, stage, {**settings, PRECISION: computes}))
            data = io.BytesIO()
            compiled[0].export_model(data)
            about = {"model": bundle.manifest.name, "stage": stage.name, "computes": computes}
            return NewEngine(data.getvalue(), about)

        key = self._key(bundle, stage)
        found = self.cache.get_or_build(key, build)
        if not compiled:
            how = {**settings, PRECISION: found.details.get("computes", "f32")}
            try:
                compiled.append(aside(lambda: _core().import_model(found.data, DEVICE, how)))
            except RuntimeError as error:
                log.warning("the cached %s is compiled anew: %s", stage.name, reason(error))
                self.cache.get_or_build(key, build, fresh=True)
        return compiled[0]

    def _model(self, bundle: Bundle, stage: Stage) -> tuple[Any, str]:
        """The model to compile and what it computes in; in bfloat16 the float32 one, with what stays so marked."""
        try:
            model = aside(lambda: _core().read_model(bundle.graph_path(stage)))
            if self.options.precision != "bf16" or stage.kind != "graph":
                return model, "f32"
            twin, exact = _in_float32(bundle, stage)
            low = low_tensors(model)
            model = aside(lambda: _core().read_model(twin.graph_path(exact)))
            return (pinned(_core(), model, low), "bf16") if low else (model, "f32")
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot read stage {stage.name}: {reason(error)}") from error

    def _compile(self, model: Any, manifest: Manifest, stage: Stage, settings: Mapping[str, object]) -> Any:
        def compiled() -> Any:
            # fixes the batch
            model.reshape({name: manifest.tensor(name).shape for name in stage.inputs})
            return _core().compile_model(model, DEVICE, settings)

        try:
            return aside(compiled)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile stage {stage.name}: {reason(error)}") from error

    def _key(self, bundle: Bundle, stage: Stage) -> EngineKey:
        """Threads and lanes are no part of it: they are set when a compiled stage is loaded."""
        options = {name: str(value) for name, value in self.settings(0).items()}
        if self.options.precision == "bf16" and stage.kind == "graph":
            options["float32 graph"] = graph_hash(*_in_float32(bundle, stage))
        properties = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES")
        return EngineKey(
            graph=graph_hash(bundle, stage),
            engine=self.name,
            library=_core().get_versions(DEVICE)[DEVICE].build_number,
            target=", ".join(str(_core().get_property(DEVICE, name)) for name in properties),
            driver="",
            precision=self.options.precision,
            batch=bundle.manifest.batch,
            options=options,
        )

    def settings(self, threads: int, lanes: int = 1) -> dict[str, object]:
        """How a stage is compiled, as OpenVINO's properties; its streams share the weights."""
        return {
            # Where a CPU has bfloat16 units OpenVINO would compute in them unasked.
            PRECISION: "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "NUM_STREAMS": str(lanes),
            "INFERENCE_NUM_THREADS": str(threads * lanes),
            # Stages that run side by side would be pinned to the same first cores.
            "ENABLE_CPU_PINNING": "NO",
            # Dense float32 arithmetic fills a core; a second thread on it only divides its caches.
            "ENABLE_HYPER_THREADING": "NO",
        }


def _in_float32(bundle: Bundle, stage: Stage) -> tuple[Bundle, Stage]:
    """The bundle that has a stage's float32 graph, and the stage as it is there.

    Raises:
        EngineError: there is none.
    """
    twin = bundle.twin
    if twin is None:
        raise EngineError(
            f"{bundle.manifest.name} holds bfloat16 graphs alone, and OpenVINO makes its own from float32 ones",
            "Export the checkpoint again, or choose --engine ort.",
        )
    return twin, next(each for each in twin.manifest.stages if each.name == stage.name)


def bfloat16_units() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512-BF16 or AMX)."""
    return "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def _require_bfloat16() -> None:
    if not bfloat16_units():
        raise EngineUnavailableError(
            f"engine openvino has no precision bf16 here: {cpu_model()} has no bfloat16 units (AVX512-BF16 or AMX)",
            "Leave out --precision, or choose --engine ort, which emulates it.",
        )


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
