"""Train the small multi-resolution model.

    python train.py --all RUN                          render the data, train, write and evaluate the checkpoint
    python train.py --store STORE RUN                  train on a rendered store, or continue
    python train.py --store STORE --init X.th RUN      begin with published weights

``RUN`` gets ``state.pt`` (everything needed to go on), ``log.jsonl`` and ``model.th``. Ctrl-C or a termination
signal saves the state; the same command continues from it, step for step as if it had never stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# With glibc's own thresholds every large tensor is mapped anew and zeroed by the kernel: six times slower.
# Threads that wait for each other sleep, as spinning takes the cores from them where others compute too.
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def set_environment() -> None:
    """Start this program again with an allocator that keeps what is freed, and threads that do not spin."""
    if sys.platform == "linux" and not _ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ENVIRONMENT})


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="folder of the run")
    add("--store", type=Path, help="rendered store (default: RUN/store)")
    add("--all", action="store_true", help="render before, publish and evaluate after")
    add("--minutes", type=float, default=240.0, help="of songs to render, with --all")
    add("--init", type=Path, help="begin with the weights of this checkpoint")
    add("--channels", type=int, default=32)
    add("--growth", type=float, default=1.25)
    add("--steps", type=int, default=2700)
    add("--hours", type=float, help="stop after so long, however many steps")
    add("--batch", type=int, default=2)
    add("--segment", type=float, default=2.0, help="seconds of a training mixture")
    add("--rate", type=float, default=1e-3)
    add("--warm-up", type=int, default=50)
    add("--ema", type=float, default=0.995)
    add("--seed", type=int, default=42)
    add("--validate-every", type=int, default=250)
    add("--save-every", type=float, default=300.0, help="seconds")
    add("--workers", type=int, default=1)
    add("--threads", type=int, default=os.cpu_count())
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    return parser.parse_args()


def train(options: argparse.Namespace, store: Path) -> bool:
    """Train until the last step, the time limit or a signal; whether all steps are done."""
    import torch
    from mixing import MixingPlan, describe, validation_items
    from store import read_entries
    from trainer import Interrupt, Log, Training, TrainingPlan

    torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # On processors bfloat16 was no faster: casts cost what the products save.
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    bfloat16 = options.precision == "bfloat16" or (options.precision == "auto" and on_gpu)
    plan = TrainingPlan(
        steps=options.steps, batch=options.batch, segment=options.segment, rate=options.rate,
        warm_up=options.warm_up, ema=options.ema, seed=options.seed,
        network=(("channels", options.channels), ("growth", options.growth)),
    )  # fmt: skip
    entries = read_entries(store, "train")
    training = Training(plan, MixingPlan(), entries, device, torch.bfloat16 if bfloat16 else None)
    options.run.mkdir(parents=True, exist_ok=True)
    state, log = options.run / "state.pt", Log(options.run / "log.jsonl")
    if state.exists():
        training.load(state)
    elif options.init:
        from mrsep_deploy.export.checkpoint.read import read_checkpoint
        from mrsep_deploy.export.families import known_classes

        training.start_from(read_checkpoint(options.init, known_classes()).state)
    items = validation_items(read_entries(store, "held_out"), options.segment, 2)
    log.write(
        event="start", step=training.step, plan=vars(plan), mixing=describe(training.mixing),
        entries=len(entries), device=str(device), bfloat16=bfloat16, torch=torch.__version__,
        init=str(options.init) if options.init else None,
    )  # fmt: skip
    interrupt = Interrupt()
    began = saved = last = time.monotonic()
    losses: list[float] = []
    for stems in training.batches(plan.steps, options.workers):
        facts = training.take_step(stems)
        losses.append(facts["loss"])
        now = time.monotonic()
        training.seconds += now - last
        last = now
        if training.step % 25 == 0:
            mean = sum(losses) / len(losses)
            log.write(
                event="step", step=training.step, loss=round(mean, 5), gradient=round(facts["gradient"], 4),
                rate=round(facts["rate"], 7), seconds=round(training.seconds, 1),
            )  # fmt: skip
            losses.clear()
        if training.step % options.validate_every == 0 or training.step == plan.steps:
            log.write(event="validation", step=training.step, **training.validate(items))
        over = interrupt.raised or (options.hours is not None and now - began > options.hours * 3600)
        if over or now - saved > options.save_every or training.step == plan.steps:
            training.save(state)
            saved = time.monotonic()
        if over:
            break
    log.write(event="stop", step=training.step, seconds=round(training.seconds, 1))
    return training.step >= plan.steps


def _call(script: str, *rest: str) -> None:
    subprocess.run([sys.executable, str(HERE / script), *rest], check=True)


def main() -> None:
    options = arguments()
    if options.all and shutil.which("lmms") is None:
        raise SystemExit(
            "LMMS 1.2 renders some of the songs and is not installed; "
            "apt-get install --no-install-recommends lmms"
        )
    set_environment()
    store = options.store or options.run / "store"
    if options.all:
        _call("render.py", str(store), "--minutes", str(options.minutes), "--seed", str(options.seed))
        _call("lmms_songs.py", str(store))
    finished = train(options, store)
    if options.all and finished:
        checkpoint = options.run / "model.th"
        _call("publish.py", str(options.run / "state.pt"), str(checkpoint))
        _call("evaluate.py", str(checkpoint), str(store), "--json", str(options.run / "evaluation.json"))


if __name__ == "__main__":
    main()
