"""What float16 loses if products accumulate in float32, as expected of GPUs, and in float16, their worst case.

    python benchmarks/precision_accumulation.py [mrsep-small htdemucs goldens] [--threads 2]

Converts bundles by the default plan and runs them on ONNX Runtime's CPU in either emulation, beside the float32
bundle: the shipped model and the trained HTDemucs on the four-stem excerpt, and every golden checkpoint on its mix.
Puts the SNR of every stem in dB, and that of every stage's worst output on exact inputs, into
``benchmarks/results/precision_accumulation.json``; what is not measured stays there as it is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import figures_source
from machine_info import RESULTS, machine_info, write_result
from parity_trained import export_trained
from precision_goldens import Pair, excerpt_track, golden_bundles, golden_track, halved, stages

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.shipped import BUNDLE
from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.precision.names import ACCUMULATIONS
from mrsep_deploy.verification.tracks import Track

NAME = "precision_accumulation"
PARTS = ("mrsep-small", "htdemucs", "goldens")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    known = figures_source.result(NAME) if (RESULTS / f"{NAME}.json").exists() else {}
    measured = {part: dict(known.get(part, {})) for part in PARTS}
    machines = dict(known.get("machines", {}))
    with tempfile.TemporaryDirectory() as work:
        for part in options.parts or PARTS:
            machines[part] = machine_info()
            for name, bundle, track in _models(part, Path(work)):
                measured[part][name] = _measured(
                    bundle, track, Path(work) / f"{part}-{name}-low", options.threads
                )
                print(write_result(NAME, {"machines": machines, **measured}), flush=True)


def _models(part: str, folder: Path) -> Iterator[tuple[str, Bundle, Track]]:
    """The models of a part, by name, each with what it is measured on."""
    if part == "goldens":
        for name, bundle in golden_bundles(folder):
            yield name, bundle, golden_track(name)
        return
    yield (
        "excerpt",
        Bundle.open(BUNDLE if part == "mrsep-small" else export_trained(folder, "split")),
        excerpt_track(),
    )


def _measured(bundle: Bundle, track: Track, folder: Path, threads: int) -> dict[str, object]:
    """By accumulation, what each emulation loses."""
    pair = Pair(bundle, halved(bundle, folder), threads)
    found: dict[str, object] = {}
    for accumulation in ACCUMULATIONS:
        began = time.perf_counter()
        result = pair.verify([track], accumulation)
        found[accumulation] = {
            "how": result.note,
            "snr": {stem.source: finite(round(stem.figures.snr, 2)) for stem in result.stems},
            "stages": stages(result),
            "measured_in": round(time.perf_counter() - began, 1),
        }
        print(bundle.manifest.name, accumulation, found[accumulation], flush=True)
    return found


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}, expected one of {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
