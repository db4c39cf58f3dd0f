"""Put a trained checkpoint into the package, as the model that ``mrsep-deploy run`` takes by default.

    python ship.py model.th

Exports it (every stage is checked against PyTorch) and writes ``mrsep_deploy/bundle/shipped/mrsep-small.{th,zip}``. The
bundle records its checkpoint by name alone, as both lie in the package wherever that is.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

from mrsep_deploy.bundle import shipped, write_archive
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import load_model


def ship(checkpoint: Path) -> None:
    """Write both files, each whole or not at all."""
    loaded = load_model(checkpoint)
    recorded = loaded.origin["checkpoint"]
    assert isinstance(recorded, dict)
    origin = {"checkpoint": {**recorded, "path": shipped.CHECKPOINT.name}}
    loaded = dataclasses.replace(loaded, origin=origin)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_model(loaded, shipped.NAME, Path(folder) / "bundle", ExportOptions())
        write_archive(bundle, shipped.BUNDLE, overwrite=True, compress=True)
    work = shipped.CHECKPOINT.with_name(f".{shipped.CHECKPOINT.name}.{os.getpid()}")
    shutil.copyfile(checkpoint, work)
    os.replace(work, shipped.CHECKPOINT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    ship(parser.parse_args().checkpoint)
    for path in (shipped.CHECKPOINT, shipped.BUNDLE):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
