"""Bundles of lower precision: of every golden checkpoint, and of the trained HTDemucs.

SNR of the golden stems in float16 against float32, worst source, on one segment of music:

    htdemucs 52     htdemucs_n 42         htdemucs_nf 58    htdemucs_2nn 57
    htdemucs_6s 57  htdemucs_n_short 44   htdemucs_nn 53    htdemucs_n_vocals 65    htdemucs_dnf 35    dB

The trained model reaches 64 dB. Most of these lose more because they are tiny and untrained: with 4 channels instead of
48 no rounding error averages out against another, and random weights leave stems that are small differences
of large tensors.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import tiny_bundle, tiny_files, tiny_manifest
from goldens import NAMES, Export, Lower, golden
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.engines import engine_class
from mrsep_deploy.engines.contract import BuildOptions, EngineOptions
from mrsep_deploy.errors import OutputError, UsageError
from mrsep_deploy.files import paths
from mrsep_deploy.precision.convert_bundle import (
    convert_bundle,
    convert_report,
    derived_bundle,
    low_tensors,
)
from mrsep_deploy.precision.convert_graph import StageGraph
from mrsep_deploy.precision.costs import read_costs
from mrsep_deploy.precision.names import Low, Precision, arithmetic
from mrsep_deploy.precision.plan import PrecisionPlan, default_plan
from mrsep_deploy.precision.rules import kept_by_rules
from mrsep_deploy.separation.separator import Separator

LEAST_SNR: dict[Low, float] = {"float16": 33.0, "bfloat16": 15.0}
"""Of every golden stem against float32; bfloat16 has three bits, 18 dB, less."""

HEAVY = ("Conv", "ConvTranspose", "MatMul")
Stems = NDArray[np.float32]


pytestmark = pytest.mark.usefixtures("home")


def full_plan(bundle: Bundle) -> PrecisionPlan:
    """The default plan, with the rules of the bundle's family."""
    return default_plan("float16", bundle.manifest.float32)


def snr(found: Stems, exact: Stems) -> float:
    error = np.sum(np.square(found.astype(np.float64) - exact))
    return float(10 * np.log10(np.sum(np.square(exact.astype(np.float64))) / max(error, 1e-30)))


def stems_of(bundle: Bundle, name: str, engine: str = "ort") -> Stems:
    """The golden segment's stems ``[S, C, L]``."""
    mix = golden(name).mix
    mix = np.pad(mix, [(0, 0), (0, bundle.manifest.model.segment_samples - mix.shape[-1])])
    with Separator(bundle, engine=engine, threads=1) as separator:
        return separator.run_segments(mix[None])[0].copy()


def products(data: bytes) -> dict[str, int]:
    """How many convolutions and matrix products a graph has of each type."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), data_prop=True)
    values = (*model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    names = {1: "float32", 10: "float16", 16: "bfloat16"}
    return dict(Counter(names[types[n.output[0]]] for n in model.graph.node if n.op_type in HEAVY))


def build_all(bundle: Bundle, precision: Precision) -> None:
    """Build every stage for RTX cards; what the network's layers and tensors are is what the graphs say."""
    engine = engine_class("trt-rtx")(EngineOptions(precision=precision))
    for stage in bundle.manifest.stages:
        built: Any = engine.build(bundle, stage, BuildOptions(("sm_86",)))  # type: ignore[attr-defined]
        tensors = {name: bundle.manifest.tensor(name).dtype for name in (*stage.inputs, *stage.outputs)}
        assert built.details["tensors"] == tensors
        if stage.kind != "graph":
            assert set(built.details["layers"]) == {"float32"}
        elif expected := products(bundle.graph_bytes(stage)):
            assert built.details["layers"] == expected, stage.name


