"""``mrsep-deploy build`` for engines on a CPU: measure how segments run fastest, and keep what won."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.engines.contract import EngineOptions
    from mrsep_deploy.separation.tuning import Trial


def measure_plan(bundle: Bundle, name: str, options: EngineOptions, quiet: bool, as_json: bool) -> None:
    """Measure, keep, and print; raises ``EngineUnavailableError`` or, where it cannot be kept, ``OutputError``."""
    from mrsep_deploy.engines.choice import choose
    from mrsep_deploy.runtime.plan import keep_plan
    from mrsep_deploy.separation.tuning import best, tune
    from mrsep_deploy.terminal.progress import print_result, step_progress

    engine = choose(name, options).engine
    with step_progress(quiet) as report:
        trials = tune(bundle, name, options, report)
    winner = best(trials)
    keep_plan(bundle, engine, winner)

    def show(screen: Console) -> None:
        screen.print(_table(trials))
        batch = bundle.manifest.batch
        given = f"--engine {name} --batch {batch}" if batch > 1 else f"--engine {name}"
        screen.print(
            f"\nrun now does it so: {winner.title} (with {given} and as many threads)", soft_wrap=True
        )

    print_result(as_json, lambda: [_plain(trial) for trial in trials], show, quiet)


def _plain(trial: Trial) -> dict[str, object]:
    return {
        "mode": trial.plan.mode,
        "lanes": trial.plan.lanes,
        "seconds": trial.seconds,
        "times_faster": trial.times_faster and dict(trial.times_faster),
        "won": trial.won,
        "reason": trial.reason,
    }


def _table(trials: list[Trial]) -> Table:
    from mrsep_deploy.terminal.tables import table

    made = table("run plan", "a segment", "times faster than the best before", "", right=("a segment",))
    for trial in trials:
        seconds = "" if trial.seconds is None else f"{trial.seconds:.2f} s"
        faster = ""
        if trial.times_faster is not None:
            faster = "{median:.2f} [{low:.2f}, {high:.2f}]".format_map(trial.times_faster)
        verdict = "could not run: " + trial.reason if trial.reason else "won" if trial.won else "lost"
        made.add_row(trial.plan.title, seconds, faster, verdict if trial.times_faster or trial.reason else "")
    return made
