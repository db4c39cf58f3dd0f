"""Does a manifest make sense? Every rule that concerns more than one field.

Types and bounds of single fields are ``manifest``'s; here a manifest is already well typed. What
passes is safe to schedule: stages come after what they read, every tensor has one producer and a
shape, every graph a file (other stages may have one, the same function for engines that run it on a
device), every file a name that cannot leave its folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from mrsep_deploy.bundle.manifest import (
    BATCH,
    MAX_SAMPLES,
    MIX,
    STEMS,
    Branch,
    Manifest,
    ModelInfo,
    Stage,
    Transform,
)
from mrsep_deploy.errors import BundleError
from mrsep_deploy.files.strict_json import shown

FIX = "Export the checkpoint again, or fetch the bundle anew."
MANIFEST_FILE = "manifest.json"
SHARED = "shared"
MAX_SEGMENT = 3600

# these open a device instead of a file on Windows, whatever their suffix
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check(manifest: Manifest) -> None:
    """Raise ``BundleError`` for the first rule the manifest breaks."""
    check_model(manifest.model)
    if manifest.licence.is_contradictory:
        _refuse(f"licence.commercial is true, expected false for the terms {shown(manifest.licence.terms)}")
    application, samples = manifest.application, manifest.model.segment_samples
    if application.context >= samples:
        _refuse(f"application.context is {application.context}, expected less than {samples} samples")
    samples -= application.context
    least, most = (1, samples // 2) if application.weights == "linear" else (0, 0)
    if not least <= application.fade <= most:
        _refuse(f"application.fade is {application.fade}, expected {least} to {most} samples")
    _check_distinct("branches", [branch.name for branch in manifest.branches])
    for branch in manifest.branches:
        _check_branch(branch, len(manifest.model.sources), manifest.model.segment_samples)
    _check_fusion(manifest)
    for index, tensor in enumerate(manifest.tensors):
        if tensor.elements > MAX_SAMPLES:
            shape = f"manifest.tensors[{index}].shape is {list(tensor.shape)}"
            _refuse(f"{shape}, expected at most {MAX_SAMPLES} elements")
    _check_distinct("tensors", [tensor.name for tensor in manifest.tensors])
    _check_distinct("stages", [stage.name for stage in manifest.stages])
    for name in manifest.files:
        if name.endswith(".") or _DEVICE.fullmatch(name) or name.lower() == MANIFEST_FILE:
            _refuse(f"manifest.files names {name!r}, which is reserved")
    _check_distinct("files", [name.lower() for name in manifest.files])
    for stage in manifest.stages:
        _check_stage(manifest, stage)
    _check_flow(manifest)
    _check_ends(manifest)


def _refuse(message: str) -> NoReturn:
    raise BundleError(message, FIX)


def check_model(model: ModelInfo) -> None:
    """Raise ``BundleError`` for the first rule the model breaks."""
    # every source becomes a file, and not every file system tells Drums from drums
    _check_distinct("model.sources", [source.lower() for source in model.sources])
    for source in model.sources:
        if source.endswith(".") or _DEVICE.fullmatch(source):
            _refuse(f"model.sources names {source!r}, which cannot name a file")
    if not 0 < model.segment <= MAX_SEGMENT:
        _refuse(f"model.segment is {model.segment} s, expected more than 0 and at most {MAX_SEGMENT} s")
    expected = model.segment * model.sample_rate
    if abs(model.segment_samples - expected) > 1:
        _refuse(f"model.segment_samples is {model.segment_samples}, expected {expected} from model.segment")


def _check_branch(branch: Branch, sources: int, samples: int) -> None:
    where = f"branch {branch.name!r}"
    if branch.name == SHARED:
        _refuse(f"{where} has the name of the stages that belong to no branch")
    if len(branch.gains) != sources:
        _refuse(f"{where} has {len(branch.gains)} gains, expected one for each of {sources} sources")
    if branch.transform is not None:
        _check_transform(where, branch.transform, samples)


def _check_transform(where: str, transform: Transform, samples: int) -> None:
    """The frames cover the segment, each sample with weight, and lie within what it is extended by."""
    n_fft, hop, half = transform.n_fft, transform.hop, transform.n_fft // 2
    if n_fft % 2 or not 2 * hop <= n_fft or not half <= transform.bins <= half + 1:
        sizes = f"hop {hop} and {transform.bins} bins"
        _refuse(f"{where} has {sizes}, impossible for n_fft {n_fft}")
    least = 0 if transform.envelope == "endless" else 1
    if not least <= transform.offset < n_fft:
        _refuse(f"{where} has offset {transform.offset}, expected {least} to {n_fft - 1}")
    if transform.delay and not (transform.envelope == "extended" and transform.delay <= transform.offset):
        _refuse(f"{where} has a delay of {transform.delay} and an envelope of {transform.envelope!r} frames")
    extended = transform.offset + samples + transform.after
    if not transform.offset + samples <= transform.span <= extended or transform.after > n_fft + hop:
        _refuse(
            f"{where} has {transform.frames} frames over {transform.span} samples and after {transform.after}, "
            f"expected to cover {samples} samples and at most {extended}"
        )


def _check_fusion(manifest: Manifest) -> None:
    for index, shares in enumerate(manifest.fusion):
        rows, lengths = max(1, len(shares.sources)), {len(row) for row in shares.weights}
        if len(shares.weights) != rows or len(lengths) != 1:
            _refuse(
                f"manifest.fusion[{index}].weights is {shown(shares.weights)}, expected {rows} rows of one length"
            )
        _check_distinct(f"fusion[{index}].sources", shares.sources)
        for source in shares.sources:
            if source not in manifest.model.sources:
                _refuse(f"manifest.fusion names the source {source!r}, which the model does not have")
        for row in shares.weights:
            if len(row) > len(manifest.branches):
                _refuse(f"manifest.fusion weighs {len(row)} resolutions of {len(manifest.branches)} branches")
            if min(row) < 0 or abs(sum(row) - 1) > 1e-3:
                _refuse(f"manifest.fusion has a row that sums to {sum(row):g}, expected shares that sum to 1")


def _check_stage(manifest: Manifest, stage: Stage) -> None:
    where = f"stage {stage.name!r}"
    _check_distinct(f"inputs of {where}", stage.inputs)
    _check_distinct(f"outputs of {where}", stage.outputs)
    branches = {branch.name: branch for branch in manifest.branches}
    if stage.file not in manifest.files and (stage.kind == "graph" or stage.file is not None):
        _refuse(f"{where} has the file {stage.file!r}, expected one listed in manifest.files")
    if stage.twin is not None and (stage.twin not in manifest.files or stage.kind != "graph"):
        _refuse(f"{where} has the twin {stage.twin!r}, expected one listed in manifest.files, of a graph")
    if stage.kind in ("graph", "sum"):
        if stage.branch not in branches and stage.branch != SHARED:
            _refuse(f"{where} belongs to branch {stage.branch!r}, expected {SHARED!r} or a listed branch")
    else:
        _check_host_branch(stage, branches.get(stage.branch))


def _check_host_branch(stage: Stage, branch: Branch | None) -> None:
    """Host stages take their sizes from their branch, so it must exist and be of the right sort."""
    if branch is None:
        _refuse(f"stage {stage.name!r} belongs to branch {stage.branch!r}, expected a listed branch")
    wants_waveform = stage.kind in ("normalize", "denormalize")
    if branch.is_waveform != wants_waveform:
        sort = "waveform" if wants_waveform else "spectrogram"
        _refuse(f"stage {stage.name!r} is of kind {stage.kind}, but {branch.name!r} is no {sort} branch")
    analysis = stage.kind in ("spectrogram", "normalize")
    tensors, what = (stage.outputs, "outputs") if analysis else (stage.inputs, "inputs")
    expected = 2 if branch.normalise else 1
    if len(tensors) != expected or len(stage.inputs if analysis else stage.outputs) != 1:
        _refuse(
            f"stage {stage.name!r} has {len(stage.inputs)} inputs and {len(stage.outputs)} outputs, "
            f"expected {expected} {what} and one other"
        )


def _check_flow(manifest: Manifest) -> None:
    """In the order given, every stage finds its inputs, and nothing is written twice."""
    declared = {tensor.name for tensor in manifest.tensors}
    ready = {MIX}
    for stage in manifest.stages:
        for name in (*stage.inputs, *stage.outputs):
            if name not in declared:
                _refuse(f"stage {stage.name!r} uses {name!r}, which manifest.tensors does not list")
        for name in stage.inputs:
            if name not in ready:
                _refuse(f"stage {stage.name!r} reads {name!r}, which no earlier stage writes")
        for name in stage.outputs:
            if name in ready:
                _refuse(f"stage {stage.name!r} writes {name!r}, which already exists")
        ready.update(stage.outputs)
    if STEMS not in ready:
        _refuse(f"no stage writes {STEMS!r}")
    for name in sorted(declared - ready):
        _refuse(f"manifest.tensors lists {name!r}, which no stage writes")


def _check_ends(manifest: Manifest) -> None:
    model = manifest.model
    signal = (model.audio_channels, model.segment_samples)
    ends = {MIX: signal, STEMS: (len(model.sources), *signal)}
    tensors = {tensor.name: tensor for tensor in manifest.tensors}
    for name, shape in ends.items():
        if name not in tensors:
            _refuse(f"manifest.tensors does not list {name!r}")
        spec = tensors[name]
        if (spec.shape[1:], spec.dtype) != (shape, "float32"):
            found, expected = ([BATCH, *sizes] for sizes in (spec.shape[1:], shape))
            _refuse(f"tensor {name!r} is {spec.dtype} {found}, expected float32 {expected}")


def _check_distinct(where: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse(f"manifest lists {name!r} twice in {where}")
        seen.add(name)
