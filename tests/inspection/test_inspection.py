"""What inspect says, against the checkpoints' own numbers and physics."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import tiny_bundle, tiny_files, tiny_manifest
from torch import Tensor, nn

from mrsep_deploy.bundle import write_bundle
from mrsep_deploy.errors import BundleError, CheckpointError
from mrsep_deploy.export.api import EXTRA
from mrsep_deploy.export.checkpoint.read import read_checkpoint
from mrsep_deploy.export.families import known_classes
from mrsep_deploy.export.load import load_model
from mrsep_deploy.inspection.inspect import FusionReport, inspect
from mrsep_deploy.inspection.report import BAR_WIDTH, bar, to_plain
from mrsep_deploy.terminal.tables import count, decibels, file_size, shape

GOLDEN = Path(__file__).parents[1] / "golden"


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["htdemucs_nn", "htdemucs_2nn"])
def test_fusion_weights_and_entropy(name: str) -> None:
    path = GOLDEN / f"{name}.th"
    state = read_checkpoint(path, known_classes()).state
    bottleneck = softmax(state["fusion_weights"].double().numpy())
    output = softmax(state["final_fusion_weights"].double().numpy())
    found = inspect(path)
    sources = found.model.sources
    assert [(r.where, r.source) for r in found.fusion] == [
        ("bottleneck", None),
        *(("output", source) for source in sources),
    ]
    for report, weights in zip(found.fusion, [bottleneck, *output], strict=True):
        assert report.resolutions == tuple(b.name for b in found.branches if b.window)
        np.testing.assert_allclose(report.weights, weights, rtol=1e-6)
        bits = -(weights * np.log2(weights)).sum()
        assert report.entropy == pytest.approx(bits, rel=1e-6)
        assert report.max_entropy == pytest.approx(np.log2(len(weights)))
        assert report.evenness == pytest.approx(bits / np.log2(len(weights)), rel=1e-6)


@pytest.mark.parametrize("name", ["htdemucs", "htdemucs_nf", "htdemucs_n_vocals"])
def test_models_without_learnt_shares_at_the_output(name: str) -> None:
    assert not [report for report in inspect(GOLDEN / f"{name}.th").fusion if report.where == "output"]


def test_resolutions_are_those_of_the_transform() -> None:
    found = inspect(GOLDEN / "htdemucs_n.th")
    *spectrograms, time = found.branches
    rate, samples = found.model.sample_rate, found.model.segment_samples
    assert (time.name, time.window, time.bins, time.frames) == ("time", 0, 0, samples)
    for branch in spectrograms:
        assert branch.window == int(branch.name)
        assert branch.window_ms * branch.bin_hz == pytest.approx(1000), "time and frequency trade off exactly"
        assert branch.bins * branch.bin_hz == pytest.approx(rate / 2)
        assert branch.hop_ms * rate / 1000 * branch.frames == pytest.approx(samples, abs=branch.hop)


@pytest.mark.parametrize("name", ["htdemucs_n_vocals", "htdemucs_nf"])
def test_counts_are_those_of_the_layers(name: str) -> None:
    """Multiply-accumulates, counted anew: by hooks on every layer while the model runs as a whole."""
    path = GOLDEN / f"{name}.th"
    model, macs = load_model(path).model, []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
            macs.append(inputs[0].numel() * layer.weight[0].numel())
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            macs.append(output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        layer.register_forward_hook(hook)  # type: ignore[arg-type]
    found = inspect(path)
    with torch.no_grad():
        model(torch.zeros(1, found.model.audio_channels, found.model.segment_samples))
    assert found.macs == sum(macs)
    assert found.model.parameters == sum(p.numel() for p in model.parameters())
    # published classes own weights for a bottleneck even where they have none
    unused = model.fusion_weights.numel() if name == "htdemucs_n_vocals" else 0
    assert sum(stage.parameters for stage in found.stages) == found.model.parameters - unused
    own = sum(branch.macs for branch in found.branches)
    assert own + sum(s.macs for s in found.stages if s.branch == "shared") == found.macs


def test_shapes_follow_the_stages() -> None:
    found = inspect(GOLDEN / "htdemucs_2nn.th")
    model = found.model
    signal = (model.audio_channels, model.segment_samples)
    assert found.stages[0].inputs[0].shape == (1, *signal)
    assert found.stages[-1].outputs[0].shape == (1, len(model.sources), *signal)
    assert all(tensor.shape[0] == 1 for stage in found.stages for tensor in (*stage.inputs, *stage.outputs))


def test_provenance_of_a_checkpoint() -> None:
    found = inspect(GOLDEN / "htdemucs.th")
    read = read_checkpoint(GOLDEN / "htdemucs.th", known_classes())
    assert (found.kind, found.name, found.digest, found.files) == ("checkpoint", "htdemucs", None, {})
    assert (found.provenance.checkpoint, found.provenance.sha256) == ("htdemucs.th", read.sha256)
    assert found.provenance.storage == read.storage_dtypes
    assert found.model.trained


def test_what_is_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no model")
    for path in ("./text", tmp_path / "text", "absent.th", "absent.safetensors"):
        with pytest.raises(CheckpointError):
            inspect(path)
    with pytest.raises(BundleError):
        inspect("./absent")


# --- bundles -----------------------------------------------------------------------------------------------


def test_a_bundle(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    found = inspect(bundle.path)
    assert (found.kind, found.name, found.digest, found.macs) == ("bundle", "tiny", bundle.digest, 18)
    assert found.files == {name: info.bytes for name, info in bundle.manifest.files.items()}
    assert [report.entropy for report in found.fusion] == pytest.approx([0.8112781244591328, 1.0])
    assert [branch.macs for branch in found.branches] == [9, 9]
    assert json.loads(json.dumps(to_plain(found)))["fusion"][1]["weights"] == {"16": 0.5, "time": 0.5}


def test_a_bundle_is_read_without_the_extra(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[2:]))\n"
        "from mrsep_deploy.commands.main import main; main(['inspect', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.path), *EXTRA], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Fusion weights" in done.stdout


def test_a_stranger_s_free_form_fields_are_harmless(tmp_path: Path) -> None:
    """What the manifest does not check is shown without steering the terminal, or left out."""
    manifest = replace(
        tiny_manifest(),
        provenance={
            "checkpoint": {"path": "C:\\x\\a\x1b[31m.th", "sha256": 5, "storage": ["\x07f", 1]},
            "untrained": [],
            "tools": {"\x1b]0;x": "\x1b[2J", "numpy": 1},
            "rewrites": "all",
        },
        checks={"whole": {"relative_l2": "0", "pytorch_float32_relative_l2": 1}, "branch.16": 3},
    )
    bundle = write_bundle(tmp_path / "tiny", manifest, tiny_files(manifest), overwrite=False)
    found = inspect(bundle.path)
    assert found.provenance.checkpoint == "a?[31m.th"
    assert found.provenance.storage == ("?f",)
    assert (found.provenance.sha256, found.provenance.rewrites, found.whole) == ("", (), None)
    assert "\x1b" not in json.dumps(to_plain(found), ensure_ascii=False)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    path = bundle.path / "branch.16.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="sha256"):
        inspect(bundle.path)


# --- how it is shown ---------------------------------------------------------------------------------------


def test_entropy_at_its_ends() -> None:
    def report(*weights: float) -> FusionReport:
        return FusionReport("output", None, tuple(map(str, weights)), weights)

    assert (report(0.0, 1.0).entropy, report(0.0, 1.0).evenness) == (0, 0)
    assert report(0.25, 0.25, 0.25, 0.25).entropy == report(*[0.25] * 4).max_entropy == 2
    assert (report(1.0).entropy, report(1.0).evenness) == (0, 1)


def test_bars_are_as_long_as_their_share() -> None:
    assert (bar(0), bar(1), bar(0.5, 4)) == ("", "█" * BAR_WIDTH, "██")
    assert bar(1 / 16, 8) == "▌"
    assert bar(0.5, 8, "ascii") == "####"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (66716, "66.7 k"), (999_499, "999 k"), (999_500, "1.00 M"),
     (5892288, "5.89 M"), (13146685440, "13.1 G")],
)  # fmt: skip
def test_counts(number: int, text: str) -> None:
    assert count(number) == text


def test_other_figures() -> None:
    assert (file_size(12), file_size(956_000)) == ("12 B", "956 kB")
    assert shape((1, 4, 1024)) == "1×4×1024"
    assert (decibels(None), decibels(math.inf), decibels(-math.inf), decibels(126.45)) == (
        *("–", "exact", "-∞"),
        "126.5",
    )
