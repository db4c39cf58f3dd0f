"""The tables of the papers behind the families, and what fills their columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.families import FAMILIES
from mrsep_deploy.export.families.family import PaperModel, PaperTable
from mrsep_deploy.files.strict_json import MAX_BYTES, parse, raised_as
from mrsep_deploy.files.typed_json import typed
from mrsep_deploy.inspection.complexity import configuration_cost
from mrsep_deploy.inspection.costs import ModelCost

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class PaperRow:
    """A finished row. ``seconds`` for one segment by runtime, ``sdr`` in dB; empty or None if not known."""

    label: str
    key: str
    cost: ModelCost
    seconds: Mapping[str, float]
    sdr: float | None


def paper_tables() -> tuple[PaperTable, ...]:
    """The tables of all families."""
    return tuple(table for family in FAMILIES.values() for table in family.paper_tables())


def paper_models() -> dict[str, PaperModel]:
    """Every model of the tables once, by its key."""
    return {model.key: model for table in paper_tables() for _, model in table.rows}


Seconds = Mapping[str, Mapping[str, float]]
"""Seconds for one segment: by model key, then by runtime."""


def filled_tables(seconds: Seconds, sdr: Mapping[str, float]) -> list[tuple[PaperTable, list[PaperRow]]]:
    """Count every model, and put what was measured elsewhere beside it."""
    costs = {key: configuration_cost(model.family, model.arguments) for key, model in paper_models().items()}
    return [
        (
            table,
            [
                PaperRow(label, m.key, costs[m.key], seconds.get(m.key, {}), sdr.get(m.key))
                for label, m in table.rows
            ],
        )
        for table in paper_tables()
    ]


class _Times(msgspec.Struct):
    """A file of times; ``--measure --times FILE`` writes one."""

    seconds: dict[str, dict[str, Annotated[float, msgspec.Meta(gt=0)]]]
    conditions: dict[str, object] = {}


def read_sdr(path: Path) -> dict[str, float]:
    """Reads SDR in dB by model key: ``{"htdemucs_n": 8.1, ...}``.

    Raises:
        UsageError: it cannot be read, or a key or a value is not one of those.
    """
    found = _read(path, dict[str, float], "Give a JSON file of dB by model.")
    _require_keys(path, found)
    return found


def read_times(path: Path) -> tuple[dict[str, dict[str, float]], Mapping[str, object]]:
    """Reads seconds by model key and runtime, and the conditions that they were measured under.

    Raises:
        UsageError: it cannot be read, or holds no such times.
    """
    fix = "Write one with: mrsep-deploy complexity --paper --measure --times FILE"
    found = _read(path, _Times, fix)
    _require_keys(path, found.seconds)
    return found.seconds, found.conditions


def _read(path: Path, kind: type[Kind], fix: str) -> Kind:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes, expected a short table", fix)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", fix) from error
    with raised_as(UsageError):
        return typed(parse(text, str(path), fix), kind, str(path), fix)


def _require_keys(path: Path, found: Mapping[str, object]) -> None:
    """Refuses a model that stands in no table: its figures would silently go nowhere."""
    known = paper_models()
    unknown = [key for key in found if key not in known]
    if unknown:
        raise UsageError(
            f"{path} names {unknown[0]!r}, which stands in no table", f"Models: {', '.join(known)}."
        )
