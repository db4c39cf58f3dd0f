"""Diagnoses whether this machine can separate music: every engine's own check, and known conflicts.

>>> from mrsep_deploy.doctor.diagnosis import examine
>>> examine().healthy                                                        # doctest: +SKIP
True
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, cast

from mrsep_deploy import __version__
from mrsep_deploy.doctor.conflicts import Finding, find_conflicts
from mrsep_deploy.doctor.environment import Environment, look
from mrsep_deploy.engines import ENGINE_NAMES, engine_class
from mrsep_deploy.engines.choice import preferred
from mrsep_deploy.engines.contract import Availability, Engine, EngineOptions
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.precision.names import Precision


@dataclass(frozen=True)
class EngineReport:
    """The result of one engine's own check.

    Attributes:
        precisions: what it computes in here, in the order of its own list.
        emulated: those of them that are not its own arithmetic.
    """

    name: str
    title: str
    availability: Availability
    precisions: tuple[Precision, ...] = ()
    emulated: tuple[Precision, ...] = ()

    @property
    def described(self) -> str:
        """``fp32, bf16; emulated fp16``."""
        own = ", ".join(each for each in self.precisions if each not in self.emulated)
        return f"{own}; emulated {', '.join(self.emulated)}" if self.emulated else own


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Attributes:
        engines: all there are, working or not.
        auto: the one that ``--engine auto`` takes; empty if none works.
        reason: why that one.
        findings: conflicts and notes, the worst first.
    """

    engines: tuple[EngineReport, ...]
    auto: str
    reason: str
    findings: tuple[Finding, ...]
    environment: Environment

    @property
    def healthy(self) -> bool:
        """At least one engine works."""
        return any(engine.availability.works for engine in self.engines)

    def to_plain(self) -> dict[str, Any]:
        """Returns everything as JSON has it."""
        env = self.environment
        tree = {
            "version": __version__,
            "healthy": self.healthy,
            "auto": self.auto or None,
            "auto_reason": self.reason or None,
            "engines": [
                {
                    "name": each.name,
                    "title": each.title,
                    **vars(each.availability),
                    "precisions": each.precisions,
                    "emulated": each.emulated,
                }
                for each in self.engines
            ],
            "findings": self.findings,
            "machine": {
                "cores": env.cores,
                "budget": env.budget,
                "instructions": env.instructions,
                "cuda_driver": env.driver or None,
            },
            "folders": env.folders,
        }
        return cast("dict[str, Any]", plain(tree))


def examine(device: int = 0) -> Diagnosis:
    """Ask every engine and look at the environment. Never raises for what it finds.

    Args:
        device: index of the GPU that engines on CUDA are asked about.
    """
    environment = look()
    engines = tuple(_ask(name, device) for name in ENGINE_NAMES)
    works = {engine.name for engine in engines if engine.availability.works}
    auto = next((each for each in preferred() if each.name in works), None)  # as engines.choice takes it
    reason = auto.preference.reason if auto and auto.preference else ""
    findings = tuple(find_conflicts(environment))
    return Diagnosis(engines, auto.name if auto else "", reason, findings, environment)


def _ask(name: str, device: int) -> EngineReport:
    engine = engine_class(name)
    try:
        found = engine.availability(device)
    except Exception as error:  # one broken library must not hide the others
        found = Availability(False, reason=f"its check failed with {type(error).__name__}: {error}")
    precisions, emulated = _precisions(engine) if found.works else ((), ())
    return EngineReport(name, engine.title, found, precisions, emulated)


def _precisions(engine: type[Engine]) -> tuple[tuple[Precision, ...], tuple[Precision, ...]]:
    """What a working engine computes in on this machine, and what of it is an emulation."""
    found: list[Precision] = []
    emulated: list[Precision] = []
    for precision in engine.precisions:
        with contextlib.suppress(
            Exception
        ):  # this machine has none of it, or the library breaks: it is not listed
            made = engine(EngineOptions(precision=precision))
            found.append(precision)
            if made.emulation and precision != "fp32":
                emulated.append(precision)
    return tuple(found), tuple(emulated)
