"""How fast bundles run segments of real music, against PyTorch on the same threads.

    python benchmarks/run_speed.py --model trained --engines ort,openvino --modes sequential,concurrent

    ENGINE [concurrent]  the bundle, one batch of segments from mix to stems, transforms included
    torch                the same model as this package's reference modules, eager
    demucs               the published class, eager (HTDemucs only)

Contenders take turns on the same segment, in another order and with another segment every round, so that
a slow moment of the machine meets all of them. A ratio is that of one round's two times; its range over
the rounds says how far to believe it. Then each engine separates a stretch of the song with a trace: what
of the time no stage ran, and what of it was no call of the engine. Writes
``benchmarks/results/run_speed_MODEL.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import songs, trained_htdemucs
from machine_info import load_average, machine_info, write_result
from numpy.typing import NDArray

from mrsep_deploy.deviation import Deviation
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import LoadedModel, load_model, untrained_model
from mrsep_deploy.machine import cpu_budget
from mrsep_deploy.schedule import Mode
from mrsep_deploy.separator import Separator
from mrsep_deploy.timeline import overhead

Samples = NDArray[np.float32]
Contender = Callable[[Samples], NDArray[Any]]

MODELS = ("trained", "htdemucs_n", "mrhdemucs")
SONG = "chaos_god"  # the one with vocals
SEED = 0
TRACED = 8  # segments


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    threads = options.threads or cpu_budget()
    machine = machine_info()
    torch.set_num_threads(threads)
    loaded = (
        load_model(trained_htdemucs()) if options.model == "trained" else untrained_model(options.model, SEED)
    )
    length = loaded.config.segment_samples
    music = normalised_song((options.rounds + 2) * length)
    batches = batches_of(music, length, options.batch)
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(torch.inference_mode())
        export = ExportOptions(layout=options.layout, batch=options.batch)
        bundle = export_model(loaded, options.model, Path(work) / "bundle", export)
        separators = {
            engine if mode == "sequential" else f"{engine} {mode}": stack.enter_context(
                Separator(bundle, engine=engine, mode=mode, threads=threads, trace=True)
            )
            for engine in options.engines
            for mode in options.modes
        }
        contenders = _contenders(options.model, loaded, separators)
        outputs = {name: run(batches[0]).copy() for name, run in contenders.items()}
        times = interleaved(contenders, batches[1:], options.rounds)
        shares = {name: outside(separator, music, length) for name, separator in separators.items()}
    path = write_result(
        f"run_speed_{options.model}",
        {
            "machine": machine,
            "load_after": load_average(),
            "model": options.model,
            "music": SONG,
            "layout": options.layout,
            "batch": options.batch,
            "threads": threads,
            "segment_seconds": round(length / loaded.config.samplerate, 3),
            "rounds": options.rounds,
            "seconds": {name: spread(values) for name, values in times.items()},
            "times_faster": {
                f"{name} than {other}": ratio(times[other], times[name])
                for name in separators
                for other in times
                if other != name
            },
            "share_of_time": shares,
            "snr_against_torch": {
                name: round(Deviation.between(value, outputs["torch"]).snr, 1)
                for name, value in outputs.items()
                if name != "torch"
            },
        },
    )
    print(path.read_text(encoding="utf-8"))


def normalised_song(samples: int) -> Samples:
    """The loudest stretch tells nothing new: the song from its start, ``[2, samples]``, as models get it."""
    song = next(song for song in songs() if song.name == SONG).read()
    song = np.tile(song, (1, -(-samples // song.shape[1])))[:, :samples]
    level = song.mean(0)
    return np.ascontiguousarray((song - level.mean()) / level.std(), np.float32)


def batches_of(music: Samples, length: int, batch: int) -> list[Samples]:
    """Batches ``[B, 2, length]`` of neighbouring segments; batch ``i`` begins with segment ``i``."""
    count = music.shape[1] // length
    segments = [music[:, i * length : (i + 1) * length] for i in range(count)]
    return [np.stack([segments[(i + k) % count] for k in range(batch)]) for i in range(count)]


def _contenders(model: str, loaded: LoadedModel, separators: Mapping[str, Separator]) -> dict[str, Contender]:
    contenders: dict[str, Contender] = {name: each.run_segments for name, each in separators.items()}
    contenders["torch"] = lambda mix: loaded.model(torch.from_numpy(mix)).numpy()
    if model == "trained":
        from demucs.states import load_model as load_published

        published = load_published(trained_htdemucs()).eval()
        contenders["demucs"] = lambda mix: published(torch.from_numpy(mix)).numpy()
    return contenders


def interleaved(
    contenders: Mapping[str, Contender], batches: Sequence[Samples], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every contender in every round. Each has already run once, to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        first = turn % len(names)
        mix = batches[turn % len(batches)]
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            contenders[name](mix)
            times[name].append(time.perf_counter() - began)
    return times


def outside(separator: Separator, music: Samples, length: int) -> dict[str, float]:
    """Shares of the time of a run over ``TRACED`` segments in which no stage ran, and no engine did."""
    trace = separator.scheduler.trace
    assert trace is not None
    graphs = {stage.name for stage in separator.manifest.stages if stage.kind == "graph"}
    trace.clear()
    began = time.perf_counter()
    for _ in separator.separate_blocks(lambda: [music[:, : round(TRACED * length * 0.75)]]):
        pass
    took = time.perf_counter() - began
    events = trace.events()
    return {
        "outside_stages": round(overhead(events, took), 4),
        "outside_engine_calls": round(overhead([e for e in events if e.stage in graphs], took), 4),
    }


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


def _names(text: str) -> list[str]:
    return text.split(",")


def _modes(text: str) -> list[Mode]:
    modes: dict[str, Mode] = {"sequential": "sequential", "concurrent": "concurrent"}
    return [modes[name] for name in text.split(",")]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="trained")
    parser.add_argument("--engines", type=_names, default=["ort"], help="comma-separated")
    parser.add_argument("--modes", type=_modes, default=["sequential"], help="comma-separated")
    parser.add_argument("--layout", choices=("split", "whole"), default="split")
    parser.add_argument("--batch", type=int, default=1, help="segments a run takes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
