"""Turns a request into bundles and the contenders of each."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mrsep_deploy.bench.contenders import OURS, Contender, demucs_has, label_of, opponent
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.registry import resolve
from mrsep_deploy.devices import cuda_status
from mrsep_deploy.engines import ENGINE_NAMES, engine_class
from mrsep_deploy.errors import EngineUnavailableError, MrsepError, UsageError
from mrsep_deploy.inspection.inspect import is_checkpoint
from mrsep_deploy.precision.names import AskedPrecision, arithmetic
from mrsep_deploy.precision.requested import chosen_plan, in_precision
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.runtime.schedule import Mode


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        models: bundles, registered names and checkpoints; none for the default.
        engines: none for all that work here, but for ``torch``, whose place is among ``against``.
        precisions: none for each bundle's own.
        modes: of scheduling.
        lanes: numbers of segments side by side; more than one only on a CPU.
        against: as :func:`opponent` reads them, the baseline first; None for what fits the machine and the model.
        threads: CPU threads, 0 for all.
        overlap: of segments in whole songs; by default the model's own.
        checkpoint: where the checkpoint of the bundles lies, if it has moved.
        batches: segments in one run; every bundle is opened at each.
        plan: for ``mixed``, the file of a precision plan.
    """

    models: Sequence[str] = ()
    engines: Sequence[str] = ()
    precisions: Sequence[AskedPrecision] = ()
    modes: Sequence[Mode] = ("sequential",)
    lanes: Sequence[int] = (1,)
    against: Sequence[str] | None = None
    threads: int = 0
    overlap: float | None = None
    checkpoint: Path | None = None
    batches: Sequence[int] = (1,)
    plan: Path | None = None

    @property
    def budget(self) -> int:
        return self.threads or cpu_budget()


@dataclass(frozen=True)
class Entry:
    """One bundle and who runs it.

    Attributes:
        key: what tables call it.
        bundle: in the precision it was given in.
        contenders: the baseline first.
        refused: those that cannot even be tried, and the error that says why.
        converted: the bundles of other precisions, by their path.
    """

    key: str
    bundle: Bundle
    contenders: tuple[Contender, ...]
    refused: tuple[tuple[Contender, MrsepError], ...] = field(default=())
    converted: Mapping[str, Bundle] = field(default_factory=dict)

    def bundle_of(self, contender: Contender) -> Bundle:
        """What a contender runs; for what runs no graphs, the bundle itself."""
        return self.converted.get(contender.bundle, self.bundle) if contender.engine else self.bundle


def plan(request: Request, folder: Path, report: Callable[[str], None] = lambda _what: None) -> list[Entry]:
    """Open every bundle and list its contenders; checkpoints are exported into ``folder``, and ``report`` is told so.

    Raises:
        UsageError: there is no model, a name is none, or the precision plan does not fit what is asked for.
        MrsepError: a bundle or checkpoint is not usable.
    """
    _check(request)
    engines = request.engines or working_engines()
    if not engines and request.against is not None and not request.against:
        raise UsageError("no engine works here and nothing was given to compare", "See: mrsep-deploy doctor")
    opened = [_opened(model, folder, report) for model in request.models or (None,)]
    bundles = [bundle.at_batch(batch) for bundle in opened for batch in request.batches]
    if "mixed" in request.precisions and any(b.manifest.precision == "float32" for b in bundles):
        chosen_plan("mixed", request.plan)
    return [
        _entry(key, bundle, engines, request) for key, bundle in zip(_keys(bundles), bundles, strict=True)
    ]


