"""What each exact rewrite of the graphs is worth on each engine.

    python benchmarks/rewrite_gains.py --model trained --engines ort,openvino

Exports a model with all rewrites, without each one, and plain: the published modules through the same exporter
with no rewriting at all, as one graph. Then, an engine at a time, all of them take turns at segments of real
music. A gain is the time without a rewrite over the time with all, of the same round. The plain graphs are
not checked against PyTorch (they lose tens of dB, which is one reason for rewriting). Writes
``benchmarks/results/rewrite_gains_MODEL.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from machine_info import machine_info, write_result
from run_speed import MODELS, figures, load, rounded, write_song
from torch import nn

from mrsep_deploy.bench.contenders import OURS, Contender
from mrsep_deploy.bench.noise import noise_between, snapshot
from mrsep_deploy.bench.process import MeasuringProcess
from mrsep_deploy.bench.workloads import Workload, make_workloads
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.export import exporter
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.families import FAMILIES, family_of
from mrsep_deploy.export.families.demucs.family import Demucs
from mrsep_deploy.measuring.rounds import Turn, race
from mrsep_deploy.measuring.statistics import ratio_interval
from mrsep_deploy.process.machine import cpu_budget

ALL, PLAIN = "all", "plain"
DESCRIBED = {name: text for family in FAMILIES.values() for name, text in family.rewrites.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    machine = machine_info()
    threads = cpu_budget()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bundles = export_variants(options.model, options.bundles or work, options.rewrites)
        song = write_song(work / "song.wav")
        workload = make_workloads(bundles[ALL].manifest, song, (), work)[0]
        found = {
            engine: take_turns(engine, bundles, workload, options.rounds, threads, work)
            for engine in options.engines
        }
    path = write_result(
        f"rewrite_gains_{options.model}",
        {
            "machine": machine,
            "model": options.model,
            "threads": threads,
            "rounds": options.rounds,
            "rewrites": DESCRIBED,
            "engines": found,
        },
    )
    print(path.read_text(encoding="utf-8"))


def export_variants(model: str, folder: Path, chosen: Collection[str]) -> dict[str, Bundle]:
    """Bundles by what they do without: nothing, one rewrite, or all of them. Those that are there are taken.

    Rewrites that find nothing to do in the model are left out.
    """
    known = [name for name in applicable(model) if name in chosen]
    for name in (ALL, *known):
        if not (folder / name).exists():
            print(f"exporting {name if name == ALL else f'without {name}'}", flush=True)
            export_model(
                load(model), model, folder / name, ExportOptions(without=() if name == ALL else (name,))
            )
    if not (folder / PLAIN).exists():
        print("exporting plain", flush=True)
        with mock.patch.object(Demucs, "rewrite", _nothing), mock.patch.object(exporter, "require"):
            export_model(load(model), model, folder / PLAIN, ExportOptions(layout="whole"))
    return {name: Bundle.open(folder / name) for name in (ALL, *known, PLAIN)}


def applicable(model: str) -> tuple[str, ...]:
    """The rewrites that find something to do in a model."""
    loaded = load(model)
    return family_of(loaded.variant).applicable(loaded.model)


def _nothing(_family: Demucs, model: nn.Module, _enabled: Collection[str]) -> None:
    model.requires_grad_(False)


def take_turns(
    engine: str, bundles: dict[str, Bundle], workload: Workload, rounds: int, threads: int, work: Path
) -> dict[str, Any]:
    """Segments on one engine, every bundle in a process of its own."""
    home = work / f"home-{engine}"
    home.mkdir()
    with contextlib.ExitStack() as stack:
        processes: dict[str, MeasuringProcess] = {}
        for name, bundle in bundles.items():
            contender = Contender(name, OURS, str(bundle.path), engine, threads=threads)
            processes[name] = stack.enter_context(contextlib.closing(MeasuringProcess(contender, home)))
            processes[name].open(workload.path)
        own = lambda: sum(each.cpu_seconds for each in processes.values())  # noqa: E731
        turns = {name: _turn(process, workload) for name, process in processes.items()}
        before = snapshot(own())
        result = race(turns, rounds)
        noise = noise_between(before, snapshot(own()), result.times)
    if result.failed:
        raise SystemExit("; ".join(f"{name}: {error}" for name, error in result.failed.items()))
    if result.interrupted:
        raise SystemExit("interrupted: nothing is written")
    return {
        "noise": noise.plain(),
        "rounds_seconds": {name: rounded(times) for name, times in result.times.items()},
        "seconds": {name: figures(times) for name, times in result.times.items()},
        "gain": {
            name: {key: round(value, 4) for key, value in ratio_interval(times, result.times[ALL]).items()}
            for name, times in result.times.items()
            if name != ALL
        },
    }


def _turn(process: MeasuringProcess, workload: Workload) -> Turn:
    return lambda number: float(process.run(workload, number)["seconds"])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="trained")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["ort", "openvino"])
    parser.add_argument("--rewrites", type=lambda text: text.split(","), default=list(DESCRIBED))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bundles", type=Path, help="keep the exports here, or take those of an earlier run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
