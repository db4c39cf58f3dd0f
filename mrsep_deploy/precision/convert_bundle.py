"""A float32 bundle in lower precision: a full bundle of its own, or one kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
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
from mrsep_deploy.precision.convert_graph import StageGraph, TypedGraph, typed_graph
from mrsep_deploy.precision.hazards import stage_hazards
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.opset import BFLOAT16_OPSET
from mrsep_deploy.precision.plan import PrecisionPlan, check_plan
from mrsep_deploy.precision.proof import prove
from mrsep_deploy.precision.proof_record import Hazard, read_proof
from mrsep_deploy.precision.ranges import load

log = logging.getLogger(__name__)

VERSION = 6
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


def convert_bundle(
    bundle: Bundle,
    plan: PrecisionPlan,
    target: Path,
    *,
    overwrite: bool = False,
    twins: bool = True,
    proved: bool = True,
) -> Bundle:
    """Writes a float32 bundle in lower precision.

    Spectrograms, inverses and all else that is no graph of the network stays float32, and so does every
    tensor such a stage reads or writes. ``provenance`` says what it was made from and how, and what each
    graph costs; ``checks`` what it loses on the probe (:mod:`~mrsep_deploy.precision.proof`).

    Args:
        bundle: in float32.
        plan: what stays in float32.
        target: the folder to be.
        overwrite: whether a bundle there may be replaced.
        twins: keep the float32 graphs beside those of lower precision, for the segments that these would lose.
        proved: run it on the probe; not for a search that judges the bundle itself, and keeps none that fails.

    Returns:
        The new bundle, of the same name; equal ones are equal byte for byte, if they are made on the same machine.

    Raises:
        BundleError: as for :func:`convert_report`, or a tensor is not finite on the probe.
        UsageError: as for :func:`convert_report`.
        OutputError: the place is taken or cannot be written.
    """
    check_bundle_place(target, overwrite=overwrite)
    typed = convert_report(bundle, plan)
    manifest = bundle.manifest
    files = {stage.file: bundle.graph_bytes(stage) for stage in manifest.stages if stage.file is not None}
    stages = []
    for stage in manifest.stages:
        if stage.name in typed:
            assert stage.file is not None
            twin = f"{Path(stage.file).stem}.float32.onnx" if twins else None
            if twin is not None:
                files[twin] = files[stage.file]
            files[stage.file] = typed[stage.name].data
            stage = replace(stage, twin=twin)
        stages.append(stage)
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
        stages=tuple(stages),
        checks={},  # they are of the float32 graphs
        provenance={**manifest.provenance, "precision": made_from},
    )
    if proved:
        found = _known_hazards(bundle, typed, plan)
        converted = replace(converted, checks=prove(bundle, typed, converted, found).to_json())
    _warn(converted, plan)
    return write_bundle(target, converted, files, overwrite=overwrite)


def _known_hazards(bundle: Bundle, typed: Mapping[str, TypedGraph], plan: PrecisionPlan) -> Iterator[Hazard]:
    """Constants that are lost, and overflow by the ranges that the bundle holds, if it was calibrated."""
    calibration = load(bundle)
    ranges = {} if calibration is None else calibration.ranges
    for graph in typed.values():
        for hazard in stage_hazards(graph.source, plan.precision, graph.low, ranges):
            if hazard.kind in ("overflow", "near overflow", "constant"):
                yield hazard


def _warn(manifest: Manifest, plan: PrecisionPlan) -> None:
    proof = read_proof(manifest)
    for line in () if proof is None else proof.warnings(plan.precision):
        log.warning("%s in %s: %s; verify --bisect says what to keep", manifest.name, plan.precision, line)


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
                found = Bundle.open(place).at_batch(bundle.manifest.batch).made_from(bundle)
                _warn(found.manifest, plan)
                return found
            shutil.rmtree(place, ignore_errors=True)  # damaged
        made = convert_bundle(bundle, plan, place, overwrite=True, twins=False)
        return made.at_batch(bundle.manifest.batch).made_from(bundle)
