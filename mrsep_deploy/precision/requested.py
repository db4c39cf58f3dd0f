"""The bundle in the precision that was asked for.

A float32 bundle is converted when another precision is asked for, once, and kept in the cache. ``mixed`` takes
the file of a plan, or a bundle that was exported with one. A bundle of lower precision stays as it is: the last
bits of its weights are gone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.bundle.provenance import within
from mrsep_deploy.errors import EngineUnavailableError, UsageError
from mrsep_deploy.precision.names import ELEMENTS, AskedPrecision, arithmetic

if TYPE_CHECKING:
    from mrsep_deploy.precision.plan import PrecisionPlan

INSTALL_ONNX = 'pip install "onnx>=1.19" "onnx-ir>=0.1.16"'


def is_mixed(manifest: Manifest) -> bool:
    """Whether a bundle was made with a plan that keeps more in float32 than the rules do."""
    return bool(within(manifest.provenance, "precision", "plan", "keep"))


def in_precision(bundle: Bundle, asked: AskedPrecision | None, plan: Path | None = None) -> Bundle:
    """Returns a bundle in the precision that was asked for.

    Args:
        bundle: of any precision.
        asked: None for the bundle's own.
        plan: for ``mixed``, a plan's file.

    Returns:
        The bundle itself, or one in the cache that was made from it.

    Raises:
        UsageError: the bundle is of another precision and cannot become this one; plan and precision do not
            fit together; the plan does not fit the bundle.
        EngineUnavailableError: it has to be converted, and ``onnx`` or ``onnx-ir`` is not installed.
        OutputError: the cache cannot be written.
    """
    if asked is None and plan is None:
        return bundle
    manifest = bundle.manifest
    if manifest.precision != "float32":
        _require_equal(manifest, asked, plan)
        return bundle
    chosen = chosen_plan(asked, plan, manifest.float32)
    if chosen is None:
        return bundle
    require_onnx("converting a bundle")
    from mrsep_deploy.precision.convert_bundle import derived_bundle

    return derived_bundle(bundle, chosen)


def keeping(bundle: Bundle, asked: AskedPrecision | None, keep: Mapping[str, tuple[str, ...]]) -> Bundle:
    """Returns a float32 bundle in the precision that was asked for, with more in float32 than the rules keep.

    Args:
        keep: nodes, by stage, as a run plan holds them.
    """
    from mrsep_deploy.precision.convert_bundle import derived_bundle

    plan = chosen_plan(asked, None, bundle.manifest.float32)
    assert plan is not None
    return derived_bundle(bundle, replace(plan, keep=keep))


def chosen_plan(
    asked: AskedPrecision | None, plan: Path | None, family: Iterable[str] = ()
) -> PrecisionPlan | None:
    """Returns the plan that stands for a precision; None for float32.

    Args:
        asked: the precision; None for the bundle's own.
        plan: for ``mixed``, a plan's file.
        family: names of the rules that the bundle carries (its manifest's ``float32``).

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
        return default_plan(ELEMENTS[asked], family)
    if plan is None:
        raise UsageError(
            "--precision mixed was given without a plan, expected --plan FILE",
            "Give a plan, or choose --precision fp16.",
        )
    return read_plan(plan)


def _require_equal(manifest: Manifest, asked: AskedPrecision | None, plan: Path | None) -> None:
    """Raises unless a bundle of lower precision already is what was asked for."""
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
    elif asked is not None and ELEMENTS.get(asked) != found:
        raise UsageError(
            f"{manifest.name} holds {found} graphs, expected {ELEMENTS.get(asked, 'float32')} for {asked}",
            f"Choose --precision {arithmetic(manifest)}, or export the checkpoint with --precision {asked}.",
        )


def require_onnx(what: str) -> None:
    """Raises ``EngineUnavailableError`` with the line that installs it unless ``onnx`` and ``onnx-ir`` are there."""
    for package, module in (("onnx", "onnx"), ("onnx-ir", "onnx_ir")):
        if importlib.util.find_spec(module) is None:
            raise EngineUnavailableError(f"{what} needs {package}, which is not installed", INSTALL_ONNX)
