"""Which precision a bundle has, what it costs, and how to get the one that was asked for.

    fp32    the float32 bundle as exported
    fp16    float16, with the default plan's rules in float32
    bf16    bfloat16, likewise
    mixed   what a plan says: the rules, and nodes in float32 beyond them

``mixed`` takes a plan's file, or a bundle that was exported with one.

A float32 bundle is converted when another precision is asked for, once, and kept in the cache. A bundle
of lower precision is what it is: the weights' last bits are gone, so nothing leads back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.errors import EngineUnavailableError, UsageError

if TYPE_CHECKING:
    from mrsep_deploy.engines.contract import Precision
    from mrsep_deploy.precision.plan import PrecisionPlan

AskedPrecision = Literal["fp32", "fp16", "bf16", "mixed"]
ASKED: tuple[AskedPrecision, ...] = ("fp32", "fp16", "bf16", "mixed")

_ELEMENTS: Mapping[str, Literal["float16", "bfloat16"]] = {"fp16": "float16", "bf16": "bfloat16"}
ARITHMETIC: Mapping[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""What engines call an element type."""

INSTALL_ONNX = 'pip install "onnx>=1.19"'


@dataclass(frozen=True)
class GraphCost:
    """A stage's graph in lower precision beside the float32 one.

    Attributes:
        size, original_size: bytes of the ONNX files.
        casts: inserted.
        nodes, kept: how many compute numbers, and how many of them do so in float32.
        macs, kept_macs: multiply-accumulates of one run, and those of them in float32.
        bytes_moved, original_bytes_moved: what the kernels of one run read and write, predicted.
        flushed: numbers in constants that are zero or subnormal and were neither in float32.
    """

    size: int
    original_size: int
    casts: int
    nodes: int
    kept: int
    macs: int
    kept_macs: int
    bytes_moved: int
    original_bytes_moved: int
    flushed: int


def arithmetic(manifest: Manifest) -> Precision:
    """What engines call the precision of a bundle's graphs.

    Raises:
        UsageError: it is none that engines know.
    """
    if manifest.precision not in ARITHMETIC:
        raise UsageError(
            f"{manifest.name} is of precision {manifest.precision}, expected one of {', '.join(ARITHMETIC)}",
            "Export the checkpoint again.",
        )
    return ARITHMETIC[manifest.precision]


def costs_to_json(costs: Mapping[str, GraphCost]) -> dict[str, object]:
    """Costs by stage as plain values, as ``provenance`` and ``--json`` hold them."""
    return {stage: asdict(cost) for stage, cost in costs.items()}


def read_costs(manifest: Manifest) -> dict[str, GraphCost]:
    """The costs that a converted bundle's ``provenance`` tells of; of any other, none."""
    graphs = _mapping(_mapping(manifest.provenance, "precision"), "graphs")
    names = [field.name for field in fields(GraphCost)]
    found: dict[str, GraphCost] = {}
    for stage in manifest.graph_stages:
        values = [_mapping(graphs, stage.name).get(name) for name in names]
        numbers = [value for value in values if isinstance(value, int) and value >= 0]
        if len(numbers) == len(names):
            found[stage.name] = GraphCost(*numbers)
    return found


def is_mixed(manifest: Manifest) -> bool:
    """Whether a bundle was made with a plan that keeps more in float32 than the rules do."""
    plan = _mapping(_mapping(manifest.provenance, "precision"), "plan")
    return bool(_mapping(plan, "keep"))


def in_precision(bundle: Bundle, asked: AskedPrecision | None, plan: Path | None = None) -> Bundle:
    """A bundle in the precision that was asked for.

    Args:
        bundle: of any precision.
        asked: None for the bundle's own.
        plan: for ``mixed``, a plan's file.

    Returns:
        The bundle itself, or one in the cache that was made from it.

    Raises:
        UsageError: the bundle is of another precision and cannot become this one; plan and precision do not
            fit together; the plan does not fit the bundle.
        EngineUnavailableError: it has to be converted, and ``onnx`` is not installed.
        OutputError: the cache cannot be written.
    """
    if asked is None and plan is None:
        return bundle
    manifest = bundle.manifest
    if manifest.precision != "float32":
        _require_equal(manifest, asked, plan)
        return bundle
    chosen = chosen_plan(asked, plan)
    if chosen is None:
        return bundle
    require_onnx("converting a bundle")
    from mrsep_deploy.precision.convert import derived_bundle

    return derived_bundle(bundle, chosen)


def chosen_plan(asked: AskedPrecision | None, plan: Path | None) -> PrecisionPlan | None:
    """The plan that stands for a precision; None for float32.

    Raises:
        UsageError: ``mixed`` has no plan, another precision has one, or the file holds none.
    """
    if asked != "mixed" and plan is not None:
        found = "no --precision" if asked is None else f"--precision {asked}"
        raise UsageError(
            f"a plan was given with {found}, expected --precision mixed", "Change it, or leave out the plan."
        )
    if asked is None or asked == "fp32":
        return None
    from mrsep_deploy.precision.plan import default_plan, read_plan

    if asked != "mixed":
        return default_plan(_ELEMENTS[asked])
    if plan is None:
        raise UsageError(
            "--precision mixed was given without a plan, expected --plan FILE",
            "Give a plan, or choose --precision fp16.",
        )
    return read_plan(plan)


def _require_equal(manifest: Manifest, asked: AskedPrecision | None, plan: Path | None) -> None:
    """Raise unless a bundle of lower precision already is what was asked for."""
    found = manifest.precision
    if plan is not None:
        raise UsageError(
            f"{manifest.name} holds {found} graphs already, expected float32 ones for a plan",
            "Give the bundle it was made from, or export the checkpoint again.",
        )
    if asked == "mixed":
        if not is_mixed(manifest):
            raise UsageError(
                f"{manifest.name} holds {found} graphs without a plan of its own, expected such a plan for mixed",
                f"Choose --precision {arithmetic(manifest)}, or export with --precision mixed --plan FILE.",
            )
    elif asked is not None and _ELEMENTS.get(asked) != found:
        raise UsageError(
            f"{manifest.name} holds {found} graphs, expected {_ELEMENTS.get(asked, 'float32')} for {asked}",
            f"Choose --precision {arithmetic(manifest)}, or export the checkpoint with --precision {asked}.",
        )


def require_onnx(what: str) -> None:
    """Raise ``EngineUnavailableError`` with the line that installs it unless ``onnx`` is there."""
    if importlib.util.find_spec("onnx") is None:
        raise EngineUnavailableError(f"{what} needs onnx, which is not installed", INSTALL_ONNX)


def _mapping(found: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}
