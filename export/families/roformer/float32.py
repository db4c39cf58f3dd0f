"""What lower precision leaves in float32 of this family's models, beyond the general rules of precision.

rotation  queries and keys while they are rotated: a rounded angle would be another place
last      the last layer of every mask and its gate: nothing that comes after evens their roundings out
product   the complex product of mask and spectrogram, and the mean of overlapping masks before it
"""

from __future__ import annotations

from collections.abc import Sequence

from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.export.families.roformer.model import Roformer
from mrsep_deploy.export.families.roformer.rewrite_bands import GroupedMasks
from mrsep_deploy.export.families.roformer.stages import BANDS, BLOCKS, MASKS

MEANS = tuple(
    f"mask_estimators.{number}/{operator}*"
    for number in ("[0-9]", "[0-9][0-9]")
    for operator in ("Add", "Mul")
)
"""Nodes of the mean of overlapping masks, in the module of a mask itself."""

Patterns = dict[str, dict[str, tuple[str, ...]]]
"""Patterns of node names by rule and by stage."""


def float32_nodes(model: Roformer, stages: Sequence[Stage]) -> Patterns:
    """Returns what stays in float32 of a model as it is exported, in these stages."""
    found: Patterns = {rule: {} for rule in ("norms", "rotation", "last", "product")}
    last: tuple[str, ...] = f"*.to_freqs.*.0.{2 * (model.config.mask_layers - 1)}/*", "*.to_freqs.*.1/*"
    if any(isinstance(module, GroupedMasks) for module in model.mask_estimators):
        last = ("*.ends.*",)
    for stage in stages:
        if stage.name in (BANDS, BLOCKS, "core"):
            found["norms"][stage.name] = ()
        if stage.name in (BLOCKS, "core"):
            found["rotation"][stage.name] = ("*.rotary_embed/*",)
        if stage.name in (MASKS, "core"):
            found["last"][stage.name] = last
            found["product"][stage.name] = ("product/*", *MEANS)
    return found
