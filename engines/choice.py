"""Which engine runs: the one that was named, or the first of a known order that works here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mrsep_deploy.devices.interface import DeviceKind
from mrsep_deploy.engines import AUTO, ENGINE_NAMES, engine_class
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import EngineUnavailableError, UsageError


@dataclass(frozen=True)
class Choice:
    """An engine that works here, and why it is this one; ``reason`` is empty where it was named."""

    engine: Engine
    reason: str


def parse_device(name: str | None) -> tuple[DeviceKind | None, int]:
    """What ``cpu``, ``cuda`` or ``cuda:1`` stands for: the kind (None for any), and which GPU.

    Raises:
        UsageError: it is none of these.
    """
    if name is None:
        return None, 0
    if name == "cpu":
        return "cpu", 0
    found = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", name)
    if found is None:
        raise UsageError(f"there is no device {name!r}", "Choose cpu, cuda, or cuda:1 for the second GPU.")
    return "cuda", int(found[1] or 0)


def choose(name: str, options: EngineOptions, kind: DeviceKind | None = None) -> Choice:
    """Make an engine ready for use; ``auto`` takes the first of its order that works here.

    ``kind`` is that of the device it has to run on; None for any.

    Raises:
        EngineUnavailableError: the named engine does not work here (there is never a silent substitute), or no
            engine does.
        UsageError: there is no such engine, or it has no such precision, or it does not run on such a device.
    """
    return next(choices(name, options, kind))


def choices(
    name: str, options: EngineOptions, kind: DeviceKind | None = None, *, captured: bool = False
) -> Iterator[Choice]:
    """The engine that was named, or those that ``auto`` takes, one after the other, should one not start.

    Args:
        kind: of the device it has to run on; None for any.
        captured: runs are to be captured in CUDA graphs: ``auto`` leaves out engines whose runs cannot be, unless
            there are no others.

    Raises:
        EngineUnavailableError, UsageError: see :func:`choose`; only before the first.
    """
    if name != AUTO:
        yield Choice(_named(name, options, kind), "")
        return
    wanted = options.precision
    candidates = [each for each in preferred() if kind in (None, each.runs_on)]
    fitting = [each for each in candidates if wanted in each.precisions and wanted not in each.only_named]
    found = False
    for capturing in (True, False) if captured else (False,):
        for engine in fitting:
            able = engine.runs_on == "cuda" and not engine.uncapturable
            if (capturing and not able) or not engine.availability(options.device).works:
                continue
            found = True
            asked = AUTO if kind is None else f"{AUTO} on {kind}"
            assert engine.preference is not None
            hint = "; see mrsep-deploy doctor" if engine is preferred()[-1] else ""
            yield Choice(engine(options), f"{asked}: {engine.preference.reason}{hint}")
        if found:
            return
    # Message and fix are those of the engine that is easiest to install.
    easiest = fitting[-1].availability(options.device)
    where = "here" if kind is None else f"here on {kind}"
    raise EngineUnavailableError(
        f"no engine for {wanted} works {where}; {fitting[-1].name}: {easiest.reason}", easiest.fix
    )


def preferred() -> list[type[Engine]]:
    """The engines that ``auto`` tries: GPUs first, of these what has been accepted on one, then by rank."""
    classes = [engine_class(name) for name in ENGINE_NAMES]
    ranked = [
        (
            (
                each.runs_on == "cpu",
                not each.preference.accepted and each.runs_on != "cpu",
                each.preference.rank,
            ),
            each,
        )
        for each in classes
        if each.preference is not None
    ]
    return [each for _, each in sorted(ranked, key=lambda pair: pair[0])]


def require_runs_on(name: str, kind: DeviceKind | None) -> None:
    """Raises ``UsageError`` for an engine that does not run on such a device."""
    if kind not in (None, engine_class(name).runs_on):
        others = [each for each in ENGINE_NAMES if engine_class(each).runs_on == kind]
        raise UsageError(
            f"engine {name} does not run on {kind}",
            f"Choose one of {', '.join(others)}, or leave out --device.",
        )


def _named(name: str, options: EngineOptions, kind: DeviceKind | None) -> Engine:
    engine = engine_class(name)
    require_runs_on(name, kind)
    found = engine.availability(options.device)
    if not found.works:
        raise EngineUnavailableError(f"engine {name} does not work here: {found.reason}", found.fix)
    return engine(options)
