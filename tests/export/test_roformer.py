"""RoFormers against the training toolkit's own classes: modules, rewrites, graphs, whole songs.

References are whole songs that the toolkit's classes separated (``tests/golden``): the published bands, and small
models of other shapes (custom bands in no order, mono, a hop of 882, skip connections, deep transformers over time, a
song shorter than a chunk, a step that is no whole part of a chunk).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import once
import onnx
import pytest
import torch
from goldens import Export, checkpoint, golden
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import STEMS, Layout
from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.families import FAMILIES
from mrsep_deploy.export.families.staged import StagedModel
from mrsep_deploy.export.load import LoadedModel, load_model, reload, untrained_model
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.probe import probe_signal
from mrsep_deploy.separation.separator import Separator

Array = NDArray[np.float32]

ROFORMER = FAMILIES["roformer"]
SMALL_GOLDENS = ("roformer_small_bs", "roformer_small_mel")
PUBLISHED = ("bs_roformer", "mel_band_roformer_2")

TINY: dict[str, object] = {
    "sources": ["vocals", "other"],
    "dim": 6,
    "depth": 2,
    "heads": 2,
    "dim_head": 4,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "stft_n_fft": 256,
    "stft_hop_length": 64,
    "mlp_expansion_factor": 2,
    "chunk_size": 1500,
    "sample_rate": 8000,
}
"""1500 samples are no whole number of hops."""

BANDS = [3, 5, 3, 50, 5, 63]

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "bands": ("bs_roformer", {"freqs_per_bands": BANDS, "mask_layers": 3}),
    "mono-skip": ("bs_roformer", {"freqs_per_bands": BANDS, "stereo": False, "skip_connection": True}),
    "target": ("bs_roformer", {"freqs_per_bands": BANDS, "target": "other", "zero_dc": False}),
    "one-layer": ("bs_roformer", {"freqs_per_bands": BANDS, "mask_layers": 1, "stft_normalized": True}),
    "mel": ("mel_band_roformer", {"num_bands": 12, "filter_bank_rate": 8000, "freq_transformer_depth": 2}),
}


def drawn(name: str) -> LoadedModel:
    kind, arguments = MODELS[name]
    return untrained_model(kind, 5, **{**TINY, **arguments})


def probe(loaded: LoadedModel) -> torch.Tensor:
    audio = loaded.audio
    return torch.from_numpy(probe_signal(audio.channels, audio.segment_samples, audio.sample_rate))[None]


def limit(loaded: LoadedModel) -> float:
    """1e-5 (100 dB), or three times what PyTorch's own float32 loses on music where that is more.

    Nearly all of that is the rounding of the spectrogram: norms raise bands that hold little else to full scale.
    """
    mix, staged = probe(loaded), loaded.staged()
    with torch.no_grad():
        single = staged(mix).numpy()
        exact = copy.deepcopy(staged).double()(mix.double()).numpy()
    return max(1e-5, 3 * Deviation.between(single, exact).relative)


def separated(export: Export, name: str, layout: Layout, engine: str, batch: int) -> dict[str, Array]:
    with Separator(export(name, layout).at_batch(batch), engine=engine, threads=1) as separator:
        return separator.separate(golden(name).mix)


def compare(name: str, found: dict[str, Array]) -> None:
    """Every stem is the toolkit's, alone; a single target has the mix less it beside it."""
    loaded, reference = load_model(checkpoint(name)), golden(name)
    allowed = once.number(f"limits/{name}", lambda: limit(loaded))
    assert tuple(found) == loaded.config.sources
    for stem, exact in zip(found.values(), reference.stems, strict=False):
        assert stem.shape == exact.shape
        assert Deviation.between(stem, exact).relative <= allowed
    if loaded.config.complement:
        target, other = found.values()
        # Sums of float32 numbers of the size of the mix.
        assert Deviation.between(other, reference.mix - target).relative <= 1e-5
    else:
        assert len(found) == len(reference.stems)


# --- the whole way


