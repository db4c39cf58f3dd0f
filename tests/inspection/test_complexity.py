"""Costs of models: against torch's own counter, the published class, and the bundles' graphs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import trained
from bundles import tiny_bundle, tiny_files, tiny_manifest
from click.testing import CliRunner, Result
from goldens import Export, checkpoint
from onnx import TensorProto, helper, numpy_helper
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mrsep_deploy import errors
from mrsep_deploy.bundle import Bundle, write_bundle
from mrsep_deploy.commands import complexity as command
from mrsep_deploy.commands import main
from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.families.demucs import config as configs
from mrsep_deploy.export.families.demucs.config import ModelConfig, parse_config
from mrsep_deploy.export.families.demucs.paper import RESOLUTIONS
from mrsep_deploy.export.families.demucs.shapes import bottleneck_size, plan_layers
from mrsep_deploy.export.families.demucs.variants import build_model
from mrsep_deploy.export.families.family import PaperModel
from mrsep_deploy.export.load import DEFAULT_SOURCES, load_model
from mrsep_deploy.inspection import paper
from mrsep_deploy.inspection.complexity import (
    FLOAT32_BYTES,
    ModelCost,
    complexity,
    configuration_cost,
    to_plain,
)
from mrsep_deploy.inspection.paper import paper_models
from mrsep_deploy.precision.work import node_macs
from mrsep_deploy.terminal import tables

GOLDENS = ("htdemucs", "htdemucs_nf")
BASELINE = "htdemucs"

HELP = str(command.complexity.help)
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"

PUBLISHED = {
    BASELINE: (109.6, 26.9),
    "htdemucs_n": (62.6, 9.67),
    "htdemucs_nn": (59.9, 9.67),
    "htdemucs_nf": (74.9, 6.98),
    "htdemucs_2nn": (63.4, 15.59),
    "htdemucs_dnf": (178.1, 3.45),
}
"""GMAC as torch counts them on a CPU, and millions of parameters, of the published defaults on 10 s."""


def configuration(family: str, **given: object) -> ModelConfig:
    return parse_config(family, (), {"sources": list(DEFAULT_SOURCES), **given})[0]


def attention_macs(config: ModelConfig) -> int:
    """Both products of softmax attention: queries x keys x channels, twice, in every layer and branch."""
    bins, frames, samples = bottleneck_size(config, plan_layers(config))
    tokens, width = bins * frames, config.bottom_channels or config.bottleneck_channels
    macs = 0
    for layer in range(config.t_layers):
        crossed = (layer % 2 == 1) != config.t_cross_first
        pairs = 2 * tokens * samples if crossed else tokens**2 + samples**2
        macs += 2 * pairs * width
    return macs


def projection_macs(config: ModelConfig) -> int:
    """The four projections of every self-attention: channels x channels for each token."""
    bins, frames, samples = bottleneck_size(config, plan_layers(config))
    layers = sum(1 for layer in range(config.t_layers) if (layer % 2 == 1) == config.t_cross_first)
    return (
        layers * 4 * (config.bottom_channels or config.bottleneck_channels) ** 2 * (bins * frames + samples)
    )


def torch_count(model: torch.nn.Module, channels: int, samples: int) -> int:
    """MACs of a whole model as torch's counter sees it on a CPU, transforms and all; nothing is computed."""
    with pytest.MonkeyPatch.context() as patch:
        # It looks at values, which nothing here has. It multiplies no matrices.
        patch.setattr(torch, "istft", lambda x, *_, length, **__: x.real.new_empty(len(x), length))
        return _torch_count(model, channels, samples)


