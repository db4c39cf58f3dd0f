"""Small bundles for tests: one spectrogram branch, the waveform branch, real graphs of a few bytes.

The graphs compute something simple, so that a test that runs them knows the answer: each repeats its
input once for every source, and adds ``OFFSET``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.manifest import (
    BATCH,
    Branch,
    FileInfo,
    FusionShares,
    Manifest,
    ModelInfo,
    Stage,
    TensorSpec,
    Transform,
)

SOURCES = ("drums", "other")
CHANNELS = 2
SAMPLE_RATE = 8000
SAMPLES = 64
N_FFT, HOP = 16, 4
OFFSET = 0.25


def transform(n_fft: int, hop: int, samples: int) -> Transform:
    """The published transform: frame 0 begins 3/8 of a window early for a hop of a quarter, else one hop."""
    frames, offset = -(-samples // hop), 3 * (hop // 2) if 4 * hop == n_fft else hop
    return Transform(n_fft, hop, frames, n_fft // 2, offset, offset + frames * hop - samples)


def tiny_manifest(name: str = "tiny") -> Manifest:
    """A valid manifest; ``write_bundle`` puts the true ``files`` into it."""
    sources = len(SOURCES)
    bins, frames = N_FFT // 2, SAMPLES // HOP
    signal = (1, sources, CHANNELS, SAMPLES)
    shapes = {
        "mix": (1, CHANNELS, SAMPLES),
        "spectrogram_16": (1, 2 * CHANNELS, bins, frames),
        "statistics_16": (1, 2),
        "waveform": (1, CHANNELS, SAMPLES),
        "statistics_time": (1, 2),
        "estimate_16": (1, sources * 2 * CHANNELS, bins, frames),
        "estimate_time": (1, sources * CHANNELS, SAMPLES),
        "signal_16": signal,
        "signal_time": signal,
        "stems": signal,
    }
    stages = (
        Stage("spectrogram.16", "spectrogram", "16", ("mix",), ("spectrogram_16", "statistics_16")),
        Stage("normalize.time", "normalize", "time", ("mix",), ("waveform", "statistics_time")),
        Stage("branch.16", "graph", "16", ("spectrogram_16",), ("estimate_16",), "branch.16.onnx", 1, 9),
        Stage("branch.time", "graph", "time", ("waveform",), ("estimate_time",), "branch.time.onnx", 1, 9),
        Stage("inverse.16", "inverse", "16", ("estimate_16", "statistics_16"), ("signal_16",)),
        Stage(
            "denormalize.time", "denormalize", "time", ("estimate_time", "statistics_time"), ("signal_time",)
        ),
        Stage("fusion", "sum", "shared", ("signal_16", "signal_time"), ("stems",)),
    )
    return Manifest(
        name=name,
        model=ModelInfo(
            family="HTDemucs",
            sources=SOURCES,
            sample_rate=SAMPLE_RATE,
            audio_channels=CHANNELS,
            segment=Fraction(SAMPLES, SAMPLE_RATE),
            segment_samples=SAMPLES,
            trained=False,
            parameters=2,
            config={"depth": 1, "note": "naïve"},
        ),
        branches=(
            Branch("16", (1.0, 0.5), transform(N_FFT, HOP, SAMPLES)),
            Branch("time", (1.0, 1.0), None),
        ),
        tensors=tuple(TensorSpec(tensor, shape) for tensor, shape in shapes.items()),
        stages=stages,
        layout="split",
        opset=17,
        precision="float32",
        files={stage.file: FileInfo("0" * 64, 0) for stage in stages if stage.file},
        fusion=(FusionShares("output", SOURCES, ((0.75, 0.25), (0.5, 0.5))),),
        checks={"relative_l2": 1e-6},
        provenance={"checkpoint": {"sha256": "0" * 64}, "tools": ["numpy"]},
    )


def repeat_graph(source: TensorSpec, target: TensorSpec) -> onnx.ModelProto:
    """``target = concatenate([source] * n, axis=1) + OFFSET``."""
    copies = target.shape[1] // source.shape[1]
    offset = numpy_helper.from_array(np.array([OFFSET], np.float32), "offset")
    graph = helper.make_graph(
        [
            helper.make_node("Concat", [source.name] * copies, ["repeated"], axis=1),
            helper.make_node("Add", ["repeated", "offset"], [target.name]),
        ],
        "repeat",
        [helper.make_tensor_value_info(source.name, TensorProto.FLOAT, (BATCH, *source.shape[1:]))],
        [helper.make_tensor_value_info(target.name, TensorProto.FLOAT, (BATCH, *target.shape[1:]))],
        [offset],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def tiny_files(manifest: Manifest) -> dict[str, bytes]:
    """The graphs of ``tiny_manifest``."""
    files = {}
    for stage in manifest.graph_stages:
        graph = repeat_graph(manifest.tensor(stage.inputs[0]), manifest.tensor(stage.outputs[0]))
        files[str(stage.file)] = graph.SerializeToString()
    return files


def tiny_bundle(folder: Path, name: str = "tiny", *, batch: int = 1, opset: int = 17) -> Bundle:
    """A written bundle at ``folder / name``. Another ``opset`` gives another digest, nothing else."""
    manifest = replace(tiny_manifest(name), opset=opset)
    return write_bundle(folder / name, manifest, tiny_files(manifest), overwrite=True).at_batch(batch)


def changed_bundle(place: Path, manifest: Manifest, change: Callable[[onnx.GraphProto], None]) -> Bundle:
    """A tiny bundle whose nodes have names, ``repeat/Concat``, with its waveform graph changed."""
    files = tiny_files(manifest)
    for file in ("branch.16.onnx", "branch.time.onnx"):
        model = onnx.load_from_string(files[file])
        for node in model.graph.node:
            node.name = f"repeat/{node.op_type}"
        if file == "branch.time.onnx":
            change(model.graph)
        files[file] = model.SerializeToString()
    return write_bundle(place, manifest, files, overwrite=False)
