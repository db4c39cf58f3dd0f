"""How fast a bundle runs a segment batch on ONNX Runtime, against PyTorch on the same threads.

    python benchmarks/run_speed.py --model trained --rounds 10 --threads 2

    ort       the bundle, one batch of segments from mix to stems, transforms on the host included
    torch     the same model as this package's reference modules, eager
    demucs    the published class, eager (HTDemucs only)

Contenders take turns, in another order every round, so that a slow moment of the machine meets all of
them. A ratio is that of one round's two times; its range over the rounds says how far to believe it.
Writes ``benchmarks/results/run_speed_MODEL.json``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import trained_htdemucs
from machine_info import load_average, machine_info, write_result
from numpy.typing import NDArray

from mrsep_deploy.deviation import Deviation
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import LoadedModel, load_model, untrained_model
from mrsep_deploy.export.probe import probe_signal
from mrsep_deploy.machine import cpu_budget
from mrsep_deploy.separator import Separator

Samples = NDArray[Any]
Contender = Callable[[], Samples]

MODELS = ("trained", "htdemucs_n", "mrhdemucs")
SEED = 0


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    threads = options.threads or cpu_budget()
    machine = machine_info()
    torch.set_num_threads(threads)
    loaded = (
        load_model(trained_htdemucs()) if options.model == "trained" else untrained_model(options.model, SEED)
    )
    config = loaded.config
    mix = probe_signal(options.batch, config.audio_channels, config.segment_samples, config.samplerate)
    with tempfile.TemporaryDirectory() as work:
        bundle = export_model(
            loaded,
            options.model,
            Path(work) / "bundle",
            ExportOptions(layout=options.layout, batch=options.batch),
        )
        with Separator(bundle, engine="ort", threads=threads) as separator, torch.inference_mode():
            contenders = _contenders(options.model, loaded, separator, mix)
            outputs = {name: run().copy() for name, run in contenders.items()}
            times = interleaved(contenders, options.rounds)
    path = write_result(
        f"run_speed_{options.model}",
        {
            "machine": machine,
            "load_after": load_average(),
            "model": options.model,
            "layout": options.layout,
            "batch": options.batch,
            "threads": threads,
            "segment_seconds": round(config.segment_samples / config.samplerate, 3),
            "rounds": options.rounds,
            "seconds": {name: spread(values) for name, values in times.items()},
            "times_faster": {
                f"ort than {name}": ratio(values, times["ort"])
                for name, values in times.items()
                if name != "ort"
            },
            "snr_against_torch": {
                name: round(Deviation.between(value, outputs["torch"]).snr, 1)
                for name, value in outputs.items()
                if name != "torch"
            },
        },
    )
    print(path.read_text(encoding="utf-8"))


def _contenders(model: str, loaded: LoadedModel, separator: Separator, mix: Samples) -> dict[str, Contender]:
    tensor = torch.from_numpy(mix)
    contenders: dict[str, Contender] = {
        "ort": lambda: separator.run_segments(mix),
        "torch": lambda: loaded.model(tensor).numpy(),
    }
    if model == "trained":
        from demucs.states import load_model as load_published

        published = load_published(trained_htdemucs()).eval()
        contenders["demucs"] = lambda: published(tensor).numpy()
    return contenders


def interleaved(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round. Each has already run once, to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - began)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Median and range of the rounds' own ratios."""
    return spread(list(np.divide(slower, faster).tolist()))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="trained")
    parser.add_argument("--layout", choices=("split", "whole"), default="split")
    parser.add_argument("--batch", type=int, default=1, help="segments a run takes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
