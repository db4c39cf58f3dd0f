"""How well the shipped model separates what it was never trained on, and what float16 takes from it.

    python benchmarks/shipped_model.py STORE
    python benchmarks/shipped_model.py --float16        # that part of the result alone; the rest stays

``STORE`` has the held-out songs, as ``examples/train/train.py --all`` renders them. SDR of every track and source by
the model, by the mixture taken for an estimate, and by a baseline without learning, on PyTorch; by the shipped bundle
on ONNX Runtime for the LMMS song and the real excerpt; then float16 against float32 on the real excerpt. Writes
``benchmarks/results/shipped_model.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import figures_source
import numpy as np
from figures_shipped import TITLES
from machine_info import ROOT, machine_info, write_result
from precision_goldens import Pair, excerpt_track, halved

from mrsep_deploy.bundle import Bundle, shipped
from mrsep_deploy.export.load import load_model
from mrsep_deploy.separation.separator import Separator

sys.path.append(str(ROOT / "examples" / "train"))

import evaluate


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--float16", action="store_true")
    options = parser.parse_args(arguments)
    if (options.store is None) != options.float16:
        parser.error("give STORE or --float16")
    bundle = Bundle.open(shipped.BUNDLE)
    if options.float16:
        print(
            write_result(
                "shipped_model", {**figures_source.result("shipped_model"), "float16": in_float16(bundle)}
            )
        )
        return
    result: dict[str, object] = {
        "machine": machine_info(),
        "checkpoint_sha256": hashlib.sha256(shipped.CHECKPOINT.read_bytes()).hexdigest(),
        "bytes": {path.name: path.stat().st_size for path in (shipped.CHECKPOINT, shipped.BUNDLE)},
        "segment_seconds": float(bundle.manifest.model.segment),
        "fusion": [{"where": share.where, "weights": share.weights[0]} for share in bundle.manifest.fusion],
        **evaluate.evaluate(load_model(shipped.CHECKPOINT).model, options.store, excerpt=True),
        "bundle": by_bundle(bundle, options.store),
        "float16": in_float16(bundle),
    }
    print(write_result("shipped_model", result))


def in_float16(bundle: Bundle) -> dict[str, object]:
    """What float16 takes from the real excerpt's stems."""
    with tempfile.TemporaryDirectory() as folder:
        low = halved(bundle, Path(folder) / "low")
        found = Pair(bundle, low, 0).verify([excerpt_track()])
    return {
        "machine": machine_info(),
        "how": found.note,
        "snr": {stem.source: round(stem.figures.snr, 1) for stem in found.stems},
        "sdr_change": {stem.source: round(stem.sdr_change or 0.0, 5) for stem in found.stems},
        "passes": found.passes,
    }


def by_bundle(bundle: Bundle, store: Path) -> Mapping[str, Any]:
    """What users run: SDR by track, and the levels of the stems relative to the mixture in dB."""
    found = {}
    with Separator(bundle, engine="ort") as separator:
        for name, truth in evaluate.tracks(store, excerpt=True):
            if name not in TITLES:
                continue
            mixture = sum(truth.values(), np.zeros_like(truth["other"]))
            stems = separator.separate(mixture)
            levels = {
                source: round(float(20 * np.log10(stem.std() / mixture.std() + 1e-9)), 1)
                for source, stem in stems.items()
            }
            found[name] = {"sdr": evaluate.score(truth, stems), "level_db": levels}
    return found


if __name__ == "__main__":
    main()
