"""Checkpoint to bundle: split, rewrite, export, check, and only then write."""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import mrsep_deploy
from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.licence import UNSTATED, Licence
from mrsep_deploy.bundle.manifest import STEMS, Layout, Manifest, Stage, TensorSpec
from mrsep_deploy.bundle.manifest_json import require_model
from mrsep_deploy.errors import BundleError, CheckpointError
from mrsep_deploy.export.check import Array, Comparison, GraphChecker, StageCheck, require
from mrsep_deploy.export.complexity import count_stages
from mrsep_deploy.export.families import family_of
from mrsep_deploy.export.graphs.trace import export_graph
from mrsep_deploy.export.graphs.transforms import transform_graph
from mrsep_deploy.export.load import LoadedModel
from mrsep_deploy.measuring.probe import probe_signal
from mrsep_deploy.process.machine import kept_heap

WHOLE = ("whole", "whole_device")
"""Checks of the whole: with the transforms of the host, and with those of the device."""

Progress = Callable[[str, int, int], None]
"""Called with what happens now, how many steps are done and how many there are."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        layout: ``split`` into stages, or one ``whole`` graph between spectrogram and inverse.
        without: names of rewrites to leave out.
        licence: of the weights.
    """

    layout: Layout = "split"
    without: tuple[str, ...] = ()
    licence: Licence = UNSTATED


def export_model(
    loaded: LoadedModel,
    name: str,
    target: Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = lambda _what, _done, _total: None,
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
    try:
        require_model(loaded.info())
    except BundleError as error:
        raise CheckpointError(
            f"no bundle can hold this model: {error.message}",
            "Change that in the arguments (kwargs) of the checkpoint, and save it again.",
        ) from error
    with kept_heap():
        return _Export(loaded, name, options or ExportOptions(), progress).run(target, overwrite)


class _Export:
    def __init__(self, loaded: LoadedModel, name: str, options: ExportOptions, progress: Progress) -> None:
        self.loaded, self.name, self.options = loaded, name, options
        self.family = family_of(loaded.variant)
        self.rewrites = [each for each in self.family.rewrites if each not in options.without]
        self.staged = loaded.staged(options.layout)
        self.branches = self.staged.branches
        self.steps = len(self.staged.stages) + 2
        self.done = 0
        self.progress = progress

    def run(self, target: Path, overwrite: bool) -> Bundle:
        self._step("reference run in float64", 0)
        audio = self.loaded.audio
        mix = torch.from_numpy(probe_signal(audio.channels, audio.segment_samples, audio.sample_rate))[None]
        reference = copy.deepcopy(self.staged).double().tensors(mix.double())
        exact = {name: tensor.numpy() for name, tensor in reference.items()}
        # Between stages all of them are float32.
        tensors = {name: TensorSpec(name, tensor.shape) for name, tensor in exact.items()}
        counted = count_stages(self.staged, audio).stages
        checker = GraphChecker(exact, counted, self.branches, tensors)
        comparison = Comparison(exact, counted, audio.sources)
        rewritten = copy.deepcopy(self.staged)
        self.family.rewrite(rewritten.model, self.rewrites)
        files: dict[str, bytes] = {}
        checks: dict[str, StageCheck] = {}
        stages: list[Stage] = []

        def check(stage: Stage, single: Sequence[Array]) -> None:
            found = checker.add(stage, files[f"{stage.name}.onnx"])
            checks[stage.name] = comparison.check(stage.outputs, found, single, f"stage {stage.name}")

        # PyTorch can trace in one thread only and keeps one core busy with it. Another checks the stage before with
        # ONNX Runtime and NumPy meanwhile: no module of PyTorch may run in it, for a trace patches them all.
        with ThreadPoolExecutor(1) as beside:
            checked: Future[None] | None = None
            for source, exported, stage in zip(self.staged.stages, rewritten.stages, counted, strict=True):
                self._step(f"exporting {stage.name}")
                file = f"{stage.name}.onnx"
                inputs = [reference[name].float() for name in stage.inputs]
                if stage.kind == "graph":
                    names = stage.inputs, stage.outputs
                    files[file] = export_graph(exported.module, inputs, stage.name, names, self.family.opset)
                else:
                    files[file] = transform_graph(stage, self.branches, tensors)
                with torch.no_grad():
                    single = [output.numpy() for output in source.module(*inputs)]
                if checked is not None:
                    checked.result()
                checked = beside.submit(check, stage, single)
                stages.append(replace(stage, file=file))
            self._step("checking the whole")
            stems = {name: beside.submit(checker.whole, name == "whole_device") for name in WHOLE}
            pytorch = self.staged.tensors(mix)[STEMS].numpy()
            if checked is not None:
                checked.result()
            for name, found in stems.items():
                checks[name] = comparison.check([STEMS], [found.result()], [pytorch], "the whole")
        require(checks)
        self._step("writing")
        float32 = self.family.float32(rewritten.model, stages)
        manifest = replace(self._manifest(stages, tensors, checks), float32=float32)
        bundle = write_bundle(target, manifest, files, overwrite=overwrite)
        self.progress("done", self.steps, self.steps)
        return bundle

    def _step(self, what: str, advance: int = 1) -> None:
        self.progress(what, self.done, self.steps)
        self.done += advance

    def _manifest(
        self, stages: Sequence[Stage], tensors: Mapping[str, TensorSpec], checks: Mapping[str, StageCheck]
    ) -> Manifest:
        return Manifest(
            name=self.name,
            model=self.loaded.info(),
            branches=self.branches,
            tensors=tuple(tensors.values()),
            stages=tuple(stages),
            layout=self.options.layout,
            opset=self.family.opset,
            precision="float32",
            files={},
            application=self.loaded.audio.application,
            licence=self.options.licence,
            fusion=self.loaded.shares(),
            checks={
                "signal": "seeded music-like probe, one segment; relative L2 against PyTorch float64",
                **{stage: check.to_json() for stage, check in checks.items()},
            },
            provenance={
                **self.loaded.origin,
                "rewrites": self.rewrites,
                "ignored_arguments": list(self.loaded.ignored),
                "exported": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "tools": _tools(),
            },
        )


def _tools() -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"mrsep-deploy": mrsep_deploy.__version__, "python": platform.python_version(), **versions}
