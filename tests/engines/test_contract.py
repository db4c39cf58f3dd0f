"""What every engine promises, asked of every engine that works here. A new one joins by its name."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import repeat_graph, tiny_bundle, tiny_files, tiny_manifest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.manifest import Manifest, Stage
from mrsep_deploy.engines import AUTO, ENGINE_NAMES, engine_class
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import EngineError, EngineUnavailableError, MrsepError, UsageError
from mrsep_deploy.export.exporter import export_model
from mrsep_deploy.export.load import reload, untrained_model
from mrsep_deploy.measuring.deviation import Deviation

LIBRARIES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch", "cuda")
"""What engines import; without these none works."""

READ_GRAPHS = tuple(name for name in ENGINE_NAMES if name != "torch")
"""The torch engine is made from the checkpoint."""

Values = Mapping[str, NDArray[np.float32]]

# Every kind of graph: encoders with several outputs, the bottleneck with several inputs, decoders.
SMALL: dict[str, object] = {
    "channels": 4,
    "depth": 1,
    "dconv_comp": 2,
    "dconv_depth": 1,
    "nfft": 64,
    "samplerate": 1000,
    "segment": 1,
    "t_layers": 1,
    "t_heads": 2,
    "t_hidden_scale": 1.0,
}


def works_here(name: str) -> bool:
    return engine_class(name).availability().works


@pytest.fixture(params=ENGINE_NAMES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    found = engine_class(request.param).availability()
    if not found.works:
        pytest.skip(f"{request.param}: {found.reason}")
    engine = choose(request.param, EngineOptions(threads=1)).engine
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    loaded = untrained_model("htdemucs", 1, **SMALL)
    return export_model(loaded, "small", tmp_path_factory.mktemp("contract") / "small").at_batch(2)


def given(manifest: Manifest, stage: Stage, seed: int = 0) -> Values:
    """Inputs as they come: normalised, so around 1."""
    random = np.random.default_rng([seed, len(stage.name)])
    return {name: random.standard_normal(manifest.tensor(name).shape, np.float32) for name in stage.inputs}


class Bench:
    """One prepared stage with tensors of its own on the engine's device."""

    def __init__(self, engine: Engine, bundle: Bundle, stage: Stage, threads: int = 1) -> None:
        self.device, self.stage, manifest = engine.device, stage, bundle.manifest
        self.stack = contextlib.ExitStack()
        self.stream = self.device.stream("test")
        self.stack.callback(self.stream.close)
        self.runner = engine.prepare(bundle, stage, threads, self.stream)
        self.stack.callback(self.runner.close)
        self.stack.callback(self.runner.close)
        specs = [manifest.tensor(name) for name in (*stage.inputs, *stage.outputs)]
        self.memory = [self.device.allocate(4 * spec.elements) for spec in specs]
        self.tensors = {
            s.name: m.tensor(0, s.shape, s.dtype) for s, m in zip(specs, self.memory, strict=True)
        }
        for memory in self.memory:
            self.stack.callback(memory.close)
        self.host = {spec.name: self.device.pinned(spec.shape, spec.dtype) for spec in specs}

    def run(self, inputs: Values, poison: float = np.nan) -> dict[str, NDArray[np.float32]]:
        """Outputs, whose memory held ``poison`` before."""
        for name in self.stage.outputs:
            self.host[name][...] = poison
        for name, value in inputs.items():
            self.host[name][...] = value
        for name, tensor in self.tensors.items():
            self.device.copy(tensor, self.host[name], self.stream)
        self.stream.enqueue(lambda: self.runner(self.tensors))
        for name, tensor in self.tensors.items():
            self.device.copy(self.host[name], tensor, self.stream)
        self.stream.synchronize()
        for name, value in inputs.items():
            np.testing.assert_array_equal(self.host[name], value)  # inputs are only read
        return {name: self.host[name].copy() for name in self.stage.outputs}

    def close(self) -> None:
        self.stack.close()


@pytest.fixture
def bench(engine: Engine, bundle: Bundle) -> Iterator[Callable[[Stage], Bench]]:
    made: list[Bench] = []

    def make(stage: Stage, threads: int = 1) -> Bench:
        made.append(Bench(engine, bundle, stage, threads))
        return made[-1]

    yield make
    for one in made:
        one.close()


