"""Trained HTDemucs, exported and run by this package, against the published demucs in float64.

    python benchmarks/parity_trained.py --song chaos_god [--seconds 60] [--threads 2]

Separates the four-stem excerpt (both layouts) and a whole song (split), and writes
``benchmarks/results/parity_trained_SONG.json``: for every stem its SNR against the reference in dB, over
all of it and over its first and last second, and for the excerpt the SDR against the true stems.
Beside each stands what demucs itself reaches in float32, which bounds what quiet parts can: rounding
errors follow the level of the segment, not that of the stem.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import SAMPLE_RATE, STEMS, Song, read_excerpt, songs, trained_htdemucs
from machine_info import machine_info, write_result
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import load_model
from mrsep_deploy.measuring.deviation import Deviation, level_db
from mrsep_deploy.measuring.limits import SILENT_DBFS
from mrsep_deploy.separation.separator import Separator

Samples = NDArray[Any]
Stems = Mapping[str, Samples]

LAYOUTS: tuple[Layout, ...] = ("split", "whole")
OVERLAP = 0.25
EDGE_SECONDS = 1.0
REQUIRED_SNR = 110.0  # dB
EDGE_FLOOR = -130.0  # dBFS of error; the last bit of 24-bit audio is at -144


# --- the reference


@functools.cache
def published_model(dtype: torch.dtype) -> torch.nn.Module:
    """The trained model as the PyPI package demucs builds it."""
    from demucs.states import load_model as load_published

    model: torch.nn.Module = load_published(trained_htdemucs())
    return model.to(dtype).eval()


def separate_published(mix: Samples, dtype: torch.dtype = torch.float64) -> dict[str, Samples]:
    """What demucs makes of a song ``[2, L]``, every step in ``dtype``, without random shifts.

    The song is normalised as ``demucs.api.Separator`` does.
    """
    from demucs.apply import apply_model

    with _by_default(dtype), torch.no_grad():
        wav = torch.from_numpy(mix).to(dtype)
        mono = wav.mean(0)
        mean, std = mono.mean(), mono.std() + 1e-8
        model = published_model(dtype)
        stems = apply_model(model, ((wav - mean) / std)[None], shifts=0, split=True, overlap=OVERLAP)
        return dict(zip(STEMS, (stems * std + mean)[0].numpy(), strict=True))


@contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    # demucs makes windows, positions and the sum of segments in the default dtype.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- ours


def export_trained(folder: Path, layout: Layout) -> Path:
    """Export the trained model to ``folder / layout``."""
    target = folder / layout
    export_model(load_model(trained_htdemucs()), f"htdemucs-{layout}", target, ExportOptions(layout=layout))
    return target


# --- how far apart they are


@dataclass(frozen=True)
class StemParity:
    """SNR of one stem in dB against the reference; None where an edge of the reference is silence.

    ``levels`` are those of the reference's edges in dBFS.
    """

    snr: float
    start: float | None
    end: float | None
    levels: tuple[float, float]

    @property
    def passes(self) -> bool:
        """The whole stem reaches ``REQUIRED_SNR``, and so does each edge, or its error is inaudible.

        A float32 result errs in proportion to the segment it comes from, not to what one stem does in one
        second of it: where a stem is nearly silent beside a loud mix, PyTorch's own float32 reaches 80 to
        95 dB. There the error itself must be below ``EDGE_FLOOR``.
        """
        edges = zip((self.start, self.end), self.levels, strict=True)
        edges_pass = all(
            snr is None or snr >= REQUIRED_SNR or level - snr <= EDGE_FLOOR for snr, level in edges
        )
        return self.snr >= REQUIRED_SNR and edges_pass

    def __str__(self) -> str:
        edges = (
            f"{f'{snr:.1f}' if snr is not None else 'silent'} ({level:.0f} dBFS)"
            for snr, level in zip((self.start, self.end), self.levels, strict=True)
        )
        return f"{self.snr:.1f} dB, first and last second {', '.join(edges)}"


def parity(stems: Stems, reference: Stems) -> dict[str, StemParity]:
    """Compare every stem ``[2, L]``, and its first and last second by themselves."""
    edge = round(EDGE_SECONDS * SAMPLE_RATE)
    found = {}
    for name, exact in reference.items():
        value = stems[name]
        parts = (slice(0, edge), slice(-edge, None))
        levels = (level_db(exact[:, parts[0]]), level_db(exact[:, parts[1]]))
        start, end = (
            Deviation.between(value[:, part], exact[:, part]).snr if loud > SILENT_DBFS else None
            for part, loud in zip(parts, levels, strict=True)
        )
        found[name] = StemParity(Deviation.between(value, exact).snr, start, end, levels)
    return found


def sdr(estimate: Samples, truth: Samples) -> float:
    """``10 lg(sum truth² / sum (truth - estimate)²)`` in dB, over all samples and channels."""
    return Deviation.between(estimate, truth).snr


# --- the script


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    result: dict[str, object] = {"machine": machine_info()}
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as work:
        bundles = {layout: export_trained(Path(work), layout) for layout in LAYOUTS}
        result["excerpt"] = _excerpt(bundles, options.threads)
        song = next(song for song in songs() if song.name == options.song)
        result["song"] = _song(song, options.seconds, bundles["split"], options.threads)
    print(write_result(f"parity_trained_{options.song.lower().replace(' ', '_')}", result))


def _excerpt(bundles: Mapping[Layout, Path], threads: int) -> dict[str, object]:
    truth = read_excerpt()
    mix: NDArray[np.float32] = np.sum(list(truth.values()), axis=0, dtype=np.float32)
    reference = separate_published(mix)
    by_layout: dict[str, object] = {}
    for layout, bundle in bundles.items():
        with Separator(bundle, engine="ort", threads=threads, overlap=OVERLAP) as separator:
            stems = separator.separate(mix)
        ours = {name: round(sdr(stems[name], truth[name]), 3) for name in STEMS}
        by_layout[layout] = {**_report(f"excerpt, {layout}", parity(stems, reference)), "sdr": ours}
    yardstick = separate_published(mix, torch.float32)
    return {
        "seconds": round(mix.shape[1] / SAMPLE_RATE, 2),
        "demucs_float32": _report("excerpt, demucs in float32", parity(yardstick, reference)),
        "sdr_demucs": {name: round(sdr(reference[name], truth[name]), 3) for name in STEMS},
        "layouts": by_layout,
    }


def _song(song: Song, seconds: float | None, bundle: Path, threads: int) -> dict[str, object]:
    mix = song.read(seconds)
    began = time.perf_counter()
    with Separator(bundle, engine="ort", threads=threads, overlap=OVERLAP) as separator:
        stems = separator.separate(mix)
    ours = time.perf_counter() - began
    reference = separate_published(mix)
    report = _report(song.name, parity(stems, reference))
    yardstick = parity(separate_published(mix, torch.float32), reference)
    return {
        "name": song.name,
        "licence": song.licence,
        "seconds": round(mix.shape[1] / SAMPLE_RATE, 2),
        "separated_in": round(ours, 1),
        **report,
        "demucs_float32": _report(f"{song.name}, demucs in float32", yardstick),
    }


def _report(what: str, found: Mapping[str, StemParity]) -> dict[str, object]:
    for name, stem in found.items():
        print(f"{what}: {name:6} {stem}", flush=True)
    return {
        "snr": {name: round(stem.snr, 2) for name, stem in found.items()},
        "snr_first_second": {name: _rounded(stem.start) for name, stem in found.items()},
        "snr_last_second": {name: _rounded(stem.end) for name, stem in found.items()},
        "edge_dbfs": {name: [_finite(level) for level in stem.levels] for name, stem in found.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _finite(level: float) -> float | None:
    return round(level, 1) if math.isfinite(level) else None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--song", default="chaos_god", choices=[song.name for song in songs()])
    parser.add_argument("--seconds", type=float, help="take only the start of the song")
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