def _check(request: Request) -> None:
    """Raise ``UsageError`` for what is named twice, opponents without a Python, and plans that are none, or not for
    ``mixed``."""
    asked_against = [opponent(given, Contender("", OURS, "")) for given in request.against or ()]
    against = [contender.label for contender in asked_against]
    asked: tuple[Sequence[object], ...] = (
        request.engines, request.precisions, request.modes, request.lanes, against, request.batches,
    )  # fmt: skip
    for names in asked:
        twice = [name for name in names if list(names).count(name) > 1]
        if twice:
            raise UsageError(f"{twice[0]} is named twice", "Name it once.")
    if request.plan is not None and "mixed" not in request.precisions:
        given = f"--precision {','.join(request.precisions)}" if request.precisions else "no --precision"
        raise UsageError(
            f"a plan was given with {given}, expected --precision mixed", "Change it, or leave out the plan."
        )
    if request.plan is not None:
        chosen_plan("mixed", request.plan)


def working_engines() -> tuple[str, ...]:
    """All engines that work here, but for the reference."""
    names = (name for name in ENGINE_NAMES if name != "torch")
    return tuple(name for name in names if engine_class(name).availability().works)


def _opened(model: str | None, folder: Path, report: Callable[[str], None]) -> Bundle:
    """A bundle; a checkpoint is exported first."""
    if model is None or not is_checkpoint(model):
        return Bundle.open(resolve(model))
    from mrsep_deploy.export.api import default_name, require_extra

    require_extra("exporting a checkpoint")
    from mrsep_deploy.export.exporter import export_model
    from mrsep_deploy.export.load import load_model

    name = default_name(model)
    report(f"exporting {name}")
    target = folder / f"{len(list(folder.iterdir()))}-{name}"
    return export_model(load_model(model), name, target)


def _keys(bundles: Sequence[Bundle]) -> list[str]:
    """The bundles' names, with what tells them apart where they are the same."""
    names = [bundle.manifest.name for bundle in bundles]
    keys: list[str] = []
    for manifest in (bundle.manifest for bundle in bundles):
        key = name = manifest.name
        if names.count(name) > 1:
            key = f"{name} ({manifest.layout}, batch {manifest.batch}, {manifest.precision})"
        number = 2
        while key in keys:
            key = f"{name} {number}"
            number += 1
        keys.append(key)
    return keys


def _entry(key: str, bundle: Bundle, engines: Sequence[str], request: Request) -> Entry:
    manifest = bundle.manifest
    overlap = manifest.application.overlap if request.overlap is None else request.overlap
    against = request.against if request.against is not None else usual_opponents(manifest.model.family)
    base = Contender(
        "",
        OURS,
        str(bundle.path),
        batch=manifest.batch,
        threads=request.budget,
        overlap=overlap,
        checkpoint=None if request.checkpoint is None else str(request.checkpoint),
    )
    made = [opponent(given, base) for given in against]
    refused: list[tuple[Contender, MrsepError]] = []
    converted: dict[str, Bundle] = {}
    precisions: Sequence[AskedPrecision] = request.precisions or (arithmetic(manifest),)
    for engine, precision, mode, lanes in itertools.product(
        engines, precisions, request.modes, request.lanes
    ):
        contender = replace(
            base,
            label=label_of(engine, precision, mode, precisions, lanes),
            engine=engine,
            mode=mode,
            precision=precision,
            device=engine_class(engine).runs_on,
            lanes=lanes,
        )
        known = engine_class(engine).precisions
        try:
            if precision not in (*known, "mixed"):
                raise EngineUnavailableError(
                    f"engine {engine} has no precision {precision}, only {', '.join(known)}"
                )
            own = in_precision(bundle, precision, request.plan if precision == "mixed" else None)
        except MrsepError as error:
            refused.append((contender, error))
        else:
            converted[str(own.path)] = own
            source = str(bundle.path) if own is not bundle else ""
            made.append(replace(contender, bundle=str(own.path), source=source))
    return Entry(key, bundle, tuple(made), tuple(refused), converted)


def usual_opponents(family: str) -> tuple[str, ...]:
    """PyTorch as it is used on this machine, and the package demucs where it has such a model."""
    if importlib.util.find_spec("torch") is None:
        return ()
    if cuda_status().works:
        return ("torch-cuda", "torch-cuda-graph")
    return ("torch", "demucs") if demucs_has(family) else ("torch",)
