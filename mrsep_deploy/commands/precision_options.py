"""``--precision`` and ``--plan``, which commands that make or run bundles share."""

from __future__ import annotations

from pathlib import Path

import click

# Spelled out because --help imports nothing heavy; a test holds them equal to mrsep_deploy.precision.ASKED.
PRECISIONS = ("fp32", "fp16", "bf16", "mixed")

converted_precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Of the arithmetic; a float32 bundle is converted and kept in the cache.  [default: the bundle's own]",
)
plan_for_mixed = click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For --precision mixed: what stays in float32 beyond the rules.",
)
