"""Real builds with TensorRT for RTX, which needs no GPU to build. Bytes differ between builds; facts do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import tiny_bundle, tiny_files, tiny_manifest
from goldens import NAMES, Export, Lower
from onnx import TensorProto, helper, numpy_helper

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.manifest import Manifest, Stage, TensorSpec
from mrsep_deploy.engines.contract import BuildOptions, EngineOptions
from mrsep_deploy.engines.tensorrt.build import build_plan, check_precision, check_targets, layer_types
from mrsep_deploy.engines.tensorrt.engine import TensorRtRtxEngine
from mrsep_deploy.engines.tensorrt.library import RTX, Library, find_library
from mrsep_deploy.errors import EngineError, EngineUnavailableError, UsageError
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.names import Precision
from mrsep_deploy.precision.plan import PrecisionPlan

pytest.importorskip("tensorrt_rtx_bindings", reason='TensorRT for RTX is not installed: pip install ".[rtx]"')

SM_86 = BuildOptions(("sm_86",))
STAGE = "branch.16"


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def engine() -> TensorRtRtxEngine:
    return TensorRtRtxEngine(EngineOptions())


@pytest.fixture
def library() -> Library:
    return find_library(RTX)


def stage_of(bundle: Bundle, name: str = STAGE) -> Stage:
    return next(stage for stage in bundle.manifest.stages if stage.name == name)


def bundle_with(tmp_path: Path, graph: onnx.ModelProto, **changes: object) -> Bundle:
    """The tiny bundle with another graph in its first stage."""
    manifest = replace(tiny_manifest(), **changes)  # type: ignore[arg-type]
    files = {**tiny_files(manifest), f"{STAGE}.onnx": graph.SerializeToString()}
    return write_bundle(tmp_path / "changed", manifest, files, overwrite=True)


def graph_of(
    nodes: list[onnx.NodeProto], source: TensorSpec, target: TensorSpec, *constants: TensorProto
) -> onnx.ModelProto:
    """Nodes between a spectrogram and an estimate."""
    ends = [
        helper.make_tensor_value_info(
            spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
        )
        for spec in (source, target)
    ]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def convolution(manifest: Manifest, inner: str) -> onnx.ModelProto:
    """A 1x1 convolution that computes in the type ``inner`` between float32 ends."""
    stage = next(stage for stage in manifest.stages if stage.name == STAGE)
    source, target = manifest.tensor(stage.inputs[0]), manifest.tensor(stage.outputs[0])
    weight = np.ones((target.shape[1], source.shape[1], 1, 1), inner)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(inner))
    nodes = [
        helper.make_node("Cast", [source.name], ["narrow"], to=kind),
        helper.make_node("Conv", ["narrow", "weight"], ["result"], name="mix/Conv"),
        helper.make_node("Cast", ["result"], [target.name], to=TensorProto.FLOAT),
    ]
    return graph_of(nodes, source, target, numpy_helper.from_array(weight, "weight"))


# --- builds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets", [("sm_86",), ("sm_89", "sm_75"), ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")]
)
def test_tiny_graphs_build_for_every_target(
    engine: TensorRtRtxEngine, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    bundle = tiny_bundle(tmp_path)
    for stage in bundle.manifest.graph_stages:
        built = engine.build(bundle, stage, BuildOptions(targets))
        assert len(built.data) > 1000
        assert built.details["layers"] == {"float32": 2}
        assert built.details["tensors"] == dict.fromkeys((*stage.inputs, *stage.outputs), "float32")
        assert engine.build(bundle, stage, BuildOptions(tuple(reversed(targets)))).from_cache


def test_options(engine: TensorRtRtxEngine, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    keys = {
        engine.build(
            bundle, stage_of(bundle), replace(SM_86, optimization_level=level, workspace=space)
        ).key.name
        for level, space in ((None, None), (0, None), (5, None), (None, 2**20))
    }
    assert len(keys) == 4


def test_a_batch_is_another_engine(engine: TensorRtRtxEngine, tmp_path: Path) -> None:
    for batch in (1, 2):
        bundle = tiny_bundle(tmp_path, f"b{batch}", batch=batch)
        assert not engine.build(bundle, stage_of(bundle), SM_86).from_cache


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_graph_of_the_goldens_builds(exports: Export, engine: TensorRtRtxEngine, name: str) -> None:
    bundle = exports(name)
    for stage in bundle.manifest.stages:
        if stage.file is not None:
            built = engine.build(bundle, stage, SM_86)
            assert set(built.details["layers"]) == {"float32"}  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "name", ["roformer_small_mel", "hdemucs/hdemucs_old", "hdemucs/hdemucs_multi", "hdemucs/demucs"]
)
def test_other_families_build(exports: Export, lowered: Lower, name: str, precision: Precision) -> None:
    """Batched products of bands, rotations and attention; LSTMs, local attention, magnitudes and bands."""
    bundle = lowered(name) if precision == "fp16" else exports(name)
    engine = TensorRtRtxEngine(EngineOptions(precision=precision))
    for stage in bundle.manifest.graph_stages:
        layers = engine.build(bundle, stage, SM_86).details["layers"]
        assert ("float16" in layers) == (precision == "fp16")  # type: ignore[operator]


# --- attention ---------------------------------------------------------------------------------------------


def attention(dtype: int, tokens: int, width: int) -> bytes:
    """Attention in 8 heads, as one operator of opset 23."""
    ends = [helper.make_tensor_value_info(name, dtype, [2, 8, tokens, width]) for name in "qkvy"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention")
    graph = helper.make_graph([node], "attention", ends[:3], ends[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("dtype", "fused"),
    [(TensorProto.FLOAT16, True), (TensorProto.BFLOAT16, True), (TensorProto.FLOAT, False)],
)
def test_attention_is_one_kernel_in_half_precision(
    library: Library, caplog: pytest.LogCaptureFixture, dtype: int, fused: bool
) -> None:
    """That of RoFormers: 8 heads of 64, 801 frames. It is taken apart where there is no kernel, which is said."""
    name = helper.tensor_dtype_to_np_dtype(dtype).name
    specs = tuple(TensorSpec(each, (2, 8, 801, 64), name) for each in "qkvy")
    stage = Stage("blocks", "graph", "shared", ("q", "k", "v"), ("y",), "blocks.onnx")
    manifest = replace(tiny_manifest(), tensors=specs, stages=(stage,), precision=name)
    asked = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[name]
    built = build_plan(library, attention(dtype, 801, 64), manifest, stage, asked, SM_86)  # type: ignore[arg-type]
    assert built.details["layers"] == {name: 1}
    assert fused != ("has no fused kernel for the attention of stage blocks" in caplog.text)


# --- refusals ----------------------------------------------------------------------------------------------


def test_every_unsupported_operator_is_named(engine: TensorRtRtxEngine, tmp_path: Path) -> None:
    manifest = tiny_manifest()
    source, target = manifest.tensor("spectrogram_16"), manifest.tensor("estimate_16")
    nodes = [
        helper.make_node("DFT", [source.name, "", "axis"], ["bins"], name="spectrogram/DFT"),
        helper.make_node("Col2Im", ["bins", "size", "size"], [target.name], name="inverse/Col2Im"),
    ]
    axis = numpy_helper.from_array(np.array(1), "axis")
    size = numpy_helper.from_array(np.array([2, 2]), "size")
    bundle = bundle_with(tmp_path, graph_of(nodes, source, target, axis, size))
    with pytest.raises(EngineError) as caught:
        engine.build(bundle, stage_of(bundle), SM_86)
    message = str(caught.value)
    assert message.startswith("TensorRT for RTX ")
    assert "cannot take the graph of stage branch.16" in message
    assert "operator DFT at node spectrogram/DFT: INVALID_NODE" in message
    assert "operator Col2Im at node inverse/Col2Im: UNSUPPORTED_NODE" in message
    assert "\n" not in message
    assert engine.cache.entries() == []


def product(manifest: Manifest) -> onnx.ModelProto:
    """A matrix product over frames, then the second source."""
    source, target = manifest.tensor("spectrogram_16"), manifest.tensor("estimate_16")
    nodes = [
        helper.make_node("MatMul", [source.name, "matrix"], ["mixed"], name="attention/MatMul"),
        helper.make_node("Concat", ["mixed", "mixed"], [target.name], axis=1),
    ]
    matrix = np.random.default_rng(1).standard_normal((source.shape[-1],) * 2).astype(np.float32)
    return graph_of(nodes, source, target, numpy_helper.from_array(matrix, "matrix"))


def test_a_float32_matrix_product_builds_from_sm_80_on(engine: TensorRtRtxEngine, tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, product(tiny_manifest()))
    targets = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
    assert engine.build(bundle, stage_of(bundle), BuildOptions(targets)).details["layers"] == {"float32": 1}
    with pytest.raises(
        EngineError, match=r"cannot build stage branch\.16: .*attention/MatMul.*Leave out sm_75"
    ):
        engine.build(bundle, stage_of(bundle), BuildOptions(("sm_75", "sm_86")))


def test_bytes_that_are_no_graph(library: Library) -> None:
    manifest = tiny_manifest()
    stage = manifest.graph_stages[0]
    with pytest.raises(EngineError, match=r"cannot take the graph of stage branch\.16"):
        build_plan(library, b"no graph", manifest, stage, "fp32", SM_86)


@pytest.mark.parametrize("target", ["sm_90", "sm_100", "sm_61"])
def test_a_target_it_does_not_build_for(engine: TensorRtRtxEngine, tmp_path: Path, target: str) -> None:
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(UsageError) as caught:
        engine.build(bundle, stage_of(bundle), BuildOptions(("sm_86", target)))
    assert f"does not build for {target}, it builds for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121" in str(
        caught.value
    )


def test_targets_are_sorted_and_distinct(library: Library) -> None:
    assert check_targets(library, ("sm_120", "sm_86", "sm_120")) == ("sm_86", "sm_120")
    assert check_targets(library, ()) == ()


def test_no_target_and_no_gpu(
    engine: TensorRtRtxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_index: int) -> None:
        raise EngineUnavailableError("this machine has no CUDA driver", "Install it.")

    monkeypatch.setattr("mrsep_deploy.engines.tensorrt.engine.find_gpu", none)
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(EngineUnavailableError, match=r"no target was named.*such as --target sm_86"):
        engine.build(bundle, stage_of(bundle), BuildOptions())


Spoil = Callable[[TensorSpec], TensorSpec]


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda spec: replace(spec, name="other"), "the engine of stage branch.16 has no tensor estimate_16"),
        (
            lambda spec: replace(spec, shape=(1, 8, 8, 15)),
            r"has the output float32 [1, 8, 8, 15] estimate_16",
        ),
        (lambda spec: replace(spec, dtype="float16"), "has the output float16 [1, 8, 8, 16] estimate_16"),
    ],
)
def test_inputs_and_outputs_are_the_manifests(
    engine: TensorRtRtxEngine, tmp_path: Path, spoil: Spoil, found: str
) -> None:
    manifest = tiny_manifest()
    source, target = manifest.tensor("spectrogram_16"), spoil(manifest.tensor("estimate_16"))
    nodes = [
        helper.make_node("Concat", [source.name] * 2, ["twice"], axis=1),
        helper.make_node("Slice", ["twice", "from", "to"], ["part"]),
        helper.make_node(
            "Cast", ["part"], [target.name], to=helper.np_dtype_to_tensor_dtype(np.dtype(target.dtype))
        ),
    ]
    ends = [
        numpy_helper.from_array(np.array(v), n) for n, v in (("from", [0] * 4), ("to", list(target.shape)))
    ]
    bundle = bundle_with(tmp_path, graph_of(nodes, source, target, *ends))
    with pytest.raises(EngineError) as caught:
        engine.build(bundle, stage_of(bundle), SM_86)
    assert found in str(caught.value)
    assert "expected the output float32 [1, 8, 8, 16]" in str(caught.value) or "other" in str(caught.value)


# --- precision ---------------------------------------------------------------------------------------------


def test_fp16_of_a_bundle_with_float32_graphs(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(
        EngineError, match=r"tiny holds float32 graphs only.*for fp16.*Choose --precision fp32"
    ):
        TensorRtRtxEngine(EngineOptions(precision="fp16")).build(bundle, stage_of(bundle), SM_86)


def test_fp16_is_what_layers_compute_in_and_not_what_a_manifest_says(tmp_path: Path) -> None:
    engine = TensorRtRtxEngine(EngineOptions(precision="fp16"))
    manifest = tiny_manifest()
    honest = bundle_with(tmp_path, convolution(manifest, "float16"), precision="float16")
    assert engine.build(honest, stage_of(honest), SM_86).details["layers"] == {"float16": 1}
    label_only = bundle_with(tmp_path, convolution(manifest, "float32"), precision="float16")
    with pytest.raises(EngineError, match=r"branch\.16 has no float16 layers \(1 in float32\)"):
        engine.build(label_only, stage_of(label_only), SM_86)


def test_a_plan_may_keep_a_whole_stage(tmp_path: Path) -> None:
    """As the rules do with masks of one layer: its engine is float32 inside, and no label alone."""
    plan = PrecisionPlan("float16", (), {STAGE: ("*",)})
    kept = convert_bundle(tiny_bundle(tmp_path), plan, tmp_path / "kept")
    built = TensorRtRtxEngine(EngineOptions(precision="fp16")).build(kept, stage_of(kept), SM_86)
    assert built.details["layers"] == {"float32": 2}


def test_fp32_with_float16_inside(engine: TensorRtRtxEngine, tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, convolution(tiny_manifest(), "float16"))
    with pytest.raises(EngineError, match=r"has layers below float32 \(1 in float16\)"):
        engine.build(bundle, stage_of(bundle), SM_86)


def test_casts_to_and_fro_do_not_make_fp16(library: Library) -> None:
    """float16 at both ends and float32 in between is what a label alone would let pass."""
    manifest = tiny_manifest()
    trt = library.module
    network = trt.Builder(library.logger).create_network(0)
    graph = convolution(manifest, "float32")
    graph.graph.node.insert(1, helper.make_node("Cast", ["narrow"], ["half"], to=TensorProto.FLOAT16))
    graph.graph.node.insert(2, helper.make_node("Cast", ["half"], ["again"], to=TensorProto.FLOAT))
    graph.graph.node[3].input[0] = "again"
    assert trt.OnnxParser(network, library.logger).parse(graph.SerializeToString())
    layers = layer_types(library, network)
    assert layers == {"float32": 1}
    with pytest.raises(EngineError, match="so its engine would not be fp16"):
        check_precision(layers, "fp16", manifest.graph_stages[0])


def test_transforms_are_float32_in_an_fp16_bundle() -> None:
    spectrogram = tiny_manifest().stages[0]
    check_precision({"float32": 3}, "fp16", spectrogram)
