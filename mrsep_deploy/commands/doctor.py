"""``mrsep-deploy doctor``: which engines work here, and what to do about the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mrsep_deploy.errors import FAILED, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from mrsep_deploy.doctor.diagnosis import Diagnosis


@click.command(
    "doctor",
    epilog="""\b
Examples:
  mrsep-deploy doctor
  mrsep-deploy doctor --device cuda:1
  mrsep-deploy doctor --json
\b
Exit codes: 0 if at least one engine works, 1 if none does.
""",
)
@click.option(
    "--device",
    "-d",
    metavar="cuda|cuda:N",
    help="GPU that engines on CUDA are asked about.  [default: the first]",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def doctor(device: str | None, as_json: bool) -> None:
    """Show which engines work here, and what to do about the others.

    For every engine: its version, what it computes in here and its device, or why it does not work and the line
    that changes that. Then what the processor multiplies in, packages that do not go together, folders that cannot
    be written, and what else slows a run down.
    """
    from mrsep_deploy.doctor.diagnosis import examine
    from mrsep_deploy.engines.choice import parse_device
    from mrsep_deploy.terminal.progress import print_result

    kind, index = parse_device(device)
    if kind == "cpu":
        raise UsageError("doctor asks every engine, found --device cpu", "Name a GPU, or leave out --device.")
    found = examine(index)
    print_result(as_json, found.to_plain, lambda screen: _show(screen, found))
    if not found.healthy:
        raise SystemExit(FAILED)


def _show(screen: Console, found: Diagnosis) -> None:
    from mrsep_deploy.terminal.tables import NOTHING, Table, print_table

    rows = []
    for engine in found.engines:
        state = engine.availability
        detail = state.device if state.works else ". ".join(filter(None, (state.reason, state.fix)))
        works = "works" if state.works else NOTHING
        rows.append([engine.name, works, state.version, engine.described, detail])
    columns = ("engine", "", "version", "computes in", "device, or what is missing")
    print_table(screen, Table("Engines", columns, rows, range(len(columns))))
    screen.print(
        f"\n--engine auto takes {found.auto}: {found.reason}" if found.auto else "\nNo engine works."
    )
    if found.environment.instructions:
        screen.print(f"\nThe processor has {', '.join(found.environment.instructions)}.", soft_wrap=True)
    if found.findings:
        rows = [[finding.level, finding.message, finding.fix] for finding in found.findings]
        screen.print()
        print_table(screen, Table("Findings", ("", "found", "what to do"), rows, range(3)))