def _torch_count(model: torch.nn.Module, channels: int, samples: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, samples))
    return int(counter.get_total_flops() // 2)


# --- counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", configs.VARIANTS)
def test_counts_are_torch_s(family: str) -> None:
    """MACs within 1 % of torch's counter on the whole model, parameters exactly."""
    check_counts(family, {})


PAPER_KEYS = [
    key for key, model in paper_models().items() if model.arguments and model.family in configs.VARIANTS
]


@pytest.mark.slow
@pytest.mark.parametrize("key", PAPER_KEYS)
def test_the_paper_s_counts_are_torch_s(key: str) -> None:
    """Every row of the tables that is not one of the defaults above."""
    check_counts(paper_models()[key].family, paper_models()[key].arguments)


@pytest.mark.parametrize(
    ("family", "arguments", "parameters", "flops"),
    [
        ("bs_roformer", {"dim": 512, "depth": 12}, 159.8, 8.70),
        ("mel_band_roformer", {"dim": 384, "depth": 6, "mask_layers": 3}, 228.2, 3.11),
    ],
)
def test_counts_of_published_roformers(
    family: str, arguments: Mapping[str, object], parameters: float, flops: float
) -> None:
    """Millions of parameters of the published files, and 1e12 operations of a chunk of 8 s, counted by hand."""
    given = {"target": "vocals", "sources": ["vocals", "other"], "stft_hop_length": 441, "chunk_size": 352800}
    depths = {"time_transformer_depth": 1, "freq_transformer_depth": 1}
    cost = configuration_cost(family, {**given, **depths, **arguments})
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert cost.flops / 1e12 == pytest.approx(flops, abs=0.05)


def check_counts(family: str, arguments: Mapping[str, object]) -> None:
    config = configuration(family, **arguments)
    cost = configuration_cost(family, arguments)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(config)
        parameters = sum(p.numel() for p in model.parameters())
        counted = torch_count(model, config.audio_channels, config.segment_samples)
    if config.attention == "softmax":
        # On a CPU attention is one fused kernel, which the counter has no formula for.
        counted += attention_macs(config)
    assert cost.macs == pytest.approx(counted, rel=0.01)
    assert cost.parameters == parameters
    assert sum(stage.parameters for stage in cost.stages) + cost.outside == parameters


@pytest.mark.parametrize("family", PUBLISHED)
def test_counts_are_the_published_ones(family: str) -> None:
    cost = configuration_cost(family, {})
    macs, parameters = PUBLISHED[family]
    unseen = 0
    if family == BASELINE:
        # The published class takes torch's fused self-attention on a CPU, projections and all.
        unseen = attention_macs(configuration(family)) + projection_macs(configuration(family))
    if family == BASELINE:
        assert f"shows {macs} GMAC for the published HTDemucs, not {cost.macs / 1e9:.1f}" in " ".join(
            HELP.split()
        )
    assert (cost.macs - unseen) / 1e9 == pytest.approx(macs, rel=0.01)
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.006)


def test_counts_are_those_of_the_published_class() -> None:
    demucs = pytest.importorskip("demucs.htdemucs", reason="the published class; pip install demucs==4.1.0")
    given = {"channels": 16, "segment": 2, "t_layers": 3, "bottom_channels": 64, "dconv_mode": 3}
    config = configuration(BASELINE, **given)
    model = demucs.HTDemucs(list(DEFAULT_SOURCES), **given).eval()
    parameters = sum(p.numel() for p in model.parameters())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counted = _torch_count(model, 2, config.segment_samples) + attention_macs(config)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    cost = configuration_cost(BASELINE, given)
    assert cost.macs == pytest.approx(counted, rel=0.01)
    assert cost.parameters == parameters


