"""Where a segment's time goes, by stage and operator, beside the least that it could take.

    python benchmarks/profile_stages.py --model trained --engines ort,openvino

``mrsep-deploy bench --profile`` on real music. Writes ``benchmarks/results/profile_MODEL.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine_info import write_result
from run_speed import MODELS, load, write_song

from mrsep_deploy.bench.benchmark import Settings
from mrsep_deploy.bench.plan import Request, plan
from mrsep_deploy.bench.profile import profile
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.process.machine import cpu_budget
from mrsep_deploy.terminal.progress import step_progress


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="trained")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["ort", "openvino"])
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bundle = export_model(load(options.model), options.model, work / "bundle", ExportOptions())
        request = Request([str(bundle.path)], options.engines, against=(), threads=cpu_budget())
        settings = Settings(options.rounds, audio=write_song(work / "song.wav"))
        with step_progress() as progress:
            found = profile(plan(request, work), settings, progress)
    print(write_result(f"profile_{options.model}", found.plain()))


if __name__ == "__main__":
    main()
