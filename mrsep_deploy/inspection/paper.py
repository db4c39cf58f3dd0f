"""The tables of the papers behind the families: counted, filled with what was measured, and measured here."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from rich.console import Console

from mrsep_deploy.errors import UsageError
from mrsep_deploy.export.families import FAMILIES
from mrsep_deploy.export.families.family import PaperModel, PaperTable
from mrsep_deploy.files.parts import write_file
from mrsep_deploy.files.reading import read_start
from mrsep_deploy.files.strict_json import MAX_BYTES, parse, raised_as
from mrsep_deploy.files.typed_json import typed
from mrsep_deploy.inspection.complexity import configuration_cost
from mrsep_deploy.measuring.probe import probe_signal
from mrsep_deploy.measuring.rounds import clocked, race
from mrsep_deploy.process.machine import cpu_budget, cpu_model
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.terminal.tables import Table, optional, print_table

if TYPE_CHECKING:
    from mrsep_deploy.export.exporter import Progress

Kind = TypeVar("Kind")
Seconds = Mapping[str, Mapping[str, float]]
"""Seconds for one segment: by model key, then by runtime."""

ROUNDS = 5
ROUND_SECONDS = 60.0
"""No round of a model begins after so long: PyTorch takes minutes for a fusion over four or five resolutions."""
SEED = 0
TOOLS = ("torch", "onnxruntime", "numpy")

FILL_TIME = "Times: --measure measures them here (minutes each), --times FILE takes them from a results file."
FILL_SDR = 'SDR: --sdr FILE takes it from a file, {"htdemucs_n": dB, ...}; the keys are those of --json.'


def paper_tables() -> tuple[PaperTable, ...]:
    """Returns the tables of all families."""
    found: dict[str, PaperTable] = {}
    for table in (table for family in FAMILIES.values() for table in family.paper_tables()):
        before = found.get(table.title)
        found[table.title] = replace(table, rows=before.rows + table.rows) if before else table
    return tuple(found.values())


def paper_models() -> dict[str, PaperModel]:
    """Returns every model of the tables once, by its key."""
    return {model.key: model for table in paper_tables() for _, model in table.rows}


def filled_tables(seconds: Seconds, sdr: Mapping[str, float]) -> list[dict[str, Any]]:
    """Counts every model, and puts what was measured elsewhere beside it.

    Returns:
        The tables as plain values: numbers unrounded, None where nothing is known. The first value of a row is the
        one that the table's rows differ in.
    """
    costs = {key: configuration_cost(model.family, model.arguments) for key, model in paper_models().items()}
    return [
        {
            "title": table.title,
            "rows": [
                {
                    table.column: label,
                    "key": model.key,
                    "segment_seconds": costs[model.key].segment,
                    "flops": costs[model.key].flops,
                    "macs": costs[model.key].macs,
                    "parameters": costs[model.key].parameters,
                    "activations": costs[model.key].activations,
                    "seconds": dict(seconds.get(model.key, {})),
                    "sdr_db": sdr.get(model.key),
                    "configuration": asdict(model),
                }
                for label, model in table.rows
            ],
        }
        for table in paper_tables()
    ]


def print_paper(screen: Console, filled: Sequence[Mapping[str, Any]]) -> None:
    """Prints every table, then what fills the cells that are empty."""
    every = [row for table in filled for row in table["rows"]]
    # in order of appearance
    runtimes = list({name: None for row in every for name in row["seconds"]}) or ["torch", "ort"]
    numbers = ("FLOPs", "MACs", "parameters", *(f"time, {name}" for name in runtimes), "SDR")
    for table in filled:
        screen.print(table["title"], style="bold")
        column = next(iter(table["rows"][0]))
        cells = [
            [
                row[column],
                f"{row['flops'] / 1e9:.1f} G",
                f"{row['macs'] / 1e9:.1f} G",
                f"{row['parameters'] / 1e6:.2f} M",
                *(optional(row["seconds"].get(name), "{:.3f} s") for name in runtimes),
                optional(row["sdr_db"], "{:.2f} dB"),
            ]
            for row in table["rows"]
        ]
        print_table(screen, Table(table["title"], (column, *numbers), cells))
        screen.print()
    segments = sorted({row["segment_seconds"] for row in every})
    screen.print(
        f"For one segment of {' and '.join(f'{s:g}' for s in segments)} s, batch 1, four sources if a row names none; "
        "a FLOP count is twice the multiply-accumulates.",
        style="dim",
    )
    if any(name not in row["seconds"] for row in every for name in runtimes):
        screen.print(FILL_TIME, style="dim")
    if any(row["sdr_db"] is None for row in every):
        screen.print(FILL_SDR, style="dim")


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
        data = read_start(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", fix) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES} bytes, expected a short table", fix)
    with raised_as(UsageError):
        return typed(parse(data, str(path), fix), kind, str(path), fix)


def _require_keys(path: Path, found: Mapping[str, object]) -> None:
    """Refuses a model that stands in no table: its figures would silently go nowhere."""
    known = paper_models()
    unknown = [key for key in found if key not in known]
    if unknown:
        raise UsageError(
            f"{path} names {unknown[0]!r}, which stands in no table", f"Models: {', '.join(known)}."
        )


def measure(models: Mapping[str, PaperModel], path: Path | None, progress: Progress) -> Seconds:
    """Measures seconds for one segment of every model with random weights, with PyTorch eager and ONNX Runtime.

    How fast a model runs does not depend on what it has learnt.

    Args:
        models: by key.
        path: where times are kept: what it holds already is not measured again, and every model is added as
            soon as it is measured. None keeps nothing.
        progress: called with what happens now, how many models are done and how many there are.

    Raises:
        UsageError: the file at ``path`` was measured on another machine, or holds no times.
        OutputError: it cannot be written.
    """
    # times under other conditions do not belong into one table
    conditions: dict[str, object] = {
        "cpu": cpu_model(),
        "cores": cpu_budget(),
        "system": f"{platform.system()} {platform.machine()}",
        "rounds": ROUNDS,
        **{tool: importlib.metadata.version(tool) for tool in TOOLS},
    }
    found: dict[str, Mapping[str, float]] = {}
    if path is not None and path.exists():
        seconds, before = read_times(path)
        if before != conditions:
            raise UsageError(
                f"the times in {path} were measured on another machine or with other versions, "
                f"expected {', '.join(f'{k} {v}' for k, v in conditions.items())}",
                "Give a new file with --times FILE, or show the old one without --measure.",
            )
        found.update(seconds)
    for done, (key, model) in enumerate(models.items()):
        progress(f"measuring {key}", done, len(models))
        if key in found:
            continue
        found[key] = seconds_of(model)
        if path is not None:
            text = json.dumps({"conditions": conditions, "seconds": found}, indent=2) + "\n"
            write_file(path, text.encode())
    return found


def seconds_of(model: PaperModel) -> dict[str, float]:
    """Medians of up to ``ROUNDS`` runs on a music-like segment, both runtimes in turn after one warm-up run."""
    import torch

    from mrsep_deploy.export.exporter import ExportOptions, export_model
    from mrsep_deploy.export.load import untrained_model

    loaded = untrained_model(model.family, SEED, **model.arguments)
    audio, threads, before = loaded.audio, cpu_budget(), torch.get_num_threads()
    mix = probe_signal(audio.channels, audio.segment_samples, audio.sample_rate)[None]
    tensor = torch.from_numpy(mix)
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-paper-") as folder:
        bundle = export_model(loaded, model.key, Path(folder) / "bundle", ExportOptions())
        with Separator(bundle, engine="ort", threads=threads) as separator, torch.inference_mode():
            contenders = {
                "torch": clocked(lambda _turn: loaded.model(tensor)),
                "ort": clocked(lambda _turn: separator.run_segments(mix)),
            }
            torch.set_num_threads(threads)
            try:
                found = race(contenders, ROUNDS, seconds=ROUND_SECONDS, through=(Exception,))
            finally:
                torch.set_num_threads(before)
    if found.interrupted:
        raise KeyboardInterrupt
    return {name: round(statistics.median(values), 4) for name, values in found.times.items()}