STAGES = ("encoder.64", "encoder.time", "bottleneck", "decoder.64", "decoder.time")


def stage_of(bundle: Bundle, name: str) -> Stage:
    return next(stage for stage in bundle.manifest.stages if stage.name == name)


def test_these_are_the_stages(bundle: Bundle) -> None:
    assert sorted(stage.name for stage in bundle.manifest.graph_stages) == sorted(STAGES)
    assert {len(stage.inputs) for stage in bundle.manifest.graph_stages} > {1}


# --- runners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_computes_what_its_module_does_in_float64(
    bundle: Bundle, bench: Callable[[Stage], Bench], name: str
) -> None:
    stage = stage_of(bundle, name)
    inputs = given(bundle.manifest, stage)
    found = bench(stage).run(inputs)
    sources = reload(bundle.manifest.provenance).staged().double().stages
    module = next(source.module for source in sources if source.stage.name == name)
    with torch.no_grad():
        exact = module(*(torch.from_numpy(inputs[n]).double() for n in stage.inputs))
    for output, reference in zip(stage.outputs, exact, strict=True):
        # A few float32 layers: some 1e-7 each. This is 100 dB.
        assert Deviation.between(found[output], reference.numpy()).relative < 1e-5


@pytest.mark.parametrize("name", STAGES)
def test_every_output_is_filled_whatever_was_there(
    bundle: Bundle, bench: Callable[[Stage], Bench], name: str
) -> None:
    stage = stage_of(bundle, name)
    one, inputs = bench(stage), given(bundle.manifest, stage)
    found = [one.run(inputs, poison) for poison in (np.nan, 1e30, 0.0)]
    for output in stage.outputs:
        assert np.isfinite(found[0][output]).all()
        assert found[0][output].any()
        np.testing.assert_array_equal(found[0][output], found[1][output])
        np.testing.assert_array_equal(found[0][output], found[2][output])


@pytest.mark.parametrize("name", STAGES)
def test_runs_do_not_meet(bundle: Bundle, bench: Callable[[Stage], Bench], name: str) -> None:
    """The same inputs give the same outputs to the last bit, whatever ran between, even NaN."""
    stage = stage_of(bundle, name)
    one = bench(stage)
    first = one.run(given(bundle.manifest, stage))
    other = one.run(given(bundle.manifest, stage, seed=1))
    one.run({n: np.full_like(v, np.nan) for n, v in given(bundle.manifest, stage).items()})
    again = one.run(given(bundle.manifest, stage))
    fresh = bench(stage).run(given(bundle.manifest, stage))
    for output in stage.outputs:
        np.testing.assert_array_equal(first[output], again[output])
        np.testing.assert_array_equal(first[output], fresh[output])
        assert (first[output] != other[output]).any()


@pytest.mark.parametrize("name", STAGES)
def test_items_of_a_batch_do_not_meet(bundle: Bundle, bench: Callable[[Stage], Bench], name: str) -> None:
    stage = stage_of(bundle, name)
    one = bench(stage)
    inputs = given(bundle.manifest, stage)
    beside = {n: np.stack([v[0], np.zeros_like(v[1])]) for n, v in inputs.items()}
    found, expected = one.run(beside), one.run(inputs)
    for output in stage.outputs:
        # The same sums; other kernels may add them in another order.
        assert Deviation.between(found[output][0], expected[output][0]).relative < 1e-6


def test_tensors_are_let_go(engine: Engine, bundle: Bundle) -> None:
    """A runner that kept one would keep a buffer alive, or write to it when it is somebody else's."""
    if engine.device.kind != "cpu":
        pytest.skip("device tensors own nothing")
    stage = stage_of(bundle, "encoder.time")
    stream = engine.device.stream("test")
    runner = engine.prepare(bundle, stage, 1, stream)
    tensors: dict[str, Any] = dict(given(bundle.manifest, stage))
    tensors |= {n: np.zeros(bundle.manifest.tensor(n).shape, np.float32) for n in stage.outputs}
    alive = [weakref.ref(array) for array in tensors.values()]
    runner(tensors)
    tensors.clear()
    gc.collect()
    assert not any(ref() is not None for ref in alive)
    runner.close()
    stream.close()


# --- graphs that are not what the manifest says -------------------------------------------------------------


