"""The transforms as ONNX graphs: against torch in float64, against the host's, and what they are made of.

``SNR`` is 120 dB everywhere: ten times the error that float32 sums of 128 terms are expected to have
(:mod:`mrsep_deploy.export.graphs.dft`), a tenth of what an export may lose, and far below 24 bits.
A wrong constant, sign or sample costs 80 dB or more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import transform
from goldens import Export
from models import noise
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Branch, Stage, StageKind, TensorSpec
from mrsep_deploy.export.families.staged import analysis, synthesis, total
from mrsep_deploy.export.graphs.dft import LARGEST_FIRST, Factors, factorise
from mrsep_deploy.export.graphs.transforms import transform_graph
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.probe import probe_signal
from mrsep_deploy.precision.graph import set_batch
from mrsep_deploy.transforms.host import host_runner
from mrsep_deploy.transforms.spectrogram import NORMALISE_EPS

Array = NDArray[np.float32]
Run = Callable[[bytes, Mapping[str, Array]], dict[str, Array]]

SNR = 120.0
SIZES = [64, 512, 528, 1024, 2048, 3072, 4096, 6144, 8192, 16384, 32768]
"""Every size of the families, sizes that are no power of two, and the smallest."""

OPERATORS = {
    "Add", "Concat", "Identity", "MatMul", "Mul", "Pad", "Reciprocal", "ReduceSum", "Reshape", "Slice", "Sqrt",
    "Sub", "Transpose",
}  # fmt: skip


class Model:
    """What a manifest would say of one branch, the waveform and their sum."""

    def __init__(
        self,
        n_fft: int,
        hop: int,
        length: int,
        batch: int = 1,
        channels: int = 2,
        gains: tuple[float, ...] = (1.0,),
    ) -> None:
        frames = -(-length // hop)
        self.length = length
        self.branches = (
            Branch("s", gains, transform(n_fft, hop, length)),
            Branch("time", gains, None),
        )
        signal = (batch, len(gains), channels, length)
        shapes: dict[str, tuple[int, ...]] = {
            "mix": (batch, channels, length),
            "spectrogram": (batch, 2 * channels, n_fft // 2, frames),
            "statistics": (batch, 2),
            "estimate": (batch, 2 * channels * len(gains), n_fft // 2, frames),
            "waveform": (batch, channels, length),
            "estimate_time": (batch, channels * len(gains), length),
            "signal": signal,
            "signal_time": signal,
            "stems": signal,
        }
        self.tensors = {name: TensorSpec(name, shape) for name, shape in shapes.items()}
        stages: list[tuple[StageKind, str, tuple[str, ...], tuple[str, ...]]] = [
            ("spectrogram", "s", ("mix",), ("spectrogram", "statistics")),
            ("normalize", "time", ("mix",), ("waveform", "statistics")),
            ("inverse", "s", ("estimate", "statistics"), ("signal",)),
            ("denormalize", "time", ("estimate_time", "statistics"), ("signal_time",)),
            ("sum", "shared", ("signal", "signal_time"), ("stems",)),
        ]
        self.stages = {stage[0]: Stage(stage[0], *stage) for stage in stages}

    def graph(self, kind: str) -> bytes:
        return transform_graph(self.stages[kind], self.branches, self.tensors)

    def inputs(self, kind: str) -> dict[str, Array]:
        """Noise; statistics as music has them, a mean far below the standard deviation."""
        feed = {}
        for name in self.stages[kind].inputs:
            shape = self.tensors[name].shape
            if name == "statistics":
                feed[name] = np.array([[0.002 * (i + 1), 0.3 / (i + 1)] for i in range(shape[0])], np.float32)
            else:
                feed[name] = noise(*shape, dtype=torch.float32).numpy()
        return feed

    def expected(self, kind: str, feed: Mapping[str, Array]) -> list[NDArray[np.float64]]:
        stage = self.stages[kind]
        inputs = [torch.from_numpy(feed[name]).double() for name in stage.inputs]
        sources = (*analysis(self.branches), *synthesis(self.branches, self.length), total(self.branches))
        return [x.numpy() for x in next(s.module for s in sources if s.stage.kind == kind)(*inputs)]

    def check(self, kind: str, run: Run) -> None:
        """A graph's results against torch in float64."""
        feed = self.inputs(kind)
        found = run(self.graph(kind), feed)
        for name, exact in zip(self.stages[kind].outputs, self.expected(kind, feed), strict=True):
            assert found[name].dtype == np.float32
            assert found[name].shape == exact.shape == self.tensors[name].shape
            assert Deviation.between(found[name], exact).snr >= SNR, (kind, name)


