"""Run plans: how segments are run on this machine, in which mode and how many in parallel.

    cache/plans/NAME.json       what ``mrsep-deploy build`` has found fastest, and for what

What is fastest depends on the model, the engine, and the processor. ``build`` measures it
(:mod:`mrsep_deploy.separation.tuning`), and later runs of the same model on the same engine, processor and number of
threads use it. NAME is the beginning of the sha256 of that key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.engines.side_car import EngineKey, Entry, Keyed, read
from mrsep_deploy.errors import FormatError, UsageError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import explained, make_folder, write_file
from mrsep_deploy.files.strict_json import shown, written
from mrsep_deploy.files.typed_json import Name
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.precision.plan import Kept
from mrsep_deploy.process.machine import cpu_model
from mrsep_deploy.runtime.schedule import MODES, Mode

KIND = "run plan"
HEADER = {"format": f"mrsep-deploy {KIND}", "format_version": 1}
MAX_LANES = 1024
FIX = "Measure again: mrsep-deploy build"


@dataclass(frozen=True)
class RunPlan:
    """One way to run segments.

    Attributes:
        mode: how branches are scheduled within a segment.
        lanes: segments in parallel.
        precision: of the graphs' arithmetic.
        keep: nodes that stay in float32 beyond the rules, by stage, as in a precision plan.
        snr: in dB, of the worst stem that counts, which ``build`` has measured with them; None if it did not.
        measured: it is what ``build`` has found fastest here.
    """

    mode: Mode = "sequential"
    lanes: int = 1
    precision: Precision = "fp32"
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    snr: float | None = None
    measured: bool = False

    @property
    def title(self) -> str:
        """For people: ``sequential``, ``4 segments side by side``."""
        side_by_side = f"{self.lanes} segments side by side"
        how = self.mode if self.lanes == 1 else side_by_side
        if self.lanes > 1 and self.mode != "sequential":
            how = f"{side_by_side}, {self.mode}"
        return f"{how}; {', '.join(self.keep)} in float32" if self.keep else how


@dataclass(frozen=True)
class _File(Keyed):
    model: Name
    mode: Mode
    lanes: Annotated[int, Meta(ge=1, le=MAX_LANES)]
    precision: Precision
    keep: Kept = field(default_factory=dict)
    snr: float | None = None


def run_plan(bundle: Bundle, engine: Engine, mode: Mode | None, lanes: int) -> RunPlan:
    """What was asked for; where nothing was, what was measured here, or else one segment, sequentially.

    Args:
        mode: None where none was asked for.
        lanes: 0 where none were asked for.

    Raises:
        UsageError: there is no such mode, or not so many lanes.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"there is no mode {mode!r}", f"Choose one of {', '.join(MODES)}.")
    if not 0 <= lanes <= MAX_LANES:
        raise UsageError(
            f"{lanes} segments side by side were asked for", f"Give 0 (measured) to {MAX_LANES}."
        )
    asked = RunPlan(mode or "sequential", lanes or 1, engine.options.precision)
    measured = measured_plan(bundle, engine)
    if measured is None or not (mode or lanes):
        return measured or asked
    return replace(asked, keep=measured.keep, snr=measured.snr)


def measured_plan(bundle: Bundle, engine: Engine) -> RunPlan | None:
    """What ``build`` has found for this bundle, engine, processor and number of threads.

    A damaged file, or one that another version wrote, is passed over: nothing usable was measured.
    """
    if engine.device.kind != "cpu":
        return None
    wanted = _key(bundle, engine)
    path = plans_dir() / f"{wanted.name}.json"
    try:
        key, _, plan = _read(path)
    except (OSError, FormatError):
        return None
    if key != wanted:
        return None
    with suppress(OSError):
        os.utime(path)  # pruning goes by the last use
    return plan


def keep_plan(bundle: Bundle, engine: Engine, plan: RunPlan) -> None:
    """Write a plan where :func:`measured_plan` looks.

    Raises:
        OutputError: the cache cannot be written.
    """
    key = _key(bundle, engine)
    content = _File(
        key, bundle.manifest.name, plan.mode, plan.lanes, engine.options.precision, plan.keep, plan.snr
    )
    folder = make_folder(plans_dir(), paths.SET_HOME)
    write_file(folder / f"{key.name}.json", written(HEADER, content))


def stored_plans() -> list[Entry]:
    """Every plan in the cache, by the time of last use; damaged ones say why."""
    found = []
    for path in plans_dir().glob("*.json"):
        entry = Entry.of(path)
        if entry is None:
            continue
        entry = replace(entry, details={"model": "", "stage": KIND})
        try:
            key, model, plan = _read(path)
            found.append(replace(entry, key=key, details={"model": model, "stage": f"{KIND}: {plan.title}"}))
        except (OSError, FormatError) as error:
            found.append(entry.failed(error))
    return sorted(found, key=lambda entry: (entry.used, entry.name))


def prune_plans(older_than: timedelta | None, everything: bool) -> tuple[int, int]:
    """Delete damaged plans, and more if asked for; returns how many, and their bytes.

    Raises:
        OutputError: a file cannot be deleted.
    """
    doomed = [entry for entry in stored_plans() if entry.is_doomed(older_than, everything)]
    with explained(plans_dir()):
        for entry in doomed:
            (plans_dir() / f"{entry.name}.json").unlink(missing_ok=True)
    return len(doomed), sum(entry.bytes for entry in doomed)


def plans_dir() -> Path:
    """The folder of the plans; it need not exist."""
    return paths.cache_dir("plans")


def _read(path: Path) -> tuple[EngineKey, str, RunPlan]:
    """Key, name of the model, and plan; raises OSError or FormatError."""
    found = read(path, HEADER, _File, KIND, FIX)
    key, precision = found.key, found.precision
    if precision != key.precision:
        expected = f"the key's, {key.precision}"
        raise FormatError(f"{KIND}.precision is {shown(precision)}, expected {expected}", FIX)
    plan = RunPlan(found.mode, found.lanes, precision, found.keep, found.snr, measured=True)
    return key, found.model, plan


def _key(bundle: Bundle, engine: Engine) -> EngineKey:
    return EngineKey(
        graph=bundle.digest,
        engine=engine.name,
        library=engine.availability(engine.options.device).version,
        target=cpu_model(),
        driver="",
        precision=engine.options.precision,
        batch=bundle.manifest.batch,
        options={"threads": engine.options.budget},
    )