def wrong_graph(kind: str, manifest: Manifest) -> bytes:
    source, target = manifest.tensor("waveform"), manifest.tensor("estimate_time")
    model = repeat_graph(source, target)
    if kind == "unknown operator":
        model.graph.node[0].op_type = "Frobnicate"
    elif kind == "another input":
        model = repeat_graph(replace(source, name="something"), target)
    elif kind == "another output":
        model = repeat_graph(source, replace(target, name="something"))
    elif kind == "another shape":
        model = repeat_graph(source, replace(target, shape=(1, 8, *target.shape[2:])))
    elif kind == "another type":
        model = helper.make_model(
            helper.make_graph(
                [helper.make_node("Cast", [source.name], [target.name], to=TensorProto.DOUBLE)],
                "cast",
                [helper.make_tensor_value_info(source.name, TensorProto.FLOAT, source.shape)],
                [helper.make_tensor_value_info(target.name, TensorProto.DOUBLE, source.shape)],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )
    elif kind == "nothing":
        model = onnx.ModelProto()
    return model.SerializeToString() if kind != "garbage" else b"\x0a\x03abc"


@pytest.mark.parametrize("name", READ_GRAPHS)
@pytest.mark.parametrize(
    "kind",
    [
        "unknown operator",
        "another input",
        "another output",
        "another shape",
        "another type",
        "nothing",
        "garbage",
    ],
)
def test_a_wrong_graph_is_an_error_that_names_the_stage(tmp_path: Path, name: str, kind: str) -> None:
    """Found when the stage is prepared or at its first run; never a crash, never a wrong result."""
    if not works_here(name):
        pytest.skip(engine_class(name).availability().reason)
    manifest = tiny_manifest()
    files = {**tiny_files(manifest), "branch.time.onnx": wrong_graph(kind, manifest)}
    try:
        bundle = write_bundle(tmp_path / "wrong", manifest, files, overwrite=False)
    except MrsepError:
        return  # refused before it ever was a bundle
    engine = choose(name, EngineOptions(threads=1)).engine
    stage = next(s for s in manifest.stages if s.name == "branch.time")
    with pytest.raises(EngineError, match=r"branch\.time"):
        Bench(engine, bundle, stage).run(given(manifest, stage))
    engine.close()


def test_torch_on_a_bundle_whose_checkpoint_nobody_knows(tmp_path: Path) -> None:
    if not works_here("torch"):
        pytest.skip("no torch")
    bundle = tiny_bundle(tmp_path)
    engine = choose("torch", EngineOptions()).engine
    with pytest.raises(MrsepError, match="checkpoint"):
        engine.prepare(bundle, bundle.manifest.graph_stages[0], 1, engine.device.stream("test"))
    engine.close()


# --- availability ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_availability_says_all_that_is_known(name: str) -> None:
    kind = engine_class(name)
    found = kind.availability()
    assert kind.name == name
    assert kind.title
    if found.works:
        assert found.version
        assert found.device
        assert not found.reason
        assert not found.fix
    else:
        assert found.reason
        assert found.fix
    assert found == kind.availability()


def block(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The error says so, in one line, with the command that installs it."""
    block(monkeypatch, *LIBRARIES)
    found = engine_class(name).availability()
    assert not found.works
    with pytest.raises(EngineUnavailableError, match=name) as caught:
        choose(name, EngineOptions())
    assert found.reason in str(caught.value)
    assert caught.value.fix == found.fix
    assert "pip install" in caught.value.fix
    assert "\n" not in str(caught.value)


def test_auto_never_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would be a slow surprise; without another engine an error says what to install."""
    block(monkeypatch, *(library for library in LIBRARIES if library != "torch"))
    with pytest.raises(EngineUnavailableError) as caught:
        choose(AUTO, EngineOptions())
    assert "pip install" in caught.value.fix


def test_auto_takes_one_that_works() -> None:
    engine = choose(AUTO, EngineOptions()).engine
    assert engine.name in READ_GRAPHS
    assert engine.availability().works


@pytest.mark.parametrize("name", ["", "ORT", "cuda?", "torch "])
def test_an_engine_there_is_not(name: str) -> None:
    with pytest.raises(UsageError, match="no engine") as caught:
        choose(name, EngineOptions())
    for known in ENGINE_NAMES:
        assert known in caught.value.fix