@pytest.mark.parametrize("name", SMALL_GOLDENS)
def test_a_song_as_the_toolkit_separates_it(exports: Export, name: str) -> None:
    compare(name, separated(exports, name, "split", "ort", 1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(("layout", "batch"), [("split", 4), ("whole", 1), ("whole", 4)])
@pytest.mark.parametrize("name", SMALL_GOLDENS)
def test_in_every_layout_and_batch(
    exports: Export, name: str, layout: Layout, batch: int, engine: str
) -> None:
    compare(name, separated(exports, name, layout, engine, batch))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(("layout", "batch"), [("split", 1), ("split", 4), ("whole", 1), ("whole", 4)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_bands(exports: Export, name: str, layout: Layout, batch: int, engine: str) -> None:
    compare(name, separated(exports, name, layout, engine, batch))


def test_graphs_are_what_engines_fuse(exports: Export) -> None:
    """Attention is one operator; nothing is spread out to the size of what it is multiplied by."""
    bundle = exports("roformer_small_bs")
    assert bundle.manifest.opset == 23
    assert [stage.name for stage in bundle.manifest.graph_stages] == ["bands", "blocks", "masks"]
    for stage in bundle.manifest.graph_stages:
        kinds = [node.op_type for node in onnx.load_from_string(bundle.graph_bytes(stage)).graph.node]
        assert not {"Expand", "Softmax", "ScatterND", "ScatterElements"} & set(kinds)
        assert kinds.count("Attention") == (8 if stage.name == "blocks" else 0)


def test_a_bundle_makes_its_model_again(exports: Export) -> None:
    """Its provenance holds the arguments: the configuration is not needed any more."""
    manifest = exports("roformer_small_mel").manifest
    again = reload(manifest.provenance)
    assert again.config == load_model(checkpoint("roformer_small_mel")).config
    assert manifest.model.config["zero_dc"] is True


# --- modules


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rewrites", [*([each] for each in ROFORMER.rewrites), list(ROFORMER.rewrites)])
def test_rewrites_are_exact(name: str, rewrites: list[str]) -> None:
    staged = drawn(name).staged().double()
    mix = probe(drawn(name)).double()
    with torch.no_grad():
        expected = staged.tensors(mix)
        changed = copy.deepcopy(staged)
        ROFORMER.rewrite(changed.model, rewrites)
        found = changed.tensors(mix)
    for tensor, exact in expected.items():
        # Sums of float64 products in another order.
        assert (found[tensor] - exact).norm() <= 1e-12 * exact.norm(), tensor


@pytest.mark.parametrize("layout", ["split", "whole"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_other_shapes_export(tmp_path: Path, name: str, layout: Layout) -> None:
    """The export compares every graph and the whole with PyTorch in float64, and refuses what strays."""
    bundle = export_model(drawn(name), name, tmp_path / name, ExportOptions(layout))
    assert bundle.manifest.macs > 0


def test_silence_stays_silent() -> None:
    """A norm of nothing is nothing: no division by zero, in no precision."""
    loaded = drawn("mel")
    for rewrites in ([], list(ROFORMER.rewrites)):
        staged = loaded.staged()
        staged = copy.deepcopy(staged)
        ROFORMER.rewrite(staged.model, rewrites)
        assert not staged.tensors(torch.zeros_like(probe(loaded)))[STEMS].any()


def test_one_target_of_several_masks() -> None:
    """A checkpoint with a mask for each instrument and a target: its mask alone, and the mix less it."""
    both = drawn("bands")
    kind, arguments = MODELS["bands"]
    one = untrained_model(kind, 5, **{**TINY, **arguments, "num_stems": 2, "target": "other"})
    one.model.load_state_dict(both.model.state_dict())
    mix = probe(both)
    (expected,), (found,) = (StagedModel(ROFORMER, model.model)(mix) for model in (both, one))
    assert one.audio.sources == ("other", "vocals")
    torch.testing.assert_close(found[0], expected[1])
    torch.testing.assert_close(found.sum(dim=0), mix[0], atol=1e-6, rtol=0)


def test_the_lowest_bin_is_left_out_if_asked() -> None:
    """``zero_dc`` takes the constant part out of every stem."""
    kind, arguments = MODELS["bands"]
    for zero_dc in (True, False):
        loaded = untrained_model(kind, 5, **{**TINY, **arguments, "zero_dc": zero_dc})
        estimate = loaded.staged().tensors(probe(loaded) + 0.1)["estimate_256"]
        assert bool(estimate[:, :, 0].any()) != zero_dc
        assert estimate[:, :, 1].any()


# --- checkpoints


def saved(folder: Path, wrapper: object = None, change: dict[str, torch.Tensor] | None = None) -> Path:
    """The small checkpoint again, in the forms that people have it in."""
    state = torch.load(checkpoint("roformer_small_bs"), weights_only=True)
    state |= change or {}
    path = folder / "model.ckpt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    return path


CONFIG = checkpoint("roformer_small_bs").with_suffix(".yaml")


@pytest.mark.parametrize("wrapper", [None, "state", "state_dict", "model_state_dict", "model"])
def test_state_dicts_as_people_have_them(tmp_path: Path, wrapper: object) -> None:
    found = load_model(saved(tmp_path, wrapper), CONFIG)
    expected = load_model(checkpoint("roformer_small_bs"))
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=0, atol=0)


def test_half_precision_and_wrapped_names(tmp_path: Path) -> None:
    state = torch.load(checkpoint("roformer_small_bs"), weights_only=True)
    torch.save({f"module.{name}": value.half() for name, value in state.items()}, tmp_path / "half.pth")
    found = load_model(tmp_path / "half.pth", CONFIG)
    assert found.origin["checkpoint"]["storage"] == ["float16"]  # type: ignore[index]
    assert next(found.model.parameters()).dtype == torch.float32


def test_learnt_rotations_are_refused(tmp_path: Path) -> None:
    name = "layers.1.0.layers.2.0.rotary_embed.freqs"
    path = saved(tmp_path, change={name: torch.tensor([1.0, 0.5, 0.25])})
    with pytest.raises(
        CheckpointError, match=r"model.ckpt: layers.1.0.layers.2.0.rotary_embed.freqs differs by"
    ):
        load_model(path, CONFIG)


def test_without_a_configuration_it_is_a_bare_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bare state dict"):
        load_model(saved(tmp_path))


def test_a_configuration_of_another_size_does_not_fit(tmp_path: Path) -> None:
    text = CONFIG.read_text().replace("dim: 8", "dim: 16")
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_model(saved(tmp_path))


def test_packages_have_their_own_arguments() -> None:
    with pytest.raises(CheckpointError, match="has its own arguments"):
        load_model(checkpoint("htdemucs"), CONFIG)


def test_other_models_are_named(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other.ckpt holds parameters of no supported model"):
        load_model(tmp_path / "other.ckpt", CONFIG)
