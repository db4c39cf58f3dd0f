"""Made-up segments in float16, with the gate and without: a brief piece of a song in all but silence.

    python benchmarks/gate_made_up.py [BUNDLE] [--count 200] [--threads 2]

BUNDLE is a float32 bundle whose gate has been calibrated (``verify --calibrate-gate``); by default the trained
HTDemucs, exported and calibrated here on the five songs. The segments are drawn with another seed than those of the
calibration. Each runs on ONNX Runtime's CPU in float32 and in float16, rounded after every operator. Writes
``benchmarks/results/gate_made_up_NAME.json``: every segment's burstiness and the SNR of its worst stem, and
whether the gate has it run in float32; and the least and highest crest factor (peak over standard deviation).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
from assets import songs
from machine_info import machine_info, write_result
from parity_trained import export_trained

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.verification.gate_calibration import (
    SHOWN,
    Trial,
    Tried,
    calibrate_gate,
    music_from,
    store_gate,
)
from mrsep_deploy.verification.made_up import made_up
from mrsep_deploy.verification.tracks import Track

SEED = 977
"""Not the calibration's."""


def tracks() -> list[Track]:
    """The songs that segments take their music from."""
    return [Track(song.name, SongStatistics.measure(song.blocks()), song.blocks) for song in songs()]


def rows(tried: list[Tried], burstiness: float) -> list[dict[str, object]]:
    """The table: between two values, how many segments there are, and how they fare without the gate."""
    made = []
    for low, high in zip((0, *SHOWN), (*SHOWN, math.inf), strict=True):
        part = [each for each in tried if low < each.burstiness <= high]
        if part:
            made.append(
                {
                    "above": low,
                    "up_to": high if math.isfinite(high) else None,
                    "segments": len(part),
                    "in_float32": sum(each.burstiness > burstiness for each in part),
                    "worst_snr_db": min(each.snr for each in part),
                    "worst_snr_with_gate_db": min(
                        (each.snr for each in part if each.burstiness <= burstiness), default=None
                    ),
                }
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    machine, music = machine_info(), tracks()
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-gate-") as folder:
        bundle = Bundle.open(asked.bundle or export_trained(Path(folder) / "trained", "split"))
        plan = default_plan("float16", bundle.manifest.float32)
        if "float16" not in bundle.manifest.gates:
            bundle = store_gate(bundle, calibrate_gate(bundle, plan, music, threads=asked.threads))
        gate = bundle.manifest.gates["float16"]
        tried: list[Tried] = []
        crests: list[float] = []
        with Trial(bundle, plan, threads=asked.threads) as trial:
            for each in made_up(bundle.manifest.model, music_from(music, bundle.manifest), asked.count, SEED):
                tried.append(trial.made_up(each))
                crests.append(float(np.abs(each.mix).max() / each.mix.std()))
                print(
                    f"{len(tried)}/{asked.count} burstiness {tried[-1].burstiness:.1f}: {tried[-1].snr:.1f} dB",
                    flush=True,
                )
            limit = trial.limit
    passed = [each for each in tried if each.burstiness <= gate.burstiness]
    result = {
        "machine": machine,
        "model": bundle.manifest.name,
        "gate": plain(gate),
        "limit_db": limit.decibels,
        "segments": len(tried),
        "crest_factors": [min(crests), max(crests)],
        "in_float32": len(tried) - len(passed),
        "failed_without_gate": sum(not each.passes for each in tried),
        "failed_with_gate": sum(not each.passes for each in passed),
        "rows": plain(rows(tried, gate.burstiness)),
        "tried": plain(tried),
    }
    print(write_result(f"gate_made_up_{bundle.manifest.name}", result))


if __name__ == "__main__":
    main()
