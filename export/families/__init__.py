"""The table of all families of models. Importing it needs no PyTorch.

Names of model classes, of variants and of rewrites are looked up here when they are needed, so whatever is
added to ``FAMILIES`` is known everywhere at once.
"""

from __future__ import annotations

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families.demucs.family import Demucs
from mrsep_deploy.export.families.family import Family
from mrsep_deploy.export.families.hdemucs.family import HDemucs
from mrsep_deploy.export.families.roformer.family import RoFormer

FAMILIES: dict[str, Family] = {family.name: family for family in (Demucs(), HDemucs(), RoFormer())}


def variants() -> tuple[str, ...]:
    """Names of all models that can be made, family by family."""
    return tuple(variant for family in FAMILIES.values() for variant in family.variants)


def known_classes() -> dict[str, str]:
    """Qualified names of the model classes that a checkpoint may be of, each with its variant."""
    return {klass: variant for family in FAMILIES.values() for klass, variant in family.classes.items()}


def rewrites() -> tuple[str, ...]:
    """Names of all rewrites, each once."""
    return tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.rewrites))


def family_of(variant: str) -> Family:
    """The family that a variant belongs to.

    Raises:
        CheckpointError: there is no such variant.
    """
    for family in FAMILIES.values():
        if variant in family.variants:
            return family
    raise CheckpointError(
        f"models of the family {variant!r} cannot be exported", f"Supported are {', '.join(variants())}."
    )