def on_onnxruntime(graph: bytes, feed: Mapping[str, Array]) -> dict[str, Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def on_openvino(graph: bytes, feed: Mapping[str, Array]) -> dict[str, Array]:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = core.read_model(graph)
    model.reshape({name: values.shape for name, values in feed.items()})
    compiled = core.compile_model(model, "CPU", settings)
    results = compiled(dict(feed))
    return {output.get_any_name(): results[output] for output in compiled.outputs}


both_engines = pytest.mark.parametrize("run", [on_onnxruntime, on_openvino])
every_kind = pytest.mark.parametrize("kind", ["spectrogram", "normalize", "inverse", "denormalize", "sum"])


@pytest.mark.parametrize("overlap", [2, 4])
@pytest.mark.parametrize("n_fft", SIZES)
@pytest.mark.parametrize("kind", ["spectrogram", "inverse"])
def test_every_size(kind: str, n_fft: int, overlap: int) -> None:
    Model(n_fft, n_fft // overlap, 3 * n_fft + 17).check(kind, on_onnxruntime)


@both_engines
@every_kind
@pytest.mark.parametrize("overlap", [2, 4])
def test_batches_channels_and_gains(kind: str, overlap: int, run: Run) -> None:
    for batch, channels, gains in itertools.product((1, 3), (1, 2), ((1.0,), (0.7, 0.0, -1.3))):
        Model(256, 256 // overlap, 2000, batch, channels, gains).check(kind, run)


@pytest.mark.parametrize("kind", ["spectrogram", "inverse"])
@pytest.mark.parametrize("length", [1, 2, 15, 64, 95, 96, 97, 127, 128, 129, 191, 192, 193, 383, 385, 1001])
@pytest.mark.parametrize("overlap", [2, 4])
def test_lengths(kind: str, length: int, overlap: int) -> None:
    """Also shorter than the padding, where zeros come before the reflection."""
    Model(256, 256 // overlap, length).check(kind, on_onnxruntime)


@pytest.mark.parametrize("length", [1, 2, 511, 1024, 1031, 4096, 65537])
@pytest.mark.parametrize("kind", ["normalize", "denormalize"])
def test_lengths_of_waveforms(kind: str, length: int) -> None:
    """Primes too, which do not divide into blocks."""
    Model(64, 16, length).check(kind, on_onnxruntime)


@both_engines
@pytest.mark.parametrize("kind", ["spectrogram", "normalize"])
def test_statistics_of_millions(kind: str, run: Run) -> None:
    """A single float32 accumulator would leave 80 to 110 dB of a segment of full length."""
    Model(2048, 512, 343_980).check(kind, run)


@pytest.mark.parametrize("overlap", [2, 4])
@pytest.mark.parametrize("n_fft", [512, 3072, 4096])
def test_same_as_the_host(n_fft: int, overlap: int) -> None:
    """On music, whose bins differ by 100 dB."""
    model = Model(n_fft, n_fft // overlap, 20_000, gains=(0.5, 2.0))
    mix = probe_signal(2, model.length, 44100)[None]
    arrays: dict[str, Any] = {
        "mix": mix,
        "estimate": np.tile(model.expected("spectrogram", {"mix": mix})[0], (1, 2, 1, 1)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    for kind in ("spectrogram", "inverse"):
        stage = model.stages[kind]
        found = on_onnxruntime(model.graph(kind), {name: arrays[name] for name in stage.inputs})
        host = {name: np.empty(model.tensors[name].shape, np.float32) for name in stage.outputs}
        host_runner(stage, model.branches)({**{name: arrays[name].copy() for name in stage.inputs}, **host})
        for name in stage.outputs:
            assert Deviation.between(found[name], host[name]).snr >= SNR
        arrays.update(found)


@pytest.mark.parametrize("overlap", [2, 4])
@pytest.mark.parametrize("n_fft", [64, 1024, 6144])
def test_round_trip(n_fft: int, overlap: int) -> None:
    """Inner samples of two tones come back, but for what leaks into the Nyquist bin (see test_transforms).

    The epsilon that is added to the deviation is not taken off again: that is a gain of almost one.
    """
    model = Model(n_fft, n_fft // overlap, 4 * n_fft + 5)
    time = np.arange(model.length)
    x = np.stack([np.cos(0.5 * time), np.cos(0.9 * time + 0.1)])[None].astype(np.float32)
    found = on_onnxruntime(model.graph("spectrogram"), {"mix": x})
    feed = {"estimate": found["spectrogram"], "statistics": found["statistics"]}
    back = on_onnxruntime(model.graph("inverse"), feed)["signal"]
    std = float(found["statistics"][0, 1])
    expected = x.astype(np.float64) * std / (std + NORMALISE_EPS)
    inner = slice(n_fft, -n_fft)
    distance = Deviation.between(back[0, ..., inner], expected[..., inner]).relative
    assert distance < (1e-4 if n_fft == 64 else 1e-6)


@every_kind
def test_what_graphs_are_made_of(kind: str) -> None:
    """Operators that every engine has, float32 throughout, every constant once, the stage's own names."""
    model = Model(4096, 1024, 44_100, gains=(1.0, 0.5))
    graph = onnx.load_from_string(model.graph(kind)).graph
    stage = model.stages[kind]
    assert {node.op_type for node in graph.node} <= OPERATORS
    assert tuple(value.name for value in graph.input) == stage.inputs
    assert tuple(value.name for value in graph.output) == stage.outputs
    constants = [(t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializer]
    assert len(set(constants)) == len(constants)
    assert {kind for kind, _, _ in constants} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_the_sum_of_any_number_of_signals() -> None:
    model = Model(64, 16, 100)
    for names in (("signal",), ("signal", "signal_time"), ("signal", "signal_time", "third")):
        tensors = {**model.tensors, "third": TensorSpec("third", model.tensors["signal"].shape)}
        graph = transform_graph(Stage("fusion", "sum", "shared", names, ("stems",)), model.branches, tensors)
        feed = {
            name: noise(1, 1, 2, 100, seed=i, dtype=torch.float32).numpy() for i, name in enumerate(names)
        }
        assert np.allclose(on_onnxruntime(graph, feed)["stems"], sum(feed.values()), atol=1e-6)


def test_a_network_has_no_transform() -> None:
    stage = Stage("core", "graph", "shared", (), (), "core.onnx")
    with pytest.raises(ValueError, match="core of kind graph"):
        transform_graph(stage, (), {})


@pytest.mark.parametrize("kind", ["spectrogram", "inverse"])
@pytest.mark.parametrize(("n_fft", "hop"), [(4096, 1024), (3072, 1536), (8192, 2048)])
def test_macs_are_those_of_the_matrix_products(kind: str, n_fft: int, hop: int) -> None:
    model = Model(n_fft, hop, 10_000, batch=3, gains=(1.0, 0.5))
    loaded = onnx.load_from_string(model.graph(kind))
    for value in (*loaded.graph.input, *loaded.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    graph = onnx.shape_inference.infer_shapes(loaded).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    shapes.update({t.name: list(t.dims) for t in graph.initializer})
    products = [node for node in graph.node if node.op_type == "MatMul"]
    counted = sum(math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1] for node in products)
    signal = model.tensors[
        (model.stages[kind].inputs if kind == "spectrogram" else model.stages[kind].outputs)[0]
    ]
    transform = model.branches[0].transform
    assert transform is not None
    frames = 3 * math.prod(signal.shape[1:-1]) * transform.frames
    assert counted == frames * factorise(n_fft, hop).macs


@pytest.mark.parametrize("overlap", [2, 4])
def test_factors(overlap: int) -> None:
    for n_fft in (*range(64, 2048, 16), *SIZES, 65536):
        factors = factorise(n_fft, n_fft // overlap)
        assert factors.first * factors.middle * factors.last == n_fft
        assert factors.first <= LARGEST_FIRST
        assert factors.last % 2 == 0
        assert (n_fft // overlap) % factors.rest == 0
        if n_fft in SIZES:  # of two balanced factors, or fewer operations still
            assert factors.macs < 1.2 * 4 * n_fft**1.5


def test_long_frames_have_three_factors() -> None:
    assert factorise(4096, 1024) == Factors(64, 1, 64)
    assert factorise(8192, 2048) == Factors(16, 16, 32)


def test_sizes_without_factors_are_refused() -> None:
    for n_fft, hop in ((20, 5), (2048, 441), (2 * 4099, 3000)):  # no whole rows in a hop, a prime
        factors = factorise(n_fft, hop)
        assert factors.first * factors.middle * factors.last == n_fft
        assert factors.last % 2 == 0


@pytest.mark.parametrize(("n_fft", "hop"), [(4096, 1024), (3072, 1536), (8192, 2048)])
@every_kind
def test_tensorrt_builds_every_graph(kind: str, n_fft: int, hop: int) -> None:
    """TensorRT for RTX builds without a GPU; its parser is the one of TensorRT."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    model = onnx.load_model_from_string(Model(n_fft, hop, 44_100, gains=(1.0, 0.5)).graph(kind))
    set_batch(model, 1)
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None


def test_an_export_holds_them(exports: Export) -> None:
    """Each stage has a graph, listed and checked; transforms count for nothing in the network's cost."""
    bundle = exports("htdemucs_n")
    manifest = bundle.manifest
    tensors = {tensor.name: tensor for tensor in manifest.tensors}
    for stage in manifest.stages:
        assert stage.file == f"{stage.name}.onnx"
        assert stage.file in manifest.files
        assert stage.name in manifest.checks
        assert (stage.macs > 0) == (stage.kind == "graph")
        if stage.kind != "graph":
            assert bundle.graph_bytes(stage) == transform_graph(stage, manifest.branches, tensors)
    assert {"whole", "whole_device"} <= set(manifest.checks)
