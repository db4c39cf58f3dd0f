"""What an engine promises: to say whether it works here, and to turn a graph stage into a runner.

availability(device)                     works here? which version and device? if not, the line that fixes it
prepare(bundle, stage, threads, stream)  -> runner, built or loaded from the cache
runner(tensors)                          fills the stage's outputs from its inputs, on that stream
"""

from __future__ import annotations

import abc
import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices import open_cuda
from mrsep_deploy.devices.cpu import CpuDevice
from mrsep_deploy.devices.interface import Device, DeviceKind, Runner, Stream
from mrsep_deploy.engines.cache import CachedEngine, EngineCache
from mrsep_deploy.errors import EngineError, UsageError
from mrsep_deploy.precision.names import Accumulation, Precision
from mrsep_deploy.process.libraries import library
from mrsep_deploy.process.machine import cpu_budget


@dataclass(frozen=True)
class Availability:
    """Whether an engine works on this machine.

    Attributes:
        version: of the library, empty if it is not installed.
        device: what it would run on.
        reason, fix: why it does not work, and the one command or step that makes it work.
    """

    works: bool
    version: str = ""
    device: str = ""
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class EngineOptions:
    """How to run.

    Attributes:
        threads: threads one stage may use; 0 for all this process may use.
        checkpoint: for the torch engine, where the checkpoint lies if it has moved since the export.
        precision: of the graphs' arithmetic.
        accumulation: of products in float16, where an engine emulates them.
        device: index of the GPU, for engines on CUDA.
    """

    threads: int = 0
    checkpoint: Path | None = None
    precision: Precision = "fp32"
    device: int = 0
    accumulation: Accumulation = "float32"

    @property
    def budget(self) -> int:
        """CPU threads there are for all that runs at the same time."""
        return self.threads or cpu_budget()


@dataclass(frozen=True)
class Preference:
    """Where an engine stands among those that ``auto`` tries, the lowest rank first, and why it takes it.

    Attributes:
        accepted: ``benchmarks/gpu_acceptance.py`` has passed with it on a GPU. On GPUs these come first, however
            fast others may be.
    """

    rank: int
    reason: str
    accepted: bool = False


Report = Callable[[str, int, int], None]
Kind = TypeVar("Kind", bound="Engine")
Kept = TypeVar("Kept", bound=Runner)


