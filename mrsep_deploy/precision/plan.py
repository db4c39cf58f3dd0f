"""What a bundle of lower precision computes in float32, as data that people can read and edit.

A plan is the low type, the names of the rules that hold in every stage, general ones and those of a model's family
(here fold, last and fusion), and, by stage, further nodes:

    {"format": "mrsep-deploy precision plan", "format_version": 1, "precision": "float16",
     "rules": ["norms", "attention", "residual", "constants", "transposed", "chains", "fold", "last", "fusion"],
     "keep": {"decoder.time": ["tdecoder.3.conv_tr/*"]}}

Nodes are named as in the float32 graphs, by name or by pattern (``*``, ``?``, ``[...]``).
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.parts import write_file
from mrsep_deploy.files.reading import read_start
from mrsep_deploy.files.strict_json import MAX_BYTES, plain, raised_as, shown, written
from mrsep_deploy.files.typed_json import Name, document
from mrsep_deploy.precision.names import Low

GENERAL = ("norms", "attention", "residual", "constants", "transposed", "chains")
"""Names of the rules that any model may need (``rules.RULES`` says what they are); bundles carry their family's."""

_HEADER = {"format": "mrsep-deploy precision plan", "format_version": 1}
_FIX = "A plan is what `verify --bisect` writes."

_Pattern = Annotated[
    str, Meta(min_length=1, max_length=512, description="a name or a pattern of up to 512 characters")
]
_Patterns = Annotated[tuple[_Pattern, ...], Meta(max_length=4096)]
Kept = Annotated[Mapping[str, _Patterns], Meta(max_length=64)]
"""By stage, names of nodes or patterns of names."""


@dataclass(frozen=True)
class PrecisionPlan:
    """What to compute in float32 where all else is of lower precision.

    Attributes:
        precision: element type of everything else.
        rules: names of rules: general ones, and those that the bundle carries.
        keep: by stage, names of nodes or patterns of names, computed in float32 beyond the rules.
    """

    precision: Low
    rules: Annotated[tuple[Name, ...], Meta(max_length=64)]
    keep: Kept = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Returns the plan as plain values."""
        return {**_HEADER, **plain(replace(self, keep=dict(sorted(self.keep.items()))))}


def default_plan(precision: Low, family: Iterable[str]) -> PrecisionPlan:
    """Returns the plan of all rules, the general ones and a family's (a manifest's ``float32``), and no more."""
    return PrecisionPlan(precision, tuple(dict.fromkeys((*GENERAL, *family))))


def read_plan(path: str | os.PathLike[str]) -> PrecisionPlan:
    """Reads the plan in a JSON file.

    Raises:
        UsageError: it cannot be read, or is no plan.
    """
    try:
        data = read_start(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"the plan {path} cannot be read: {error.strerror or error}", _FIX) from error
    with raised_as(UsageError):
        plan = document(data, _HEADER, PrecisionPlan, f"the plan {path}", _FIX)
    if len(set(plan.rules)) != len(plan.rules):
        raise UsageError(f"the plan {path}.rules is {shown(plan.rules)}, expected names that differ", _FIX)
    return plan


def write_plan(plan: PrecisionPlan, path: str | os.PathLike[str]) -> None:
    """Writes a plan as indented JSON; the file appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_file(Path(os.path.abspath(path)), written({}, plan.to_json()))


def check_plan(plan: PrecisionPlan, manifest: Manifest) -> None:
    """Raises ``UsageError`` if a plan names rules, or keeps nodes of stages, that a bundle does not have."""
    known = tuple(dict.fromkeys((*GENERAL, *manifest.float32)))
    for rule in plan.rules:
        if rule not in known:
            raise UsageError(
                f"the plan names a rule {shown(rule)}, this bundle has the rules {', '.join(known)}",
                "Correct the rule, or leave it out.",
            )
    stages = tuple(stage.name for stage in manifest.graph_stages)
    for name in plan.keep:
        if name not in stages:
            raise UsageError(
                f"the plan keeps nodes of a stage {shown(name)}, this bundle has the graphs {', '.join(stages)}",
                "Correct the stage in keep.",
            )


def matching_nodes(plan: PrecisionPlan, stage: str, names: Iterable[str]) -> frozenset[str]:
    """Returns the nodes of a stage that ``keep`` names.

    Raises:
        UsageError: a pattern matches none of them.
    """
    known = tuple(names)
    exact = frozenset(known)
    found: set[str] = set()
    for pattern in plan.keep.get(stage, ()):
        matches = [pattern] if pattern in exact else fnmatch.filter(known, pattern)
        if not matches:
            raise UsageError(
                f"the plan keeps {shown(pattern)} of stage {stage}, which matches none of its {len(known)} nodes",
                f"Names are like {known[0]}." if known else "Leave it out.",
            )
        found.update(matches)
    return frozenset(found)
