"""What float16 loses at the published sizes: every family and the paper's own form, untrained, segments of 10 s.

    python benchmarks/precision_published.py [--family htdemucs_n] [--again]

Exports each with ``export --untrained FAMILY --set segment=10 --precision fp16`` and keeps what conversion proved on
its probe: the SNR in dB of every stage on exact inputs and of every stem through all stages, and the node at which a
weak stage loses most. Untrained weights are drawn so that every path carries signal; trained layer scales are smaller,
and trained models lose less. Writes ``benchmarks/results/precision_published.json`` after every family; what is there
of the same conversion is not exported again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine_info import RESULTS, machine_info, write_result

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.precision.convert_bundle import VERSION

NAME = "precision_published"
FAMILIES = ("htdemucs_2nn", "htdemucs_n", "htdemucs_nn", "htdemucs_nf", "htdemucs_dnf", "mrhdemucs")
SEGMENT = 10


def measured(family: str) -> dict[str, object]:
    """Exports a family, and returns what was proved."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mrsep-deploy-published-") as folder:
        command = [
            *(sys.executable, "-m", "mrsep_deploy", "export", "--untrained", family, "-n", family),
            *("--set", f"segment={SEGMENT}", "--precision", "fp16", "-o", f"{folder}/bundle", "--quiet"),
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "MRSEP_DEPLOY_HOME": f"{folder}/home"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        manifest = Bundle.open(Path(folder) / "bundle").manifest
    return {
        "parameters": manifest.model.parameters,
        "segment_seconds": float(manifest.model.segment),
        "conversion": VERSION,
        "seconds": round(time.perf_counter() - start, 1),
        "warnings": done.stderr.splitlines(),
        "proof": manifest.checks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    found = json.loads(path.read_text()) if path.exists() else {"families": {}}
    for family in asked.family or FAMILIES:
        known = found["families"].get(family, {})
        if known.get("conversion") == VERSION and not asked.again:
            continue
        found = {"machine": machine_info(), "families": {**found["families"], family: measured(family)}}
        write_result(NAME, found)
        print(family, json.dumps(found["families"][family]["proof"]), flush=True)


if __name__ == "__main__":
    main()
