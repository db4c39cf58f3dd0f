"""GPU acceptance in one command, on a machine with a GPU, torch and no network.

    python3 benchmarks/gpu_acceptance.py --wheels DIR --out DIR [--bundles DIR] [--minutes 10]
                                         [--models untrained,trained] [--no-compile] [--remark TEXT]
    python3 benchmarks/gpu_acceptance.py prepare --out DIR     where there is a network, torch and onnx
    python3 benchmarks/gpu_acceptance.py join --pieces DIR --out DIR

Run it with the ``python3`` that holds torch. Nothing has to be installed: the wheels go to a private
folder, the project is taken from this checkout. Without ``--bundles`` the untrained models are exported
there and then, which needs onnx and onnxscript. Rows that come after the time budget are skipped, and say so.

Writes ``gpu_acceptance.html`` and ``gpu_acceptance.json``::

    {"format": "mrsep-deploy gpu acceptance", "version": 1,
     "budget_minutes", "took_seconds", "ended": why it is not complete or "", "wheels": [file, ...],
     "remark": of whoever ran it,
     "counts": {status: rows},
     "rows": [{"section", "name", "status", "values", "reason", "fix", "seconds"}, ...]}

``status`` is ``ok``, ``unavailable`` (not on this machine: ``reason`` and ``fix``), ``failed`` (``reason`` is
the error's first line) or ``skipped``. Names begin with ``MODEL, batch N: `` from parity on. Values, in
units that their names tell (``..._ms`` are ``{"median", "p95", "min", "max"}`` where they are spreads):

    environment   as found
    ceilings      bytes_per_second (read and written) or flop_per_second; relative_l2 of a convolution
    device        "IMPLEMENTATION: CHECK"; times seen, if any
    parity        snr_db, snr_worst_stem_db, snr_stems_db {stem: dB}, max_abs_error, max_abs, same_again,
                  slots_alike (of all slots under way at once, in graph mode each with a graph of its own),
                  identical_to_sequential, max_abs_from_sequential, open_seconds, taken_mib (GPU memory
                  that went while opening and running), torch_peak_mib, buffers_mib
    latency       host_ms, event_ms, rounds, rounds_ms [ms of each round], audio_seconds_per_second,
                  times_faster_than_torch_eager {"median", "low", "high"} (paired by round, 95 % bootstrap),
                  floor_ms {"arithmetic", "memory", "floor"}, times_the_floor
    pipelined     ms_per_batch, batches
    concurrency   times_faster {"median", "low", "high"}, verdict
    timeline      span_ms, sum_of_stages_ms, stages [{"stage", "branch", "stream", "start_ms", "end_ms"}]

SNR is None where it is infinite or not a number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from acceptance import prepare, report, rows, shim

MODELS = ("untrained", "trained")
MEGABYTE = 10**6


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(options.run(options))
    except shim.SetUpError as error:
        print(f"gpu_acceptance: {error}", file=sys.stderr)
        return 1


def accept(options: argparse.Namespace) -> int:
    """Measure on this machine."""
    problem = shim.cuda_problem()
    if problem is not None:
        raise shim.SetUpError(f"there is nothing to accept on this machine, {problem}")
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as folder:
        work = Path(folder)
        for name in ("site", "home"):
            (work / name).mkdir()
        wheels = shim.install_wheels(options.wheels, work / "site") if options.wheels else []
        variables = shim.environment(
            shim.map_project(work / "mapped"), work / "site", work / "home", os.environ
        )
        journal = rows.Journal(work / "journal.jsonl")
        deadline = began + 60 * options.minutes
        job = {
            "journal": str(journal.path),
            "deadline": deadline,
            "models": options.models,
            "batches": options.batches,
            "bundles": str(options.bundles or work / "bundles"),
            "exports": options.bundles is None,
            "compiles": options.compile,
        }
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "acceptance.worker", str(work / "job.json")]
        ended = rows.supervise(command, variables, journal, deadline)
        found = journal.rows()
    if not found:
        raise shim.SetUpError(ended or "nothing was measured")
    took = time.time() - began
    result = report.Report(found, options.minutes, took, wheels, ended or "", options.remark)
    for path in report.write_report(result, options.out):
        print(path)
    print(", ".join(f"{count} {status}" for status, count in sorted(result.counts().items())))
    return 0


def make_ready(options: argparse.Namespace) -> int:
    """Make bundles and fetch wheels."""
    present = prepare.package_names(options.target_packages.read_text()) if options.target_packages else []
    missing = prepare.download(prepare.wanted_wheels(present), options.out / "wheels")
    for line in missing:
        print(f"not to be had: {line}")
    if not options.no_bundles:
        (options.out / "bundles").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as mapped:
            # The project as it stands here, installed or not.
            sys.path.insert(0, str(shim.map_project(Path(mapped))))
            prepare.export_bundles(options.models, options.out / "bundles")
    limit = options.piece_mb * MEGABYTE
    for name in ("wheels", "bundles"):
        files = prepare.sizes(options.out / name)
        print(f"{name}: {len(files)} files, {sum(files.values()) / MEGABYTE:,.1f} MB")
        for number, piece in enumerate(prepare.group_pieces(files, limit), 1):
            size = sum(files[each] for each in piece)
            warning = f"  more than {options.piece_mb} MB, carry it in parts" if size > limit else ""
            print(f"  piece {number}: {size / MEGABYTE:,.1f} MB, {len(piece)} files{warning}")
            for each in piece if options.verbose else ():
                print(f"    {files[each] / MEGABYTE:8.1f} MB  {each}")
    if options.cut:
        for part in prepare.cut(options.out, ("wheels", "bundles"), options.out / "pieces", limit):
            print(f"{part} {part.stat().st_size / MEGABYTE:,.1f} MB")
    return 1 if missing else 0


def put_together(options: argparse.Namespace) -> int:
    """Put the parts that ``prepare --cut`` made together again."""
    print(prepare.join(options.pieces, options.out))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_acceptance.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = {"prepare": _prepare_options, "join": _join_options}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](parser).parse_args(arguments[1:])
    parser.set_defaults(run=accept)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--wheels", type=_folder, help="folder of wheels this Python lacks")
    parser.add_argument("--bundles", type=_folder, help="folder that prepare made")
    parser.add_argument("--models", type=_models, default=MODELS, help="untrained, trained or both")
    parser.add_argument("--batches", type=_batches, default=(1,), help="such as 1,4")
    parser.add_argument("--minutes", type=_positive, default=10.0, help="time budget")
    parser.add_argument("--remark", default="", help="to be shown with the figures")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    return parser.parse_args(arguments)


def _prepare_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.set_defaults(run=make_ready)
    parser.add_argument("--out", type=Path, required=True, help="folder for wheels/, bundles/ and pieces/")
    parser.add_argument("--models", type=_models, default=("untrained",), help="untrained, trained or both")
    parser.add_argument(
        "--target-packages", type=Path, help="the target's pip list, whose packages are left out"
    )
    parser.add_argument("--no-bundles", action="store_true", help="wheels only")
    parser.add_argument("--piece-mb", type=int, default=prepare.PIECE_MB)
    parser.add_argument("--cut", action="store_true", help="also write all of it in pieces/, for join")
    parser.add_argument("--verbose", action="store_true", help="name every file")
    return parser


def _join_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.set_defaults(run=put_together)
    parser.add_argument("--pieces", type=_folder, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def _models(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    unknown = [name for name in chosen if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(MODELS)}")
    return chosen


def _batches(text: str) -> tuple[int, ...]:
    try:
        chosen = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers separated by commas") from None
    if min(chosen) < 1:
        raise argparse.ArgumentTypeError("a batch has 1 segment or more")
    return chosen


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} minutes are no time budget")
    return value


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path.resolve()


if __name__ == "__main__":
    sys.exit(main())