class Engine(abc.ABC):
    """Base of all engines.

    Attributes:
        name, title: what users type after ``--engine``, and what people read.
        package, install: the Python package of its library, and what installs it.
        runs_on: the kind of its device.
        preference: for ``auto``; None for engines that have to be asked for.
        measured: ``build`` measures how segments run fastest on it (see ``runtime.plan``).
        graph_transforms: spectrograms, inverses and sums run as graphs on the engine's device too;
            otherwise the host computes them.
        precisions: what it can compute in.
        only_named: those of them that ``auto`` does not take it for, because it emulates what a processor may have.
        accumulations: what it can emulate products of float16 to accumulate in.
        emulation: how it computes graphs of lower precision, where that is not their own arithmetic; for
            people, empty where it is.
        uncapturable: why its runs cannot be captured in a CUDA graph; empty where they can.
        caches: what it builds is kept in the engine cache.
        cache: where, and another may be put in its place; None where it builds nothing.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[str]
    install: ClassVar[str]
    runs_on: ClassVar[DeviceKind] = "cpu"
    preference: ClassVar[Preference | None] = None
    measured: ClassVar[bool] = False
    graph_transforms: ClassVar[bool] = False
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    only_named: ClassVar[tuple[Precision, ...]] = ()
    accumulations: ClassVar[tuple[Accumulation, ...]] = ("float32",)
    emulation: str = ""
    uncapturable: ClassVar[str] = ""
    caches: ClassVar[bool] = False

    def __init__(self, options: EngineOptions) -> None:
        """Raises UsageError for a precision, or an accumulation, that the engine does not have."""
        if options.precision not in self.precisions:
            known = ", ".join(self.precisions)
            raise UsageError(f"engine {self.name} has no precision {options.precision}", f"Choose {known}.")
        if options.accumulation not in self.accumulations:
            raise UsageError(
                f"engine {self.name} emulates no accumulation in {options.accumulation}",
                "Choose --engine ort.",
            )
        self.options = options
        self._owner: Engine | None = None
        self.cache: EngineCache | None = EngineCache() if self.caches else None

    @classmethod
    def availability(cls, device: int = 0) -> Availability:
        """Look, without raising and without loading more than needed; here, whether ``package`` can be imported.

        Args:
            device: index of the GPU, for engines on CUDA.
        """
        try:
            version = str(library(cls.package).__version__)
        except (ImportError, OSError) as error:
            return Availability(False, reason=f"{cls.package} cannot be imported ({error})", fix=cls.install)
        return Availability(True, version.split("-")[0], f"CPU, {cpu_budget()} threads")

    @functools.cached_property
    def device(self) -> Device:
        """Where runners compute; opened at the first use."""
        if self._owner is not None:
            return self._owner.device
        return CpuDevice() if self.runs_on == "cpu" else open_cuda(self.options.device)

    def at_precision(self: Kind, precision: Precision) -> Kind:
        """The same engine for graphs of another precision: on this one's device, which only this one closes."""
        other = copy.copy(self)
        vars(other).pop("device", None)
        other.options, other._owner = replace(self.options, precision=precision), self
        return other

    def close(self) -> None:
        """Close the device, if it was ever opened. Idempotent."""
        if "device" in vars(self) and self._owner is None:
            self.device.close()

    def takes(self, stage: Stage) -> bool:
        """Whether it runs a stage, or the host does."""
        return stage.kind == "graph" or self.graph_transforms

    def get_ready(  # noqa: B027  (most engines build nothing)
        self, bundle: Bundle, stages: Iterable[Stage], report: Report | None = None
    ) -> None:
        """Build what preparing these stages needs and the cache lacks; before anything of a model is loaded.

        Here there is nothing to build.

        Args:
            report: told what happens now, how much is done and how much there is; by default a warning is logged.

        Raises:
            EngineError: a stage cannot be built; the message names stage and operator.
        """

    @abc.abstractmethod
    def prepare(self, bundle: Bundle, stage: Stage, threads: int, stream: Stream) -> Runner:
        """Make a graph stage ready to run.

        Args:
            threads: CPU threads this stage may use (engines on a GPU ignore it).
            stream: where it always runs; of this engine's device. It outlives the runner.

        Raises:
            EngineError: the stage cannot be built; the message names stage and operator.
        """

    def prepare_lanes(
        self, bundle: Bundle, stage: Stage, threads: int, streams: Sequence[Stream]
    ) -> list[Runner]:
        """Runners of one stage that may run at the same time, one for each stream; see :meth:`prepare`.

        Here each is prepared by itself. Engines whose runners can share weights override this.
        """
        return all_or_none(functools.partial(self.prepare, bundle, stage, threads, each) for each in streams)


def all_or_none(makers: Iterable[Callable[[], Kept]]) -> list[Kept]:
    """What the makers make; if one fails, the others' are closed before its error goes on, and streams may go."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(make())) for make in makers]
        stack.pop_all()
    return made


def graph_hash(bundle: Bundle, stage: Stage) -> str:
    """The sha256 of a stage's graph.

    Raises:
        EngineError: the bundle has no graph for it.
    """
    if stage.file is None:
        raise EngineError(
            f"{bundle.manifest.name} has no graph for stage {stage.name}, expected one for every stage",
            "Export the checkpoint again.",
        )
    return bundle.manifest.files[stage.file].sha256


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine from a graph.

    Attributes:
        targets: compute capabilities to build for, as ``sm_86``; empty for the device that is present.
        optimization_level: effort from 0 to 5; ``None`` for the library's default.
        workspace: bytes of scratch memory a layer may use; ``None`` for all there is.
    """

    targets: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace: int | None = None


class BuildingEngine(Engine):
    """An engine with a build step of its own, whose results are cached.

    Attributes:
        parallel_builds: several stages can be built at the same time.
    """

    parallel_builds: ClassVar[bool] = False
    caches: ClassVar[bool] = True
    cache: EngineCache

    @abc.abstractmethod
    def build(self, bundle: Bundle, stage: Stage, options: BuildOptions) -> CachedEngine:
        """Build a stage or take it from the cache.

        Raises:
            EngineError: it cannot be built; the message names stage and operator.
            UsageError: the targets are none that this engine builds for.
        """
