"""What float16 loses on every golden checkpoint, against float32.

    python benchmarks/precision_goldens.py [--threads 2]

Converts each bundle by the default plan and verifies it on ONNX Runtime's CPU, rounded after every operator as on
a GPU that accumulates in float32, beside the float32 bundle. Writes ``benchmarks/results/precision_goldens.json``:
the worst stem of the golden mix and of every built-in signal (only where the mix does not excuse it), and the worst
output of every stage.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from assets import read_excerpt
from machine_info import ROOT, machine_info, write_result

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.export.exporter import export_model
from mrsep_deploy.export.load import load_model
from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.names import Accumulation
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.verification.reference import BundleReference
from mrsep_deploy.verification.results import StemResult, Verification
from mrsep_deploy.verification.tracks import Track, builtin_tracks, with_stems
from mrsep_deploy.verification.verify import verify

GOLDEN = ROOT / "tests" / "golden"


def halved(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle by the default plan, at ``folder``."""
    return convert_bundle(bundle, default_plan("float16", bundle.manifest.float32), folder)


class Pair:
    """A float32 bundle and the one that was made from it."""

    def __init__(self, bundle: Bundle, low: Bundle, threads: int) -> None:
        self.bundle, self.low, self.threads = bundle, low, threads

    def verify(self, tracks: Sequence[Track], accumulation: Accumulation = "float32") -> Verification:
        """Both on the same tracks, the lower precision on all of their segments."""
        options = EngineOptions(self.threads, precision="fp16", accumulation=accumulation)
        engine, reference = choose("ort", options).engine, BundleReference(self.bundle, self.threads)
        try:
            return verify(self.low, engine, reference, tracks, gate=math.inf)
        finally:
            reference.close()
            engine.close()


def excerpt_track() -> Track:
    """The four-stem excerpt with its true stems."""
    truth = read_excerpt()
    return with_stems("excerpt", np.sum(list(truth.values()), axis=0, dtype=np.float32), truth)


def golden_track(name: str) -> Track:
    """The mix of a golden checkpoint."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return with_stems("golden", arrays["mix"], {})


def golden_bundles(folder: Path) -> Iterator[tuple[str, Bundle]]:
    """Every golden checkpoint, exported into a folder, by its name."""
    for checkpoint in sorted(GOLDEN.glob("*.th")):
        name = checkpoint.stem
        yield name, export_model(load_model(checkpoint), name, folder / name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    options = parser.parse_args(arguments)
    machine = machine_info()
    with tempfile.TemporaryDirectory() as work:
        goldens = _goldens(Path(work), options.threads)
    print(write_result("precision_goldens", {"machine": machine, "goldens": goldens}))


def _goldens(folder: Path, threads: int) -> Mapping[str, object]:
    """Every family: the worst stem on its golden mix and on the built-in signals."""
    report = {}
    for name, bundle in golden_bundles(folder):
        tracks = [golden_track(name), *builtin_tracks(bundle.manifest)]
        found = Pair(bundle, halved(bundle, folder / f"{name}-low"), threads).verify(tracks)
        counting = [stem for stem in found.stems if stem.counts]
        worst = {
            track.name: _worst([stem for stem in counting if stem.track == track.name]) for track in tracks
        }
        print(f"{name}: {worst}", flush=True)
        report[name] = {"worst_snr": worst, "stages": stages(found), "passes": found.passes}
    return report


def _worst(stems: Sequence[StemResult]) -> float | None:
    """The lowest SNR; None where the mix excuses every stem, or all are equal."""
    return finite(min((round(stem.figures.snr, 1) for stem in stems), default=None))


def stages(found: Verification) -> dict[str, float | None]:
    """SNR in dB of every stage's worst output, on exact inputs."""
    return {
        stage.stage: finite(round(min(figures.snr for figures in stage.tensors.values()), 1))
        for stage in found.stages
    }


if __name__ == "__main__":
    main()
