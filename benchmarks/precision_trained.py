"""What float16 loses: trained HTDemucs on real music, and every golden checkpoint, against float32.

    python benchmarks/precision_trained.py [--song chaos_god --song Feelings] [--no-goldens] [--threads 2]
    python benchmarks/precision_trained.py --only-goldens       # that part of the result alone; the rest stays

Converts each bundle by the default plan and runs it on ONNX Runtime's CPU, rounded after every operator as on
a GPU that accumulates in float32, beside the float32 bundle. Writes ``benchmarks/results/precision_trained.json``:
SNR of every stem in dB (only where it is above -60 dBFS), the change in SDR where the true stems are known, and
the worst output of every stage. A song takes about twice as long as it does in float32, and as long again for that.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import figures_source
import numpy as np
from assets import Song, read_excerpt, songs
from machine_info import ROOT, machine_info, write_result
from parity_trained import export_trained

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.export.exporter import export_model
from mrsep_deploy.export.load import load_model
from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.verification.reference import BundleReference
from mrsep_deploy.verification.results import StemResult, Verification
from mrsep_deploy.verification.tracks import Track, builtin_tracks, with_stems
from mrsep_deploy.verification.verify import verify

SONGS = ("chaos_god", "Metal madness", "War of freedom", "Feelings", "Escape from chaosland")
"""One with vocals and four without: how much of a guitar the model takes for a voice differs between them."""
GOLDEN = ROOT / "tests" / "golden"


class Pair:
    """A float32 bundle and the one that is made from it."""

    def __init__(self, bundle: Bundle, folder: Path, threads: int) -> None:
        self.low = convert_bundle(bundle, default_plan("float16", bundle.manifest.float32), folder)
        self.bundle, self.threads = bundle, threads

    def verify(self, tracks: Sequence[Track]) -> Verification:
        """Both on the same tracks."""
        options = replace(EngineOptions(self.threads), precision="fp16")
        engine, reference = choose("ort", options).engine, BundleReference(self.bundle, self.threads)
        try:
            return verify(self.low, engine, reference, tracks)
        finally:
            reference.close()
            engine.close()


def excerpt_track() -> Track:
    """The four-stem excerpt with its true stems."""
    truth = read_excerpt()
    return with_stems("excerpt", np.sum(list(truth.values()), axis=0, dtype=np.float32), truth)


def song_track(song: Song) -> Track:
    """A whole song, in blocks."""
    return Track(song.name, SongStatistics.measure(song.blocks()), song.blocks)


def golden_track(name: str) -> Track:
    """The mix of a golden checkpoint."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return with_stems("golden", arrays["mix"], {})


# --- the script


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    result: dict[str, object] = {"machine": machine_info()}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        if options.only_goldens:
            known = figures_source.result("precision_trained")
            measured = {"goldens_machine": result["machine"], "goldens": _goldens(folder, options.threads)}
            print(write_result("precision_trained", {**known, **measured}))
            return
        pair = Pair(Bundle.open(export_trained(folder, "split")), folder / "low", options.threads)
        result["excerpt"] = _measured(pair, excerpt_track())
        chosen = [song for song in songs() if song.name in options.song] if options.song else []
        result["songs"] = {song.name: _measured(pair, song_track(song)) for song in chosen}
        if not options.no_goldens:
            result["goldens"] = _goldens(folder, options.threads)
    print(write_result("precision_trained", result))


def _measured(pair: Pair, track: Track) -> dict[str, object]:
    began = time.perf_counter()
    found = pair.verify([track])
    for stem in found.stems:
        print(f"{track.name}: {_line(stem)}", flush=True)
    rate = pair.bundle.manifest.model.sample_rate
    return {
        "how": found.note,
        "seconds": round(track.statistics.frames / rate, 2),
        "measured_in": round(time.perf_counter() - began, 1),
        "snr": {stem.source: _snr(stem) for stem in found.stems},
        "level_dbfs": {stem.source: round(stem.figures.level, 1) for stem in found.stems},
        "sdr_change": {
            stem.source: round(stem.sdr_change, 5) for stem in found.stems if stem.sdr_change is not None
        },
        "stages": _stages(found),
        "passes": found.passes,
    }


def _goldens(folder: Path, threads: int) -> Mapping[str, object]:
    """Every family: the worst stem on its golden mix and on the built-in signals."""
    report = {}
    for checkpoint in sorted(GOLDEN.glob("*.th")):
        name = checkpoint.stem
        bundle = export_model(load_model(checkpoint), name, folder / name)
        tracks = [golden_track(name), *builtin_tracks(bundle.manifest)]
        found = Pair(bundle, folder / f"{name}-low", threads).verify(tracks)
        judged = [stem for stem in found.stems if stem.judged]
        worst = {
            track.name: _worst([stem for stem in judged if stem.track == track.name]) for track in tracks
        }
        print(f"{name}: {worst}", flush=True)
        report[name] = {"worst_snr": worst, "stages": _stages(found), "passes": found.passes}
    return report


def _worst(stems: Sequence[StemResult]) -> float | None:
    """The lowest SNR; None where no stem is loud enough, or all are equal."""
    return finite(min((round(stem.figures.snr, 1) for stem in stems), default=None))


def _stages(found: Verification) -> dict[str, float | None]:
    """SNR in dB of every stage's worst output, on exact inputs."""
    return {
        stage.stage: finite(round(min(figures.snr for figures in stage.tensors.values()), 1))
        for stage in found.stages
    }


def _snr(stem: StemResult) -> float | None:
    return finite(round(stem.figures.snr, 2)) if stem.judged else None


def _line(stem: StemResult) -> str:
    change = "" if stem.sdr_change is None else f", SDR {stem.sdr:.2f} dB {stem.sdr_change:+.4f} dB"
    quiet = "" if stem.judged else ", too quiet to judge"
    return f"{stem.source:6} {stem.figures.snr:.1f} dB at {stem.figures.level:.1f} dBFS{quiet}{change}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--song", action="append", metavar="NAME", help=f"default: {', '.join(SONGS)}")
    parser.add_argument("--no-songs", action="store_true", help="only the excerpt")
    parser.add_argument("--no-goldens", action="store_true")
    parser.add_argument("--only-goldens", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    options = parser.parse_args(arguments)
    options.song = [] if options.no_songs else options.song or list(SONGS)
    known = [song.name for song in songs()] if options.song else []
    for name in options.song:
        if name not in known:
            parser.error(f"there is no song {name!r}, expected one of {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
