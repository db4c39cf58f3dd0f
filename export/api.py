"""The verb: export a checkpoint, and give the bundle a name.

Needs the extra ``mrsep-deploy[export]`` only when it runs; importing this module needs nothing of it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mrsep_deploy.bundle import Bundle, check_bundle_place, registry, shipped
from mrsep_deploy.bundle.licence import UNSTATED, Licence
from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.bundle.provenance import Provenance
from mrsep_deploy.bundle.published import licence_of
from mrsep_deploy.errors import ExportError, UsageError
from mrsep_deploy.export.families import rewrites
from mrsep_deploy.files import paths
from mrsep_deploy.precision.names import AskedPrecision
from mrsep_deploy.precision.requested import chosen_plan

if TYPE_CHECKING:
    from mrsep_deploy.export.exporter import Progress
    from mrsep_deploy.export.load import LoadedModel

EXTRA = ("torch", "onnx", "onnx_ir", "onnxscript", "yaml", "safetensors")
"""Modules of the extra ``mrsep-deploy[export]``."""

INSTALL = 'pip install "mrsep-deploy[export]"'


def export(
    checkpoint: str | os.PathLike[str] | LoadedModel,
    output: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    layout: Layout = "split",
    precision: AskedPrecision = "fp32",
    plan: Path | None = None,
    without: Collection[str] = (),
    licence: Licence | None = None,
    segment: float | None = None,
    config: str | os.PathLike[str] | None = None,
    arguments: Mapping[str, object] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Turn a checkpoint into a bundle, checked against PyTorch stage by stage, and register it.

        bundle = mrsep_deploy.export("955717e8-8726e21a.th", name="htdemucs")

    Args:
        checkpoint: a file (``.th``, ``.ckpt``, ``.safetensors``, a ``.yaml`` bag of one), or a model already loaded.
        output: the bundle's folder; by default one of this program's own, found again by ``name``.
        name: the name to register; by default the checkpoint's stem.
        layout: ``split`` into stages, or one ``whole`` graph between spectrogram and inverse.
        precision: of the bundle's graphs. Those of lower precision are converted from the float32 ones, which
            are checked against PyTorch first and not kept.
        plan: for ``mixed``, the file of a plan.
        without: rewrites to leave out, by name.
        licence: of the weights, as their author states it; None for what is known of published checkpoints.
        segment: seconds of a segment, for models that take any.
        config: the configuration of a file that holds a bare state dict; by default the ``.yaml`` beside it.
        arguments: constructor arguments in place of the configuration's.
        overwrite: whether a bundle at ``output`` may be replaced.
        progress: called with what happens now, how many steps are done and how many there are.

    Raises:
        ExportError: the extra is not installed, or the model strays from PyTorch on the way.
        CheckpointError: the checkpoint cannot be read or fits no supported model.
        UsageError: a name or a value is impossible, or the name is taken.
        OutputError: the bundle cannot be written at ``output``.
    """
    require_extra("exporting a checkpoint")
    from mrsep_deploy.export.exporter import ExportOptions, export_model
    from mrsep_deploy.export.load import LoadedModel, load_model

    unknown = sorted(set(without) - set(rewrites()))
    if unknown:
        raise UsageError(f"there is no rewrite {', '.join(unknown)}", f"There are {', '.join(rewrites())}.")
    name = registry.validate_name(default_name(checkpoint) if name is None else name)
    target = Path(os.path.abspath(paths.models_dir() / name if output is None else output))
    # The export takes minutes, so whatever would stop its last step is found before its first.
    registry.check_free(name, target)
    check_bundle_place(target, overwrite=overwrite)
    lower = chosen_plan(precision, plan) is not None
    loaded = (
        checkpoint
        if isinstance(checkpoint, LoadedModel)
        else load_model(checkpoint, config, arguments, segment)
    )
    if licence is None:
        licence = known_licence(loaded)
    options = ExportOptions(layout, tuple(without), licence)
    report = progress or (lambda _what, _done, _total: None)
    if not lower:
        bundle = export_model(loaded, name, target, options, overwrite=overwrite, progress=report)
    else:
        from mrsep_deploy.precision.convert_bundle import convert_bundle

        with tempfile.TemporaryDirectory(prefix="mrsep-deploy-export-") as folder:
            exported = export_model(loaded, name, Path(folder) / name, options, progress=report)
            chosen = chosen_plan(precision, plan, exported.manifest.float32)
            assert chosen is not None
            bundle = convert_bundle(exported, chosen, target, overwrite=overwrite)
    registry.register(bundle)
    return bundle


def known_licence(loaded: LoadedModel) -> Licence:
    """The licence of a checkpoint that is known by its hash: a published one, or that of the shipped model."""
    checkpoint = loaded.origin.get("checkpoint")
    if not isinstance(checkpoint, dict):
        return UNSTATED
    from_here = Bundle.open(shipped.BUNDLE, verify=False).manifest
    if Provenance.read(from_here.provenance).sha256 == checkpoint["sha256"]:
        return from_here.licence
    return licence_of(checkpoint["sha256"])


def default_name(checkpoint: str | os.PathLike[str] | LoadedModel) -> str:
    """The name an export gets if it is given none: the file's stem, or ``FAMILY-untrained``.

    What a name cannot hold becomes ``-``.

    Raises:
        UsageError: nothing of the stem can stand in a name.
    """
    if isinstance(checkpoint, (str, os.PathLike)):
        stem = Path(checkpoint).stem
    else:
        origin = checkpoint.origin.get("checkpoint")
        stem = f"{checkpoint.variant}-untrained"
        if isinstance(origin, dict):
            stem = Path(str(origin["path"])).stem
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")[:64]
    if not name:
        raise UsageError(f"the file name {stem!r} gives no name for the model", "Give one with --name NAME.")
    return name


def require_extra(what: str) -> None:
    """Raise ``ExportError`` with the line that installs the extra, unless all of it is there."""
    missing = [module for module in EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise ExportError(f"{what} needs {', '.join(missing)}, not installed here", f"Run {INSTALL}")
