"""Evaluate a checkpoint on held-out multitracks: SDR per source, of the mixture, of a baseline and of silence.

    python evaluate.py model.th STORE [--excerpt] [--json FILE]

``STORE`` holds the held-out songs; ``--excerpt`` adds the four-stem excerpt with vocals. The mixture is the
sum of the stems. SDR is over a whole song, ``10 log10(|s|^2 / |s - e|^2)``; the medians are over songs. Silence
has 0 dB, so a source with a mixture below 0 dB gains by being left out: what counts is SDR above 0 as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import baselines
import numpy as np
import torch
from material import four_stem_excerpt
from measures import sdr
from numpy.typing import NDArray
from store import SAMPLE_RATE, SOURCES, read_entries

from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.load import load_model
from mrsep_deploy.separation.segments import SONG_EPS, OverlapAdd, SongStatistics, cut_segments, stride_of

OVERLAP = 0.25
Stems = dict[str, NDArray[np.float32]]


@torch.inference_mode()
def separate(model: SeparationModel, mixture: NDArray[np.float32]) -> Stems:
    """A song ``[2, samples]`` into its stems, by segments as a bundle does it."""
    config = model.config
    segment, song = config.segment_samples, SongStatistics.measure([mixture])
    scale = np.float32(song.std + SONG_EPS)
    normal = (mixture - np.float32(song.mean)) / scale
    adder = OverlapAdd(len(config.sources), config.audio_channels, segment)
    finished = []
    for cut in cut_segments([normal], segment, stride_of(segment, OVERLAP)):
        output = model(torch.from_numpy(cut.samples[None]))[0].numpy()
        finished.append(adder.add(cut.start, output[..., cut.cut : cut.cut + cut.length]))
    finished.append(adder.finish(song.frames))
    whole = np.concatenate([part for part in finished if part is not None], axis=-1)
    stems = whole * scale + np.float32(song.mean)
    return dict(zip(config.sources, stems, strict=True))


def tracks(store: Path, excerpt: bool) -> Iterator[tuple[str, Stems]]:
    """Names and true stems of what is evaluated on."""
    for entry in read_entries(store, "held_out"):
        yield entry.name, {source: entry.read(source) for source in SOURCES}
    if excerpt:
        yield "excerpt", four_stem_excerpt()


def score(truth: Stems, found: Stems) -> dict[str, float]:
    """SDR in dB of every source that sounds."""
    return {
        source: round(sdr(torch.from_numpy(stem), torch.from_numpy(found[source])), 2)
        for source, stem in truth.items()
        if float(np.std(stem)) > 1e-5
    }


def evaluate(model: SeparationModel, store: Path, excerpt: bool) -> dict[str, object]:
    """Scores by track, and their medians over the held-out songs."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    seconds = sound = 0.0
    for name, truth in tracks(store, excerpt):
        mixture = sum(truth.values(), np.zeros_like(truth["other"]))
        began = time.perf_counter()
        stems = separate(model, mixture)
        seconds += time.perf_counter() - began
        sound += mixture.shape[1] / SAMPLE_RATE
        found[name] = {
            "model": score(truth, stems),
            "mixture": score(truth, dict.fromkeys(SOURCES, mixture)),
            "baseline": score(truth, baselines.separate(mixture)),
        }
        print(name, found[name], flush=True)
    songs = [scores for name, scores in found.items() if name != "excerpt"]
    medians = {source: _medians(songs, source) for source in SOURCES}
    return {
        "medians": {source: values for source, values in medians.items() if values},
        "tracks": found,
        "realtime": round(sound / seconds, 2),
    }


def _medians(songs: list[dict[str, dict[str, float]]], source: str) -> dict[str, float]:
    having = [song for song in songs if source in song["model"]]
    if not having:
        return {}
    medians = {kind: float(np.median([song[kind][source] for song in having])) for kind in having[0]}
    gains = [song["model"][source] - song["mixture"][source] for song in having]
    return {kind: round(value, 2) for kind, value in {**medians, "gain": float(np.median(gains))}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--excerpt", action="store_true", help="fetched; for research only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = evaluate(load_model(options.checkpoint).model, options.store, options.excerpt)
    print(json.dumps(result["medians"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
