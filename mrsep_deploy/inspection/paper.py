"""The paper's tables: which models stand in them, and what fills their columns.

    1   HTDemucs, HTDemucs_n, _nf and _nn with the published defaults
    2   HTDemucs_n with 2, 3, 4 and 5 resolutions
    3   HTDemucs_n with 16, 24, 32 and 48 channels
    4   the same five branches, fused by weights, by a convolution, by a U-Net

The published defaults for an odd number of resolutions are powers of two around a window of 4096 samples: 3
(``_n``, ``_nn``) are 2048 to 8192, 5 (``_nf``, ``_dnf``) 1024 to 16384, 7 (``_2nn``) 512 to 32768. The shared
bottleneck works at the resolution of index ``K // 2``. Table 2 keeps that 4096 for even numbers too, so 2 are
2048 and 4096, 4 are 1024 to 8192: each row adds one window to the row before, and the bottleneck, with all its
tokens, stays the same.

Table 4 takes the branches of ``_nf`` (no waveform, no bottleneck, 24 channels), so that its rows differ in
nothing but the fusion; the weights are those of the paper's own form, one per resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.strict_json import MAX_BYTES, parse, raised_as, typed
from mrsep_deploy.inspection.complexity import configuration_cost
from mrsep_deploy.inspection.costs import ModelCost

Kind = TypeVar("Kind")

RESOLUTIONS: Mapping[int, tuple[int, ...]] = {
    2: (2048, 4096),
    3: (2048, 4096, 8192),
    4: (1024, 2048, 4096, 8192),
    5: (1024, 2048, 4096, 8192, 16384),
}
CHANNELS = (16, 24, 32, 48)
_BRANCHES_OF_NF: Mapping[str, object] = {
    "nfft_list": list(RESOLUTIONS[5]),
    "channels": 24,
    "norm_starts": 3,
    "dconv_mode": 0,
}


@dataclass(frozen=True)
class PaperModel:
    """A model of the tables. Rows with the same ``key`` are the same model, measured once."""

    key: str
    family: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """``rows`` are what stands in the first column, and the model."""

    title: str
    column: str
    rows: tuple[tuple[str, PaperModel], ...]


@dataclass(frozen=True)
class PaperRow:
    """A finished row. ``seconds`` for one segment by runtime, ``sdr`` in dB; empty or None if not known."""

    label: str
    key: str
    cost: ModelCost
    seconds: Mapping[str, float]
    sdr: float | None


def paper_tables() -> tuple[PaperTable, ...]:
    """The four tables."""
    n = PaperModel("htdemucs_n", "htdemucs_n")
    nf = PaperModel("htdemucs_nf", "htdemucs_nf")
    families = (
        ("HTDemucs", PaperModel("htdemucs", "htdemucs")),
        ("HTDemucs_n", n),
        ("HTDemucs_nf", nf),
        ("HTDemucs_nn", PaperModel("htdemucs_nn", "htdemucs_nn")),
    )
    fusions = (
        ("weights", PaperModel("fusion_weights", "mrhdemucs", _BRANCHES_OF_NF)),
        ("convolution", nf),
        ("U-Net", PaperModel("fusion_unet", "htdemucs_dnf", _BRANCHES_OF_NF)),
    )
    return (
        PaperTable("Table 1: models", "model", families),
        PaperTable(
            "Table 2: HTDemucs_n, number of resolutions",
            "resolutions",
            tuple((f"{k} ({', '.join(map(str, sizes))})", _resolutions(k, n)) for k, sizes in RESOLUTIONS.items()),
        ),
        PaperTable(
            "Table 3: HTDemucs_n, channels of the first layer",
            "channels",
            tuple((str(width), _width(width, n)) for width in CHANNELS),
        ),
        PaperTable("Table 4: fusion of five spectrogram branches", "fusion", fusions),
    )  # fmt: skip


def _resolutions(number: int, default: PaperModel) -> PaperModel:
    if number == 3:
        return default
    return PaperModel(f"resolutions_{number}", "htdemucs_n", {"nfft_list": list(RESOLUTIONS[number])})


def _width(channels: int, default: PaperModel) -> PaperModel:
    return (
        default
        if channels == 24
        else PaperModel(f"channels_{channels}", "htdemucs_n", {"channels": channels})
    )


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