# --- goldens -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_goldens_in_float16(
    exports: Export, lowered: Lower, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, half = exports(name), lowered(name)
    for stage in half.manifest.graph_stages:
        onnx.checker.check_model(onnx.load_model_from_string(half.graph_bytes(stage)), full_check=True)
    exact = stems_of(bundle, name)
    rounded, openvino = stems_of(half, name), stems_of(half, name, "openvino")
    found = [snr(one, other) for one, other in zip(rounded, exact, strict=True)]
    with capsys.disabled():
        print(f"\n{name} in float16: {', '.join(f'{value:.1f}' for value in found)} dB")
    least = LEAST_SNR["float16"]
    assert min(found) >= least
    # OpenVINO rounds less, so its results are as near to these as these are to float32
    assert min(snr(one, other) for one, other in zip(openvino, exact, strict=True)) >= min(found)
    assert min(snr(one, other) for one, other in zip(openvino, rounded, strict=True)) >= least


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_goldens_keep_their_types_under_tensorrt_for_rtx(lowered: Lower, name: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    build_all(lowered(name), "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["htdemucs", "htdemucs_n", "htdemucs_nf"])
def test_goldens_in_bfloat16(exports: Export, lowered: Lower, name: str) -> None:
    bundle, low = exports(name), lowered(name, "bfloat16")
    assert {tensor.dtype for tensor in low.manifest.tensors} == {"float32"}
    exact, found = stems_of(bundle, name), stems_of(low, name)
    assert min(snr(one, other) for one, other in zip(found, exact, strict=True)) >= LEAST_SNR["bfloat16"]


@pytest.mark.slow
def test_a_whole_layout(exports: Export, lowered: Lower) -> None:
    bundle, half = (each("htdemucs_n_short", layout="whole") for each in (exports, lowered))
    found, exact = stems_of(half, "htdemucs_n_short"), stems_of(bundle, "htdemucs_n_short")
    assert snr(found, exact) >= LEAST_SNR["float16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["htdemucs", "htdemucs_n", "htdemucs_nf", "htdemucs_n_short"])
@pytest.mark.parametrize("layout", ["split", "whole"])
def test_what_the_last_rule_keeps(exports: Export, name: str, layout: str) -> None:
    """Every branch's last transposed convolution, whatever the layout, and no product before its last layer."""
    bundle = exports(name, layout)
    graphs = [StageGraph.of(bundle, stage) for stage in bundle.manifest.graph_stages]
    nodes = [node for graph in graphs for node in graph.model.graph]
    upsampling = {str(node.name) for node in nodes if node.op_type == "ConvTranspose"}
    plan = PrecisionPlan("float16", ("last",))
    found = [kept_by_rules(graph.model.graph, plan, graph.rules) for graph in graphs]
    assert not any(unmatched for _, unmatched in found)
    kept = {node for names, _ in found for node in names}
    layers = Counter(layer_of(node)[0] for node in upsampling)
    last = {f"{branch}.{count - 1}" for branch, count in layers.items()}
    assert last
    assert {".".join(layer_of(node)) for node in kept & upsampling} == last
    assert {".".join(layer_of(node)) for node in kept if layer_of(node)[0] in layers} == last
    everything = {str(node.name) for node in nodes}
    first = {
        node for node in everything - kept if ".".join(layer_of(node)) in last and node.endswith("/Conv")
    }
    assert first, "the layer's own convolution stays in float16"


def layer_of(node: str) -> tuple[str, str]:
    """Branch and number of a decoder's layer, of a node's name: ``decoders.1``, ``3``."""
    found = re.match(r"(t?decoder|decoders\.\d+)\.(\d+)[./]", node)
    return (found[1], found[2]) if found else ("", "")


# --- the trained model -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.network
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_trained_builds_for_rtx_cards(precision: Precision) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    trained = pytest.importorskip("trained")
    path = trained.trained_in_float16() if precision == "fp16" else trained.trained_bundle("split")
    build_all(Bundle.open(path), precision)


# --- bundles -----------------------------------------------------------------------------------------------


def test_what_a_converted_bundle_says_of_itself(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    plan = replace(default_plan("float16", ()), keep={"branch.16": ("Add*",)})
    half = convert_bundle(bundle, plan, tmp_path / "half")
    assert (half.manifest.name, half.manifest.precision) == ("tiny", "float16")
    assert arithmetic(half.manifest) == "fp16"
    about: Any = half.manifest.provenance["precision"]
    assert about["source"] == bundle.digest
    assert about["plan"] == plan.to_json()
    assert half.manifest.checks != bundle.manifest.checks
    costs, report = read_costs(half.manifest), convert_report(bundle, plan)
    assert set(costs) == set(report) == {stage.name for stage in bundle.manifest.graph_stages}
    assert costs["branch.16"].kept == len(report["branch.16"].kept) == 1
    assert read_costs(bundle.manifest) == {}
    for stage in bundle.manifest.stages:
        if stage.kind != "graph" and stage.file is not None:
            assert half.graph_bytes(stage) == bundle.graph_bytes(stage)


def test_tensors_between_graphs_and_the_border(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    manifest = bundle.manifest
    assert (
        low_tensors(manifest, "float16") == frozenset()
    )  # one graph in each branch: every tensor meets the host
    first = manifest.graph_stages[0]
    second = Stage("second", "graph", "16", first.outputs, ("more",), "second.onnx")
    chained = replace(manifest, stages=(first, second))
    assert low_tensors(chained, "float16") == set(first.outputs)
    assert not low_tensors(chained, "bfloat16")  # hosts have no arrays of it


def test_a_rule_that_should_match_and_does_not_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = {
        "fold": {"branch.16": ("*.shift/*",)},
        "residual": {"branch.time": ()},
        "last": {"branch.16": ("Add*",)},
    }
    manifest = replace(tiny_manifest(), float32=rules)
    bundle = write_bundle(tmp_path / "tiny", manifest, tiny_files(manifest), overwrite=False)
    half = convert_bundle(bundle, full_plan(bundle), tmp_path / "half")
    fold, residual = (record.getMessage() for record in caplog.records)
    assert "the rule fold matches nothing in stage branch.16" in fold
    assert "the rule residual matches nothing in stage branch.time" in residual
    assert half.manifest.float32 == rules
    caplog.clear()
    # what a plan leaves out is not missed
    convert_bundle(bundle, PrecisionPlan("float16", ("last", "norms")), tmp_path / "other")
    assert not caplog.records


def test_equal_bundles_are_equal_bytes(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    digests = {
        convert_bundle(bundle, default_plan("float16", ()), tmp_path / name).digest for name in ("a", "b")
    }
    assert len(digests) == 1


def test_what_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    half = convert_bundle(bundle, default_plan("float16", ()), tmp_path / "half")
    with pytest.raises(OutputError, match="overwrit"):
        convert_bundle(bundle, default_plan("float16", ()), tmp_path / "half")
    with pytest.raises(UsageError, match="tiny holds float16 graphs, expected float32 ones to convert"):
        convert_bundle(half, default_plan("float16", ()), tmp_path / "again")
    with pytest.raises(UsageError, match=r"a stage 'bottleneck', this bundle has the graphs branch\.16"):
        convert_bundle(
            bundle, replace(default_plan("float16", ()), keep={"bottleneck": ("*",)}), tmp_path / "again"
        )
    assert not (tmp_path / "again").exists()


# --- the cache ---------------------------------------------------------------------------------------------


def test_a_derived_bundle_is_made_once(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    first = derived_bundle(bundle, default_plan("float16", ()))
    made = first.path.stat().st_mtime_ns
    assert first.path.is_relative_to(paths.cache_dir("bundles"))
    again = derived_bundle(bundle, default_plan("float16", ()))
    assert (again.path, again.digest, again.path.stat().st_mtime_ns) == (first.path, first.digest, made)
    others = [default_plan("bfloat16", ()), replace(default_plan("float16", ()), rules=())]
    assert len({derived_bundle(bundle, plan).path for plan in others} | {first.path}) == 3
    several = derived_bundle(bundle.at_batch(2), default_plan("float16", ()))
    assert (several.path, several.manifest.tensor("mix").shape[0]) == (first.path, 2)


@pytest.mark.parametrize("damage", ["truncated", "changed", "manifest"])
def test_a_damaged_derived_bundle_is_made_again(tmp_path: Path, damage: str) -> None:
    bundle = tiny_bundle(tmp_path)
    first = derived_bundle(bundle, default_plan("float16", ()))
    file = first.path / ("manifest.json" if damage == "manifest" else "branch.16.onnx")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "changed" else data[: len(data) // 2])
    again = derived_bundle(bundle, default_plan("float16", ()))
    assert again.digest == first.digest
    assert Bundle.open(first.path).digest == first.digest


def _derive(source: Path, home: str, count: int) -> None:
    os.environ["MRSEP_DEPLOY_HOME"] = home
    for index in range(count):
        derived_bundle(Bundle.open(source), PrecisionPlan("float16", (), {"branch.16": ("Add*",) * index}))


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_processes_at_once_and_one_that_is_killed(tmp_path: Path, home: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_derive, args=(bundle.path, str(home), 40)) for _ in range(3)]
    for worker in workers:
        worker.start()
    folder = paths.cache_dir("bundles")
    until = time.monotonic() + 60
    while not (folder.exists() and any(folder.iterdir())) and time.monotonic() < until:
        time.sleep(0.01)
    assert workers[0].pid is not None
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0]
    whole = [place for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")]
    assert len(whole) == 40
    for place in whole:
        Bundle.open(place)