@pytest.mark.parametrize("name", ["mrsep-small", *GOLDENS])
def test_inspect_says_the_same(name: str, exports: Export) -> None:
    """One count of MACs in both commands, for the whole and for every stage; that of the graphs has another name."""
    path = name if name == "mrsep-small" else str(exports(name).path)
    commands = ("inspect", "complexity")
    runner = CliRunner()
    inspected, counted = (
        json.loads(runner.invoke(main.main, [each, path, "--json"]).stdout) for each in commands
    )
    assert inspected["macs"] == counted["macs"] > 0
    graphs = {stage["name"]: stage["macs"] for stage in inspected["stages"] if stage["kind"] == "graph"}
    assert graphs == {stage["name"]: stage["macs"] for stage in counted["stages"]}
    said = tables.count(counted["macs"])
    shown = {each: runner.invoke(main.main, [each, path]).stdout for each in commands}
    assert all(re.search(rf"whole .*{re.escape(said)}", text) for text in shown.values())
    assert "in graphs" in shown["complexity"]
    assert tables.count(counted["graph_macs"]) in shown["complexity"]
    assert counted["graph_macs"] == sum(stage["graph_macs"] for stage in counted["stages"])
    if name != "mrsep-small":
        checked = json.loads(run(str(checkpoint(name)), "--json").stdout)
        assert checked["macs"] == counted["macs"]
        assert checked["graph_macs"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_a_bundle_costs_what_its_checkpoint_costs(name: str, exports: Export) -> None:
    """What the folded norms of DConv multiply weighs more, the narrower the layers, and these are very narrow."""
    bundle = exports(name)
    counted, exported = complexity(checkpoint(name)), complexity(bundle.path)
    assert [stage.name for stage in exported.stages] == [stage.name for stage in counted.stages]
    # A convolution that fuses becomes products with matrices that are half zeros: twice as many, and a little
    # more for the end of the last block.
    assert (exported.graph_macs, exported.stages[-1].graph_macs) != (None, None)
    graphs, blocks = exported.graph_macs or 0, exported.stages[-1].graph_macs or 0
    fusion = counted.stages[-1].macs
    assert exported.macs == counted.macs
    assert fusion <= blocks <= 2.1 * fusion
    assert counted.macs - fusion <= graphs - blocks <= 1.05 * (counted.macs - fusion)
    assert exported.activations == pytest.approx(counted.activations, rel=0.1)
    assert exported.parameters == counted.parameters == parameters_of(name)
    assert exported.segment == counted.segment
    require_known_operators(bundle)


def require_known_operators(bundle: Bundle) -> None:
    """An operator that multiplies and is none of those counted would count nothing."""
    used = {
        node.op_type
        for stage in bundle.manifest.graph_stages
        for node in onnx.load_from_string(bundle.graph_bytes(stage)).graph.node
    }
    assert not used & {"Einsum", "Attention", "ConvInteger", "MatMulInteger", "LSTM", "GRU", "RNN"}


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.network
def test_the_trained_bundle_costs_what_the_checkpoint_costs() -> None:
    exported = complexity(trained.trained_bundle("split"))
    counted = complexity(trained.assets.trained_htdemucs())
    assert exported.macs == counted.macs
    assert exported.graph_macs == pytest.approx(counted.macs, rel=0.01)
    assert exported.parameters == counted.parameters == 41_984_456


def parameters_of(name: str) -> int:
    return sum(p.numel() for p in load_model(checkpoint(name)).model.parameters())


def test_activations_of_a_small_model() -> None:
    """Without a transformer or DConv there are only the layers' own convolutions: elements by hand."""
    given = {"nfft_list": [256], "channels": 8, "depth": 1, "segment": 0.1, "dconv_mode": 0}
    cost = configuration_cost("mrhdemucs", given)
    bins, frames = 128, -(-4410 // 64)
    encoded = 8 * (bins // 4) * frames
    # encoder: strided convolution, then 1x1 to twice the channels; decoder: 3x3 to twice, then transposed,
    # which puts out the padding of two bins a side that is cut afterwards
    expected = encoded + 2 * encoded, 2 * encoded + 4 * 2 * 2 * (bins + 4) * frames
    assert cost.activations == sum(expected)
    assert to_plain(cost)["activation_bytes_float32"] == FLOAT32_BYTES * sum(expected)


def test_a_second_of_audio() -> None:
    cost = ModelCost("configuration", "m", "mrhdemucs", 2.0, 10, ())
    assert to_plain(cost)["per_second_of_audio"] == dict.fromkeys(
        ("macs", "flops", "activations", "activation_bytes_float32"), 0
    )
    longer = [configuration_cost("mrhdemucs", {"segment": seconds, "channels": 8}) for seconds in (2, 4)]
    one, two = (to_plain(cost)["per_second_of_audio"] for cost in longer)
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert one["macs"] == pytest.approx(two["macs"], rel=0.01)


@pytest.mark.parametrize(
    ("operator", "shapes", "macs", "attributes"),
    [
        ("Conv", ((1, 4, 8, 8), (6, 4, 3, 3), (1, 6, 8, 8)), 6 * 8 * 8 * 4 * 9, {}),
        ("Conv", ((1, 4, 8), (4, 1, 3), (1, 4, 8)), 4 * 8 * 3, {}),
        ("ConvTranspose", ((1, 4, 8), (4, 6, 8), (1, 6, 32)), 4 * 8 * 6 * 8, {}),
        ("MatMul", ((2, 5, 7), (2, 7, 3), (2, 5, 3)), 2 * 5 * 7 * 3, {}),
        ("Gemm", ((5, 7), (7, 3), (5, 3)), 5 * 7 * 3, {}),
        ("Gemm", ((7, 5), (7, 3), (5, 3)), 5 * 7 * 3, {"transA": 1}),
    ],
)
def test_nodes(
    operator: str, shapes: Sequence[tuple[int, ...]], macs: int, attributes: dict[str, int]
) -> None:
    first, second, result = (ir.val(name, shape=shape) for name, shape in zip("abc", shapes, strict=True))
    assert node_macs(ir.node(operator, [first, second], attributes, outputs=[result])) == macs


def test_a_graph_without_shapes_is_refused(tmp_path: Path) -> None:

    manifest = tiny_manifest()
    files = tiny_files(manifest)
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["waveform", "w"], ["estimate_time"])],
        "open",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, (1, "L", 4))],
        [helper.make_tensor_value_info("estimate_time", TensorProto.FLOAT, (1, "L", 4))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    files["branch.time.onnx"] = model.SerializeToString()
    write_bundle(tmp_path / "open", manifest, files, overwrite=False)
    with pytest.raises(errors.BundleError, match="static shapes"):
        complexity(tmp_path / "open")


def test_impossible_configurations() -> None:
    for given in ({"nfft_list": [100]}, {"layers": 3}, {"channels": 24.5}):
        with pytest.raises(CheckpointError):
            configuration_cost("htdemucs_n", given)


# --- the command -------------------------------------------------------------------------------------------


def run(*given: str) -> Result:
    return CliRunner().invoke(main.main, ["complexity", *given], prog_name=main.PROGRAM)


def test_a_configuration() -> None:
    given = ("--family", "htdemucs_n", "--nfft", "2048,4096", "--channels", "8", "--set", "t_layers=1")
    found = json.loads(run(*given, "--json").output)
    expected = configuration_cost("htdemucs_n", {"nfft_list": [2048, 4096], "channels": 8, "t_layers": 1})
    assert found == json.loads(json.dumps(to_plain(expected)))
    shown = run(*given).output
    assert "encoder.4096" in shown
    assert "a second of audio" in shown


def test_one_window_for_htdemucs() -> None:
    found = json.loads(run("--family", "htdemucs", "--nfft", "2048", "--json").output)
    assert found["macs"] == configuration_cost("htdemucs", {"nfft": 2048}).macs


def test_a_bundle_of_no_products(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    found = json.loads(run(str(bundle.path), "--json").output)
    assert (found["macs"], found["graph_macs"], found["parameters"]) == (18, 0, 2)
    assert found["kind"] == "bundle"
    assert "whole" in run(str(bundle.path)).output


@pytest.mark.parametrize(
    "given",
    [
        ("a.th", "--family", "htdemucs"),
        ("--paper", "--family", "htdemucs"),
        ("--nfft", "2048"),
        ("--family", "htdemucs", "--nfft", "2048,4096"),
        ("--family", "htdemucs_n", "--nfft", "2k"),
        ("--family", "htdemucs_n", "--channels", "8", "--set", "channels=8"),
        ("--family", "resnet"),
        ("--times", "t.json"),
        ("--measure",),
    ],
    ids=" ".join,
)
def test_wrong_usage(given: tuple[str, ...]) -> None:
    result = run(*given)
    assert result.exit_code == errors.USAGE
    assert "Error: " in result.stderr


# --- the paper's tables ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "configuration_cost", _cost_of_row)


_costs: dict[str, ModelCost] = {}


def _cost_of_row(family: str, given: dict[str, object]) -> ModelCost:
    key = json.dumps([family, given])
    if key not in _costs:
        _costs[key] = configuration_cost(family, given)
    return _costs[key]


def test_resolutions_grow_one_by_one_around_the_bottleneck_s() -> None:
    sizes = [RESOLUTIONS[number] for number in (2, 3, 4, 5)]
    assert sizes[1] == configuration("htdemucs_n").nfft_list
    assert sizes[3] == configuration("htdemucs_nf").nfft_list
    assert all(len(set(more) - set(fewer)) == 1 for fewer, more in pairwise(sizes))
    assert {each[len(each) // 2] for each in sizes} == {4096}


def test_table_4_differs_in_the_fusion_only() -> None:
    models = [model for _, model in paper.paper_tables()[3].rows]
    built = [asdict(configuration(model.family, **model.arguments)) for model in models]
    apart = {name for name in built[0] if len({str(each[name]) for each in built}) > 1}
    assert apart == {"family", "fusion"}
    assert [each["fusion"] for each in built] == ["shared", "convolution", "unet"]


@pytest.mark.slow
def test_the_tables_are_still_counted_so() -> None:
    """As ``benchmarks/results`` and the README have them."""
    published = json.loads((RESULTS / "paper_tables.json").read_text(encoding="utf-8"))["tables"]
    found, counted = (
        {
            row["key"]: (row["parameters"], row["macs"], row["activations"])
            for table in tables
            for row in table["rows"]
        }
        for tables in (published, paper.filled_tables({}, {}))
    )
    assert found == counted


def test_the_tables_without_results_say_what_fills_them() -> None:
    shown = run("--paper").output
    for text in (
        "Table 1",
        "Table 2",
        "Table 3",
        "342.5 G",
        "26.90 M",
        "--measure",
        "--times FILE",
        "--sdr FILE",
    ):
        assert text in shown


def test_the_tables_with_results(tmp_path: Path) -> None:
    times, sdr = tmp_path / "times.json", tmp_path / "sdr.json"
    keys = list(paper_models())
    times.write_text(json.dumps({"seconds": {key: {"torch": 2.5, "ort": 1.25} for key in keys}}))
    sdr.write_text(json.dumps(dict.fromkeys(keys, 8.25)))
    given = ("--paper", "--times", str(times), "--sdr", str(sdr))
    shown = run(*given).output
    assert shown.count("1.250 s") == shown.count("8.25 dB") == 17
    assert "–" not in shown
    assert "--measure" not in shown
    rows = [row for table in json.loads(run(*given, "--json").output) for row in table["rows"]]
    assert {row["key"] for row in rows} == set(keys)
    assert [row["model"] for row in rows[:4]] == ["HTDemucs", "HTDemucs_n", "HTDemucs_nf", "HTDemucs_nn"]
    assert {row["model"] for row in rows if row.get("model")} > {"HDemucs", "BS-RoFormer, 512 x 12, vocals"}
    assert rows[1]["configuration"]["family"] == "htdemucs_n"
    assert all(row["flops"] == 2 * row["macs"] and row["seconds"]["ort"] == 1.25 for row in rows)


@pytest.mark.parametrize(
    ("option", "content", "complaint"),
    [
        ("--sdr", '{"htdemucs_x": 8}', "stands in no table"),
        ("--sdr", '{"htdemucs_n": "8"}', "expected a number"),
        ("--sdr", "[]", "is [], expected an object"),
        ("--times", '{"htdemucs_n": 8}', "has no field 'seconds'"),
        ("--times", '{"seconds": {"htdemucs_n": {"torch": -1}}}', "above 0"),
        ("--times", '{"seconds": {"htdemucs_x": {"torch": 1}}}', "stands in no table"),
    ],
)
def test_wrong_results(tmp_path: Path, option: str, content: str, complaint: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    result = run("--paper", option, str(path))
    assert result.exit_code == errors.USAGE
    assert complaint in result.stderr


SMALL = {"channels": 8, "depth": 2, "segment": 0.2, "nfft_list": [512]}


@pytest.mark.slow
def test_times_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "times.json"
    models = {"htdemucs_n": PaperModel("htdemucs_n", "mrhdemucs", SMALL)}
    steps: list[str] = []
    found = paper.measure(models, path, lambda what, _done, _all: steps.append(what))
    assert steps == ["measuring htdemucs_n"]
    assert set(found["htdemucs_n"]) == {"torch", "ort"}
    assert all(seconds > 0 for seconds in found["htdemucs_n"].values())
    monkeypatch.setattr(paper, "seconds_of", pytest.fail)
    again = paper.measure(models, path, lambda *_: None)
    assert again == found
    monkeypatch.setattr(paper, "ROUNDS", 99)
    with pytest.raises(errors.UsageError, match="another machine or with other versions"):
        paper.measure(models, path, lambda *_: None)
