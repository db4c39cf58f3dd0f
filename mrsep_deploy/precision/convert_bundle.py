"""A float32 bundle in lower precision: a full bundle of its own, or one kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from mrsep_deploy.bundle import Bundle, check_bundle_place, write_bundle
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.errors import BundleError, UsageError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import make_folder
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.precision.convert_graph import BFLOAT16_OPSET, StageGraph, TypedGraph, typed_graph
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.plan import PrecisionPlan, check_plan

log = logging.getLogger(__name__)

VERSION = 3
"""Of the conversion: bundles in the cache that another version made are not taken."""


def convert_report(bundle: Bundle, plan: PrecisionPlan) -> dict[str, TypedGraph]:
    """Converts every graph stage of a float32 bundle to lower precision, by name, with a warning for rules that miss.

    Raises:
        BundleError: a graph is not one that ``mrsep-deploy export`` wrote.
        UsageError: the bundle is not in float32, or the plan names rules, stages or nodes it does not have.
    """
    manifest = bundle.manifest
    if manifest.precision != "float32":
        raise UsageError(
            f"{manifest.name} holds {manifest.precision} graphs, expected float32 ones to convert",
            "Give the bundle it was made from, or export the checkpoint again.",
        )
    check_plan(plan, manifest)
    low = low_tensors(manifest, plan.precision)
    typed = {}
    for stage in manifest.graph_stages:
        inputs, outputs = (
            {name: plan.precision if name in low else "float32" for name in names}
            for names in (stage.inputs, stage.outputs)
        )
        typed[stage.name] = typed_graph(StageGraph.of(bundle, stage), plan, inputs, outputs)
        for rule in typed[stage.name].unmatched:
            log.warning(
                "%s: the rule %s matches nothing in stage %s, where the model's family expects it to, so that more "
                "is of %s there; run verify --precision, and report this",
                manifest.name, rule, stage.name, plan.precision,
            )  # fmt: skip
    return typed


def low_tensors(manifest: Manifest, precision: Low) -> frozenset[str]:
    """Tensors of lower precision between stages: those that only graph stages write and read.

    Hosts have no arrays of bfloat16: beside it, all stay float32.
    """
    if precision == "bfloat16":
        return frozenset()
    graphs = manifest.graph_stages
    others = [stage for stage in manifest.stages if stage.kind != "graph"]
    written = {name for stage in graphs for name in stage.outputs}
    read = {name for stage in graphs for name in stage.inputs}
    return frozenset(written & read - {name for stage in others for name in stage.inputs})


def convert_bundle(bundle: Bundle, plan: PrecisionPlan, target: Path, *, overwrite: bool = False) -> Bundle:
    """Writes a float32 bundle in lower precision.

    Spectrograms, inverses and all else that is no graph of the network stays float32, and so does every
    tensor such a stage reads or writes. ``provenance`` says what it was made from and how, and what each
    graph costs.

    Args:
        bundle: in float32.
        plan: what stays in float32.
        target: the folder to be.
        overwrite: whether a bundle there may be replaced.

    Returns:
        The new bundle, of the same name; equal ones are equal byte for byte.

    Raises:
        BundleError, UsageError: as for :func:`convert_report`.
        OutputError: the place is taken or cannot be written.
    """
    check_bundle_place(target, overwrite=overwrite)
    typed = convert_report(bundle, plan)
    manifest = bundle.manifest
    files = {stage.file: bundle.graph_bytes(stage) for stage in manifest.stages if stage.file is not None}
    for stage in manifest.graph_stages:
        assert stage.file is not None
        files[stage.file] = typed[stage.name].data
    low = low_tensors(manifest, plan.precision)
    made_from = {
        "source": bundle.digest,
        "converter": VERSION,
        "plan": plan.to_json(),
        "graphs": plain({name: graph.cost for name, graph in typed.items()}),
    }
    converted = replace(
        manifest,
        precision=plan.precision,
        opset=max(manifest.opset, BFLOAT16_OPSET) if plan.precision == "bfloat16" else manifest.opset,
        tensors=tuple(
            replace(tensor, dtype=plan.precision if tensor.name in low else tensor.dtype)
            for tensor in manifest.tensors
        ),
        checks={},  # they are of the float32 graphs
        provenance={**manifest.provenance, "precision": made_from},
    )
    return write_bundle(target, converted, files, overwrite=overwrite)


def derived_bundle(bundle: Bundle, plan: PrecisionPlan) -> Bundle:
    """:func:`convert_bundle` in the cache: made at the first call, found again by later ones, opened at the same batch.

    Raises:
        BundleError, UsageError: as for :func:`convert_report`.
        OutputError: the cache cannot be written.
    """
    made_from = json.dumps([VERSION, bundle.digest, plan.to_json()], sort_keys=True)
    name = hashlib.sha256(made_from.encode()).hexdigest()
    folder = make_folder(paths.cache_dir("bundles"), paths.SET_HOME)
    place = folder / name
    # one of several processes makes it; a lock ends with the process that holds it
    with FileLock(folder / f"{name}.lock"):
        if place.exists():
            with suppress(BundleError):
                return Bundle.open(place).at_batch(bundle.manifest.batch)
            shutil.rmtree(place, ignore_errors=True)  # damaged
        return convert_bundle(bundle, plan, place, overwrite=True).at_batch(bundle.manifest.batch)
