"""Checkpoint to bundle: split, rewrite, export, check, and only then write."""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import mrsep_deploy
from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.manifest import STEMS, Layout, Manifest, Stage, TensorSpec
from mrsep_deploy.bundle.manifest_json import require_model
from mrsep_deploy.errors import BundleError, CheckpointError, UsageError
from mrsep_deploy.export.check import GraphChecker, StageCheck, compare, require
from mrsep_deploy.export.complexity import count_stages
from mrsep_deploy.export.describe import learnt_shares, model_info
from mrsep_deploy.export.families.demucs.chain import reference_chain, reference_stage
from mrsep_deploy.export.families.demucs.model import SeparationModel
from mrsep_deploy.export.families.demucs.rewrites import REWRITES, rewrite
from mrsep_deploy.export.families.demucs.stages import Splitter, StagePlan, make_branches
from mrsep_deploy.export.graphs.trace import OPSET, export_graph
from mrsep_deploy.export.graphs.transforms import transform_graph
from mrsep_deploy.export.load import LoadedModel
from mrsep_deploy.export.probe import probe_signal
from mrsep_deploy.measuring.deviation import Deviation

MAX_BATCH = 64

Progress = Callable[[str, int, int], None]
"""Called with what happens now, how many steps are done and how many there are."""


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        layout: ``split`` into stages, or one ``whole`` graph between spectrogram and inverse.
        batch: segments one run takes.
        rewrites: names out of ``REWRITES``.
    """

    layout: Layout = "split"
    batch: int = 1
    rewrites: tuple[str, ...] = tuple(REWRITES)


def export_model(
    loaded: LoadedModel,
    name: str,
    target: Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> Bundle:
    """Export a model to a bundle at ``target``.

    Every graph is compared with PyTorch in float64 on a music-like signal, and so is the whole, with the
    transforms of the host and with those of the device; nothing is written unless all of them pass.

    Stages that are not part of the network (spectrograms, inverses, sums) get a graph too, for engines
    that run them on a device. Their ``macs`` stay 0: a stage's are those of the network, and comparable.

    Raises:
        CheckpointError: no bundle can hold the model, such as one whose sources cannot name files.
        ExportError: a stage cannot be exported, or strays from PyTorch.
        OutputError, BundleError: the bundle cannot be written at ``target``.
    """
    options = options or ExportOptions()
    if not 1 <= options.batch <= MAX_BATCH:
        raise UsageError(f"a batch of {options.batch} segments was asked for, 1 to {MAX_BATCH} are possible")
    _require_bundle_holds(loaded)
    return _Export(loaded, name, options, progress).run(target, overwrite)


def _require_bundle_holds(loaded: LoadedModel) -> None:
    try:
        require_model(model_info(loaded))
    except BundleError as error:
        raise CheckpointError(
            f"no bundle can hold this model: {error.message}",
            "Change that in the arguments (kwargs) of the checkpoint, and save it again.",
        ) from error


class _Export:
    def __init__(self, loaded: LoadedModel, name: str, options: ExportOptions, progress: Progress) -> None:
        self.loaded, self.name, self.options = loaded, name, options
        self.model = loaded.model.eval()
        self.config = loaded.config
        self.plans = Splitter(self.model).split(options.layout)
        self.branches = make_branches(self.model)
        self.steps = len(self.plans) + 2
        self.done = 0
        self.progress = progress

    def run(self, target: Path, overwrite: bool) -> Bundle:
        self._step("reference run in float64", 0)
        config = self.config
        shape = (self.options.batch, config.audio_channels, config.segment_samples)
        mix = torch.from_numpy(probe_signal(*shape, config.samplerate))
        exact = reference_chain(copy.deepcopy(self.model).double(), self.plans, self.branches, mix.double())
        tensors = _tensor_specs(exact)
        checker = GraphChecker(exact, [p.stage for p in self.plans], self.branches, tensors)
        rewritten = rewrite(self.model, self.options.rewrites)
        complexity = count_stages(config, self.branches, self.options.layout)
        counted = {stage.name: stage for stage in complexity.stages}
        files: dict[str, bytes] = {}
        checks: dict[str, StageCheck] = {}
        stages: list[Stage] = []
        for plan in self.plans:
            self._step(f"exporting {plan.stage.name}")
            file = f"{plan.stage.name}.onnx"
            stage = replace(counted[plan.stage.name], file=file)
            files[file] = self._graph(plan, rewritten, exact, tensors)
            exported = compare(checker.add(stage, files[file]), stage.outputs, exact)
            checks[stage.name] = StageCheck(exported, self._float32(plan, exact))
            stages.append(stage)
        self._step("checking the whole")
        pytorch = self._whole_float32(mix, exact[STEMS])
        checks["whole"] = StageCheck(checker.whole(), pytorch)
        checks["whole_device"] = StageCheck(checker.whole(device=True), pytorch)
        require(checks)
        self._step("writing")
        manifest = self._manifest(stages, tensors, checks)
        bundle = write_bundle(target, manifest, files, overwrite=overwrite)
        self.progress("done", self.steps, self.steps)
        return bundle

    def _step(self, what: str, advance: int = 1) -> None:
        self.progress(what, self.done, self.steps)
        self.done += advance

    def _graph(
        self,
        plan: StagePlan,
        rewritten: SeparationModel,
        exact: Mapping[str, Tensor],
        tensors: Mapping[str, TensorSpec],
    ) -> bytes:
        """The ONNX model of a stage: traced if it is part of the network, built if it is a transform."""
        stage = plan.stage
        if plan.part is None:
            return transform_graph(stage, self.branches, tensors)
        inputs = [exact[name].float() for name in stage.inputs]
        return export_graph(plan.part(rewritten), inputs, stage.name, (stage.inputs, stage.outputs))

    def _float32(self, plan: StagePlan, exact: Mapping[str, Tensor]) -> Deviation:
        """What PyTorch's own float32 loses in this stage, on exact inputs."""
        part = plan.part(self.model) if plan.part is not None else None
        inputs = [exact[name].float() for name in plan.stage.inputs]
        with torch.no_grad():
            values = reference_stage(plan.stage, part, inputs, self.branches, self.config.segment_samples)
        return compare([v.numpy() for v in values], plan.stage.outputs, exact)

    def _whole_float32(self, mix: Tensor, stems: Tensor) -> Deviation:
        with torch.no_grad():
            return Deviation.between(self.model(mix).numpy(), stems.numpy())

    def _manifest(
        self, stages: Sequence[Stage], tensors: Mapping[str, TensorSpec], checks: Mapping[str, StageCheck]
    ) -> Manifest:
        return Manifest(
            name=self.name,
            model=model_info(self.loaded),
            branches=self.branches,
            tensors=tuple(tensors.values()),
            stages=tuple(stages),
            layout=self.options.layout,
            batch=self.options.batch,
            opset=OPSET,
            precision="float32",
            files={},
            fusion=learnt_shares(self.loaded),
            checks={
                "signal": "seeded music-like probe, one segment; relative L2 against PyTorch float64",
                **{stage: check.to_json() for stage, check in checks.items()},
            },
            provenance={
                **self.loaded.origin,
                "rewrites": list(self.options.rewrites),
                "ignored_arguments": list(self.loaded.ignored),
                "exported": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "tools": _tools(),
            },
        )


def _tensor_specs(exact: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """Shapes of every tensor; all are float32 between stages."""
    return {name: TensorSpec(name, tuple(tensor.shape)) for name, tensor in exact.items()}


def _tools() -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"mrsep-deploy": mrsep_deploy.__version__, "python": platform.python_version(), **versions}
