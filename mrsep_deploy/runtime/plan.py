"""How segments are run on this machine: scheduled how, and how many side by side.

What is fastest depends on the model, the engine, and the processor; ``mrsep-deploy build`` measures it
(:mod:`mrsep_deploy.separation.tuning`) and leaves what won in the engine cache, where every run finds it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.cache import EngineCache, NewEngine
from mrsep_deploy.engines.contract import Engine
from mrsep_deploy.engines.side_car import EngineKey
from mrsep_deploy.errors import FormatError, UsageError
from mrsep_deploy.files.strict_json import Record, parse
from mrsep_deploy.process.machine import cpu_model
from mrsep_deploy.runtime.schedule import MODES, Mode

MAX_LANES = 1024
_FIX = "Measure again: mrsep-deploy build"


@dataclass(frozen=True)
class Manner:
    """One way to run segments.

    Attributes:
        mode: how branches are scheduled within a segment.
        lanes: segments side by side.
        measured: it is what ``build`` has found fastest here.
    """

    mode: Mode = "sequential"
    lanes: int = 1
    measured: bool = False

    @property
    def title(self) -> str:
        """For people: ``sequential``, ``4 segments side by side``."""
        side_by_side = f"{self.lanes} segments side by side"
        if self.lanes == 1:
            return self.mode
        return side_by_side if self.mode == "sequential" else f"{side_by_side}, {self.mode}"


def manner_of(bundle: Bundle, engine: Engine, mode: Mode | None, lanes: int) -> Manner:
    """What was asked for; where nothing was, what was measured here, or else one segment, sequentially.

    Args:
        bundle: what is run.
        engine: what runs it, with its threads.
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
    if mode is None and not lanes:
        return measured_manner(bundle, engine) or Manner()
    return Manner(mode or "sequential", lanes or 1)


def measured_manner(bundle: Bundle, engine: Engine) -> Manner | None:
    """What ``build`` has found for this bundle, engine, processor and number of threads."""
    if engine.device.kind != "cpu":
        return None
    found = EngineCache().find(_key(bundle, engine))
    if found is None:
        return None
    try:
        record = Record(parse(found.data.decode(), "manner", _FIX), "manner", _FIX, ("mode", "lanes"))
        return Manner(record.choice("mode", MODES), record.integer("lanes", 1, MAX_LANES), measured=True)
    except (FormatError, UnicodeDecodeError):  # of a version that wrote something else
        return None


def keep_manner(bundle: Bundle, engine: Engine, manner: Manner) -> None:
    """Leave it where :func:`measured_manner` looks.

    Raises:
        OutputError: the cache cannot be written.
    """
    plain = {name: value for name, value in asdict(manner).items() if name != "measured"}
    kept = NewEngine(
        json.dumps(plain).encode(), {"model": bundle.manifest.name, "stage": f"manner: {manner.title}"}
    )
    EngineCache(must_keep=True).get_or_build(_key(bundle, engine), lambda: kept, fresh=True)


def _key(bundle: Bundle, engine: Engine) -> EngineKey:
    return EngineKey(
        graph=bundle.digest,
        engine=engine.name,
        library=engine.availability().version,
        target=cpu_model(),
        driver="",
        precision=engine.options.precision,
        batch=bundle.manifest.batch,
        options={"threads": engine.options.budget, "kind": "manner"},
    )
