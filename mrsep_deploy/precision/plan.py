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
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.parts import write_file
from mrsep_deploy.files.reading import read_start
from mrsep_deploy.files.strict_json import MAX_BYTES, Record, parse, raised_as, shown
from mrsep_deploy.precision.names import Low

FORMAT = "mrsep-deploy precision plan"
FORMAT_VERSION = 1
MAX_STAGES = MAX_RULES = 64
MAX_PATTERNS = 4096
MAX_PATTERN = 512

GENERAL = ("norms", "attention", "residual", "constants", "transposed", "chains")
"""Names of the rules that any model may need (``rules.RULES`` says what they are); bundles carry their family's."""

_FIX = "A plan is what `verify --bisect` writes."


@dataclass(frozen=True)
class PrecisionPlan:
    """What to compute in float32 where all else is of lower precision.

    Attributes:
        precision: element type of everything else.
        rules: names of rules: general ones, and those that the bundle carries.
        keep: by stage, names of nodes or patterns of names, computed in float32 beyond the rules.
    """

    precision: Low
    rules: tuple[str, ...]
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Returns the plan as plain values."""
        keep = {stage: list(names) for stage, names in sorted(self.keep.items())}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "precision": self.precision,
            "rules": list(self.rules),
            "keep": keep,
        }

    @classmethod
    def from_json(cls, value: object, where: str = "plan") -> PrecisionPlan:
        """Returns the plan that plain values hold.

        Raises:
            UsageError: a field is missing, unknown or of another kind; says which one and what was expected.
        """
        with raised_as(UsageError):
            return _read(value, where)


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
        value = parse(data, f"the plan {path}", _FIX)
    return PrecisionPlan.from_json(value, f"the plan {path}")


def write_plan(plan: PrecisionPlan, path: str | os.PathLike[str]) -> None:
    """Writes a plan as indented JSON; the file appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(plan.to_json(), indent=2, ensure_ascii=False) + "\n"
    write_file(Path(os.path.abspath(path)), text.encode())


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
        if pattern in exact:
            found.add(pattern)
            continue
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise UsageError(
                f"the plan keeps {shown(pattern)} of stage {stage}, which matches none of its {len(known)} nodes",
                f"Names are like {known[0]}." if known else "Leave it out.",
            )
        found.update(matches)
    return frozenset(found)


def _read(value: object, where: str) -> PrecisionPlan:
    record = Record(value, where, _FIX, ("format", "format_version", "precision", "rules", "keep"))
    record.choice("format", (FORMAT,))
    record.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    rules = record.names("rules", 0, MAX_RULES)
    keep = record.mapping("keep")
    if len(keep) > MAX_STAGES:
        record.wrong("keep", f"at most {MAX_STAGES} stages")
    patterns = {stage: _patterns(names, f"{where}.keep[{shown(stage)}]") for stage, names in keep.items()}
    return PrecisionPlan(record.choice("precision", get_args(Low)), rules, patterns)


def _patterns(value: object, where: str) -> tuple[str, ...]:
    expected = f"a list of up to {MAX_PATTERNS} names or patterns of up to {MAX_PATTERN} characters"
    if not isinstance(value, list) or len(value) > MAX_PATTERNS:
        raise UsageError(f"{where} is {shown(value)}, expected {expected}", _FIX)
    for item in value:
        if not isinstance(item, str) or not 0 < len(item) <= MAX_PATTERN:
            raise UsageError(f"{where} holds {shown(item)}, expected {expected}", _FIX)
    return tuple(str(item) for item in value)
