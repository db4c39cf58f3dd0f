"""The paper's tables with times measured here, for docs/benchmarking.md.

    python benchmarks/paper_tables.py [--sdr sdr.json]

``mrsep-deploy complexity --paper --measure`` with the result kept: parameters, MACs, activations, seconds for one
segment with PyTorch eager and ONNX Runtime (taking turns, medians of up to 5 rounds, random weights), and SDR where a
file gives it. Times are kept in ``benchmarks/results/paper_times.json`` model by model, so that the command goes on
where it was stopped; delete the file to measure anew. Writes ``benchmarks/results/paper_tables.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from machine_info import RESULTS, load_average, machine_info, write_result

from mrsep_deploy.inspection.paper import ROUNDS, filled_tables, measure, paper_models, read_sdr
from mrsep_deploy.terminal.progress import step_progress

TIMES = RESULTS / "paper_times.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sdr", type=Path, help="SDR in dB by model, as complexity --sdr takes it")
    options = parser.parse_args(arguments)
    machine = machine_info()
    with step_progress() as progress:
        seconds = measure(paper_models(), TIMES, progress)
    filled = filled_tables(seconds, read_sdr(options.sdr) if options.sdr else {})
    result = {
        "machine": machine,
        "load_after": load_average(),
        "rounds": ROUNDS,
        "tables": filled,
    }
    print(write_result("paper_tables", result))


if __name__ == "__main__":
    main()
