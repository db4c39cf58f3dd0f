"""``--precision``, ``--plan`` and ``--limit``, which commands that make, run or judge bundles share."""

from __future__ import annotations

import math
from pathlib import Path

import click

from mrsep_deploy.precision.names import ASKED

converted_precision = click.option(
    "--precision",
    type=click.Choice(ASKED),
    help="Of the arithmetic; a float32 bundle is converted and kept in the cache.  [default: the bundle's own]",
)
plan_for_mixed = click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For --precision mixed: what stays in float32 beyond the rules.",
)


def _decibels(_ctx: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of decibels, such as 60")
    return value


least_snr = click.option(
    "--limit",
    type=float,
    metavar="DB",
    callback=_decibels,
    help="Least SNR of an audible stem.  [default: 100 for fp32, 60 for fp16, 42 for bf16]",
)
