"""Put a trained checkpoint into the package, as the model that ``mrsep-deploy run`` takes by default.

    python ship.py model.th --audio SONG --audio SONG

Exports it (every stage is checked against PyTorch) and writes ``mrsep_deploy/bundle/shipped/mrsep-small.{th,zip}``. The
bundle records its checkpoint by name alone, as both lie in the package wherever that is. Which segments float16
would lose is calibrated on the songs and kept in the bundle.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mrsep_deploy.bundle import shipped, write_archive
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import load_model
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.verification.gate_calibration import calibrate_gate, store_gate
from mrsep_deploy.verification.tracks import read_tracks


def ship(checkpoint: Path, songs: Sequence[Path]) -> None:
    """Write both files, each whole or not at all."""
    loaded = load_model(checkpoint)
    recorded = loaded.origin["checkpoint"]
    assert isinstance(recorded, dict)
    origin = {"checkpoint": {**recorded, "path": shipped.CHECKPOINT.name}}
    loaded = dataclasses.replace(loaded, origin=origin)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_model(loaded, shipped.NAME, Path(folder) / "bundle", ExportOptions())
        manifest = bundle.manifest
        plan = default_plan("float16", manifest.float32)
        bundle = store_gate(bundle, calibrate_gate(bundle, plan, read_tracks(songs, manifest)))
        write_archive(bundle, shipped.BUNDLE, overwrite=True, compress=True)
    work = shipped.CHECKPOINT.with_name(f".{shipped.CHECKPOINT.name}.{os.getpid()}")
    shutil.copyfile(checkpoint, work)
    os.replace(work, shipped.CHECKPOINT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--audio", type=Path, action="append", required=True, help="a song; repeat it")
    asked = parser.parse_args()
    ship(asked.checkpoint, asked.audio)
    for path in (shipped.CHECKPOINT, shipped.BUNDLE):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
