"""From checkpoint to stems: a bundle of every family gives what the published code gives in float64."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import once
import pytest
import torch
from goldens import NAMES, SONGS, Export, checkpoint, golden
from numpy.typing import NDArray
from quiet_torch import quiet_torch

from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.export.exporter import ExportOptions, export_model
from mrsep_deploy.export.load import LoadedModel, load_model, untrained_model
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.separation.separator import Separator

__all__ = ["quiet_torch"]

pytestmark = pytest.mark.slow


def limit(loaded: LoadedModel, mix: NDArray[np.float32]) -> float:
    """1e-5 (100 dB), or three times what PyTorch's own float32 loses on this mix where that is more.

    Some checkpoints amplify rounding: no float32 run of them in another order can be nearer than PyTorch's
    own is, up to luck, for which there is the factor of three.
    """
    given = torch.from_numpy(mix)[None]
    single = loaded.model(given).numpy()
    loaded.model.double()
    exact = loaded.model(given.double()).numpy()
    loaded.model.float()
    return max(1e-5, 3 * Deviation.between(single, exact).relative)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", get_args(Layout))
def test_segment(exports: Export, name: str, layout: Layout) -> None:
    """The golden segment among others of its batch; each of these as if it had been alone; and in a batch of one."""
    expected = golden(name)
    allowed = once.number(f"limits/{name}", lambda: limit(load_model(checkpoint(name)), expected.mix))
    bundle = exports(name, layout)
    assert bundle.manifest.layout == layout
    # A mix shorter than the segment is a segment that ends in silence.
    length = expected.mix.shape[-1]
    mix = np.pad(expected.mix, [(0, 0), (0, bundle.manifest.model.segment_samples - length)])
    several = np.stack([mix, 0.01 * mix[::-1, ::-1], np.roll(mix, 1234, axis=-1)])
    with Separator(bundle.at_batch(len(several)), engine="ort", threads=1) as separator:
        stems = separator.run_segments(several).copy()
        alone = np.stack([separator.run_segments(one[None])[0].copy() for one in several])
    with Separator(bundle, engine="ort", threads=1) as separator:
        single = np.stack([separator.run_segments(one[None])[0].copy() for one in several])
    assert stems[0, ..., :length].shape == expected.stems.shape
    assert Deviation.between(stems[0, ..., :length], expected.stems).relative <= allowed
    for one, other, of_one in zip(stems, alone, single, strict=True):
        # The same kernels on the same shapes: a fraction of what float32 may lose.
        assert Deviation.between(one, other).relative <= allowed / 10
        # Kernels sum in another order in another batch, each within what float32 may lose.
        assert Deviation.between(one, of_one).relative <= allowed


@pytest.mark.parametrize("name", SONGS)
@pytest.mark.parametrize(("layout", "batch"), [("split", 1), ("whole", 3)])
def test_song(exports: Export, name: str, layout: Layout, batch: int) -> None:
    """A whole song, in overlapping segments, as the published ``apply_model`` gives it."""
    song = golden(SONGS[name])
    loaded = load_model(checkpoint(name))
    assert song.overlap is not None
    padded = np.zeros((len(song.mix), loaded.config.segment_samples), np.float32)
    head = song.mix[:, : padded.shape[1]]
    padded[:, : head.shape[1]] = head / head.std()
    with Separator(
        exports(name, layout).at_batch(batch), engine="ort", threads=1, overlap=song.overlap
    ) as separator:
        stems = separator.separate(song.mix)
    assert list(stems) == list(loaded.config.sources)
    found = np.stack(list(stems.values()))
    assert found.shape == song.stems.shape
    assert Deviation.between(found, song.stems).relative <= limit(loaded, padded)


PAPER: dict[str, dict[str, object]] = {
    "no-transformer": {"t_layers": 0},
    "linear-waveform": {"t_layers": 2, "t_heads": 2, "attention": "linear", "waveform": True},
    "softmax": {"t_layers": 2, "t_heads": 2, "attention": "softmax"},
}
LAYOUTS: tuple[Layout, ...] = ("split", "split", "whole")


@pytest.mark.parametrize(("variant", "layout"), list(zip(PAPER, LAYOUTS, strict=True)))
def test_the_papers_form(tmp_path: Path, variant: str, layout: Layout) -> None:
    """Of this family there is no published code: the reference is our model in float64."""
    small = {"channels": 4, "dconv_comp": 2, "nfft_list": [512, 1024], "samplerate": 8000, "segment": 1}
    loaded = untrained_model("mrhdemucs", 3, **small, **PAPER[variant])
    mix = golden("htdemucs").mix
    allowed = limit(loaded, mix)
    bundle = export_model(loaded, variant, tmp_path / variant, ExportOptions(layout))
    with Separator(bundle, engine="ort", threads=1) as separator:
        stems = separator.run_segments(mix[None])[0].copy()
    exact = loaded.model.double()(torch.from_numpy(mix)[None].double())[0].numpy()
    assert Deviation.between(stems, exact).relative <= allowed
    # Untrained, but not idle: each stem is a signal of its own.
    assert np.abs(np.corrcoef(stems.reshape(len(stems), -1)) - np.eye(len(stems))).max() < 0.9999


def test_golden_songs_are_those_of_golden_checkpoints() -> None:
    assert set(SONGS) <= set(NAMES)
