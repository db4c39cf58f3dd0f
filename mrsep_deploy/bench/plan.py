"""Turns a request into bundles and the contenders of each."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from mrsep_deploy.bench.contenders import AGAINST, OURS, Contender, class_in_demucs, label_of
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
        engines: names; none for all that work here, but for ``torch``, whose place is among ``against``.
        precisions: none for each bundle's own.
        modes: of scheduling.
        lanes: numbers of segments side by side; more than one only on a CPU.
        against: names out of :data:`AGAINST`, the baseline first; None for what fits the machine and the model.
        threads: CPU threads, 0 for all.
        overlap: of segments in whole songs; by default the model's own.
        checkpoint: where the checkpoint of the bundles lies, if it has moved.
        batches: segments at once that checkpoints are exported for, each; a bundle has its own.
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
    """Open every bundle and list its contenders.

    Args:
        request: what is asked for.
        folder: where checkpoints are exported to; exists.
        report: called with what happens now.

    Raises:
        UsageError: there is no model, a name is none, or the precision plan does not fit what is asked for.
        MrsepError: a bundle or checkpoint is not usable.
    """
    check_names(request)
    check_plan(request)
    engines = request.engines or working_engines()
    if not engines and request.against is not None and not request.against:
        raise UsageError("no engine works here and nothing was given to compare", "See: mrsep-deploy doctor")
    bundles = [
        bundle
        for model in request.models or (None,)
        for bundle in _opened(model, request.batches, folder, report)
    ]
    if "mixed" in request.precisions and any(b.manifest.precision == "float32" for b in bundles):
        chosen_plan("mixed", request.plan)
    return [
        _entry(key, bundle, engines, request) for key, bundle in zip(_keys(bundles), bundles, strict=True)
    ]


def check_names(request: Request) -> None:
    """Raise ``UsageError`` unless every engine and every opponent exists and is named once."""
    for engine in request.engines:
        engine_class(engine)
    for name in request.against or ():
        if name not in AGAINST:
            raise UsageError(
                f"there is nothing called {name!r} to compare with", f"Choose of {', '.join(AGAINST)}."
            )
    against = request.against or ()
    asked = (
        request.engines, request.precisions, request.modes, request.lanes, against, request.batches,
    )  # fmt: skip
    for names in cast("tuple[Sequence[object], ...]", asked):
        twice = [name for name in names if list(names).count(name) > 1]
        if twice:
            raise UsageError(f"{twice[0]} is named twice", "Name it once.")


def check_plan(request: Request) -> None:
    """Raise ``UsageError`` unless a plan that was given can be read, and ``mixed`` is among the precisions."""
    if request.plan is None:
        return
    if "mixed" not in request.precisions:
        given = f"--precision {','.join(request.precisions)}" if request.precisions else "no --precision"
        raise UsageError(
            f"a plan was given with {given}, expected --precision mixed", "Change it, or leave out the plan."
        )
    chosen_plan("mixed", request.plan)


def working_engines() -> tuple[str, ...]:
    """All engines that work here, but for the reference."""
    names = (name for name in ENGINE_NAMES if name != "torch")
    return tuple(name for name in names if engine_class(name).availability().works)


def _opened(
    model: str | None, batches: Sequence[int], folder: Path, report: Callable[[str], None]
) -> list[Bundle]:
    """A bundle; of a checkpoint one for every batch.

    Raises:
        UsageError: the bundle is of another batch than the one that was asked for.
    """
    if model is not None and is_checkpoint(model):
        return [_exported(model, batch, folder, report) for batch in batches]
    bundle = Bundle.open(resolve(model))
    own = bundle.manifest.batch
    if tuple(batches) not in ((1,), (own,)):
        raise UsageError(
            f"{bundle.manifest.name} is a bundle of batch {own}, --batch {','.join(map(str, batches))} was asked for",
            "Give the checkpoint, or bundles that were exported with --batch N.",
        )
    return [bundle]


def _exported(checkpoint: str, batch: int, folder: Path, report: Callable[[str], None]) -> Bundle:
    from mrsep_deploy.export.api import default_name, require_extra

    require_extra("exporting a checkpoint")
    from mrsep_deploy.export.exporter import export_model
    from mrsep_deploy.export.load import load_model

    name = default_name(checkpoint)
    report(f"exporting {name}, batch {batch}")
    target = folder / f"{len(list(folder.iterdir()))}-{name}"
    return export_model(load_model(checkpoint), name, target).at_batch(batch)


def _keys(bundles: Sequence[Bundle]) -> list[str]:
    """The bundles' names, with what tells them apart where they are the same."""
    names = [bundle.manifest.name for bundle in bundles]
    keys: list[str] = []
    for name, bundle in zip(names, bundles, strict=True):
        manifest = bundle.manifest
        key = name
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
        threads=request.budget,
        overlap=overlap,
        checkpoint=None if request.checkpoint is None else str(request.checkpoint),
    )
    made = [
        replace(base, label=name, opener=AGAINST[name], device="cuda" if "cuda" in name else "cpu")
        for name in against
    ]
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
        try:
            own = _converted(contender, bundle, request.plan)
        except MrsepError as error:
            refused.append((contender, error))
        else:
            converted[str(own.path)] = own
            made.append(replace(contender, bundle=str(own.path)))
    return Entry(key, bundle, tuple(made), tuple(refused), converted)


def _converted(contender: Contender, bundle: Bundle, plan: Path | None) -> Bundle:
    """The bundle in a contender's precision.

    Raises:
        EngineUnavailableError: its engine has no such precision.
        MrsepError: the bundle cannot become one.
    """
    known = engine_class(contender.engine).precisions
    if contender.precision not in (*known, "mixed"):
        raise EngineUnavailableError(
            f"engine {contender.engine} has no precision {contender.precision}, only {', '.join(known)}"
        )
    return in_precision(bundle, contender.precision, plan if contender.precision == "mixed" else None)


def usual_opponents(family: str) -> tuple[str, ...]:
    """PyTorch as it is used on this machine, and the package demucs where it has such a model."""
    if importlib.util.find_spec("torch") is None:
        return ()
    if cuda_status().works:
        return ("torch-cuda", "torch-cuda-graph")
    return ("torch", "demucs") if class_in_demucs(family) else ("torch",)
