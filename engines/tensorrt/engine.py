"""TensorRT (``trt``) and TensorRT for RTX (``trt-rtx``) on NVIDIA GPUs.

A stage is built once and kept in the engine cache. Running takes the engine built last from a graph at the highest
optimisation level, whatever else it was built with, so what ``mrsep-deploy build`` was asked for is what runs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.interface import DeviceKind, Runner, Stream
from mrsep_deploy.engines.cache import CachedEngine, NewEngine
from mrsep_deploy.engines.contract import (
    Availability,
    BuildingEngine,
    BuildOptions,
    EngineOptions,
    Preference,
    Report,
    all_or_none,
    graph_hash,
)
from mrsep_deploy.engines.side_car import EngineKey
from mrsep_deploy.engines.tensorrt.build import build_plan, check_targets
from mrsep_deploy.engines.tensorrt.caches import RuntimeCache, TimingCache
from mrsep_deploy.engines.tensorrt.library import RTX, TRT, Flavour, Gpu, Library, find_gpu, find_library
from mrsep_deploy.engines.tensorrt.runner import LoadedEngine, NotLoadable, TensorRtRunner
from mrsep_deploy.errors import EngineError, EngineUnavailableError
from mrsep_deploy.precision.names import Precision, arithmetic

log = logging.getLogger(__name__)

DEFAULT_LEVEL = 3
"""The optimisation level of a build that names none (``IBuilderConfig::setBuilderOptimizationLevel``)."""


class TensorRtEngine(BuildingEngine):
    """TensorRT 10.9 and newer: builds for the GPU that is present, one stage at a time."""

    name: ClassVar[str] = "trt"
    flavour: ClassVar[Flavour] = TRT
    title: ClassVar[str] = TRT.title
    runs_on: ClassVar[DeviceKind] = "cuda"
    preference: ClassVar[Preference] = Preference(1, "TensorRT times its kernels on the very GPU")
    graph_transforms: ClassVar[bool] = True
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")
    # kernels are timed: two builds on one GPU would measure each other
    parallel_builds: ClassVar[bool] = False

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._unkept: dict[str, CachedEngine] = {}

    @classmethod
    def availability(cls, device: int = 0) -> Availability:
        version = ""
        try:
            library = find_library(cls.flavour)
            version = library.version
            gpu = _usable_gpu(library, device)
        except EngineUnavailableError as error:
            return Availability(False, version, reason=error.message, fix=error.fix)
        return Availability(True, version, str(gpu))

    @functools.cached_property
    def library(self) -> Library:
        """The installed library (``EngineUnavailableError`` if there is none)."""
        return find_library(self.flavour)

    @functools.cached_property
    def gpu(self) -> Gpu:
        """The GPU to run on (``EngineUnavailableError`` if there is none)."""
        return _usable_gpu(self.library, self.options.device)

    def build(
        self, bundle: Bundle, stage: Stage, options: BuildOptions, *, fresh: bool = False
    ) -> CachedEngine:
        """Build a stage or take it from the cache; ``fresh`` builds in any case."""
        key, options = self._key(bundle, stage, options)
        timing = None

        def make() -> NewEngine:
            return build_plan(
                self.library, bundle.graph_bytes(stage), bundle.manifest, stage, self.options.precision,
                options, timing,
            )  # fmt: skip

        if self.library.flavour.portable:
            return self.cache.get_or_build(key, make, fresh=fresh)
        timing = TimingCache(self.cache.timing_file(self.library.title, f"{self.gpu} {self.gpu.driver}"))
        with self.device.current():  # there the builder times kernels
            return self.cache.get_or_build(key, make, fresh=fresh)

    def get_ready(self, bundle: Bundle, stages: Iterable[Stage], report: Report | None = None) -> None:
        """All engines before the first is loaded: kernels are timed on a GPU that does nothing else."""
        missing = [stage for stage in stages if self._newest(bundle, stage) is None]
        for number, stage in enumerate(missing):
            what = f"building the engine of stage {stage.name} with {self.library.title}"
            (report or _log_step)(what, number, len(missing))
            built = self.build(bundle, stage, BuildOptions())
            if self._newest(bundle, stage) is None:  # a disk that is full, or not to be written
                self._unkept[built.key.name] = built
        if missing and report is not None:
            report(f"built with {self.library.title}", len(missing), len(missing))

    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        return self.prepare_lanes(bundle, stage, threads, [stream])[0]

    def prepare_lanes(
        self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]
    ) -> list[Runner]:
        """Execution contexts of one engine, whose weights are loaded once."""
        with self.device.current():  # an engine belongs to the device that it is loaded on
            loaded = self._loaded(bundle, stage)
            return all_or_none(
                functools.partial(TensorRtRunner, loaded, self.device, each) for each in streams
            )

    def _loaded(self, bundle: Bundle, stage: Stage) -> LoadedEngine:
        key, _ = self._key(bundle, stage, BuildOptions())
        built = self._built_last(bundle, stage) or self._unkept.pop(key.name, None)
        built = built or self.build(bundle, stage, BuildOptions())
        try:
            return self._load(built, bundle, stage)
        except NotLoadable as error:
            if not built.from_cache:
                raise
            log.warning("the cached engine is built anew: %s", error)
        built = self.build(bundle, stage, BuildOptions(), fresh=True)
        return self._load(built, bundle, stage)

    def _load(self, built: CachedEngine, bundle: Bundle, stage: Stage) -> LoadedEngine:
        kernels = None
        if hasattr(self.library.module, "IRuntimeCache"):
            kernels = RuntimeCache(self.cache.kernels_file(built.key, f"{self.gpu} {self.gpu.driver}"))
        return LoadedEngine(self.library, built.data, bundle.manifest, stage, kernels)

    def _key(self, bundle: Bundle, stage: Stage, options: BuildOptions) -> tuple[EngineKey, BuildOptions]:
        """The cache's key, and the options with the targets spelled out; raises where no graph will do."""
        manifest, graph = bundle.manifest, graph_hash(bundle, stage)
        held, asked = arithmetic(manifest), self.options.precision
        if asked != held:
            raise EngineError(
                f"{manifest.name} holds {manifest.precision} graphs only, expected others for {asked}",
                f"Choose --precision {held}.",
            )
        targets = check_targets(self.library, options.targets)
        if not self.library.flavour.portable:
            target, driver = str(self.gpu), self.gpu.driver
        else:
            try:
                targets = targets or (self.gpu.capability,)
            except EngineUnavailableError as error:
                raise EngineUnavailableError(
                    f"no target was named, and {error.message}",
                    f"Name one or more of {','.join(self.library.capabilities())}, such as --target sm_86.",
                ) from error
            target, driver = ",".join(targets), ""
        chosen: dict[str, object] = {
            "optimization_level": options.optimization_level,
            "workspace": options.workspace,
            "tf32": False,
            "aux_streams": 0,
        }
        if self.library.user_allocation is not None:
            chosen["user_allocation"] = True
        version, batch = self.library.version, manifest.batch
        key = EngineKey(graph, self.name, version, target, driver, asked, batch, chosen)
        return key, replace(options, targets=targets)

    def _built_last(self, bundle: Bundle, stage: Stage) -> CachedEngine | None:
        """The engine of ``_newest``, if its bytes are whole."""
        key = self._newest(bundle, stage)
        return self.cache.find(key) if key else None

    def _newest(self, bundle: Bundle, stage: Stage) -> EngineKey | None:
        """The newest engine in the cache that runs this graph on this GPU, of the highest optimisation level."""
        wanted, _ = self._key(bundle, stage, BuildOptions())

        def serves(key: EngineKey) -> bool:
            targets = key.target.split(",") if self.library.flavour.portable else [key.target]
            return (
                wanted.target in targets
                and key.options.get("user_allocation") == wanted.options.get("user_allocation")
                and replace(key, target=wanted.target, options=wanted.options) == wanted
            )

        def effort(key: EngineKey) -> int:
            level = key.options.get("optimization_level")
            return level if isinstance(level, int) else DEFAULT_LEVEL

        return self.cache.newest(serves, effort)


class TensorRtRtxEngine(TensorRtEngine):
    """TensorRT for RTX: builds for named GPUs, also where there is none."""

    name: ClassVar[str] = "trt-rtx"
    flavour: ClassVar[Flavour] = RTX
    title: ClassVar[str] = RTX.title
    preference: ClassVar[Preference] = Preference(2, "TensorRT for RTX compiles for the GPU")
    parallel_builds: ClassVar[bool] = True


def _log_step(what: str, done: int, total: int) -> None:
    log.warning("%s, %d of %d", what, done + 1, total)


def _usable_gpu(library: Library, index: int) -> Gpu:
    gpu, known = find_gpu(index), library.capabilities()
    if known and gpu.capability not in known:
        raise EngineUnavailableError(
            f"{library.title} does not run on {gpu}, it runs on {', '.join(known)}", "Choose --engine trt."
        )
    return gpu
