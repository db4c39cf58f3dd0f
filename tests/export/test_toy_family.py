"""A family that no other part of the program has heard of: one file, and everything works with it.

Its transform has a hop that does not divide its window, the Nyquist bin and no normalisation; its songs are
faded linearly and reflected at their edges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import STEMS, Application, Branch, Transform
from mrsep_deploy.commands.main import main
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.export.exporter import export_model
from mrsep_deploy.export.families import FAMILIES
from mrsep_deploy.export.families.family import Audio, Family, StageSource
from mrsep_deploy.export.families.staged import analysis, graph, synthesis, total
from mrsep_deploy.export.load import untrained_model
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.verification.reference import TorchReference
from mrsep_deploy.verification.tracks import builtin_tracks, count_batches
from mrsep_deploy.verification.verify import verify

N_FFT, HOP, SAMPLES, SOURCES = 2048, 441, 22050, ("drums", "vocals")


@dataclass(frozen=True)
class Config:
    sources: tuple[str, ...] = SOURCES
    width: int = 8


class Masks(nn.Module):
    """Spectrogram ``[B, 4, F, T]`` -> estimates ``[B, 8, F, T]``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, config.width, (3, 3), padding=1)
        self.outer = nn.Conv2d(config.width, 4 * len(config.sources), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.outer(torch.tanh(self.inner(x))),)


class Toy(Family):
    name: ClassVar[str] = "toy"
    variants: ClassVar[tuple[str, ...]] = ("toy", "toy_wide")
    classes: ClassVar[dict[str, str]] = {"toys.Toy": "toy"}
    rewrites: ClassVar[dict[str, str]] = {"nothing": "nothing at all"}

    def config(
        self, variant: str, args: Sequence[object], kwargs: Mapping[str, Any]
    ) -> tuple[Config, list[str]]:
        given = {"width": 16 if variant == "toy_wide" else 8, **kwargs, "sources": SOURCES}
        return Config(**given), []

    def model(self, config: Config) -> nn.Module:
        return Masks(config).eval()

    def audio(self, config: Config) -> Audio:
        application = Application("none", "linear", fade=2205, overlap=0.5, edges="reflected", last="filled")
        return Audio(config.sources, 44100, 2, SAMPLES, application)

    def branches(self, model: nn.Module) -> tuple[Branch, ...]:
        half = N_FFT // 2
        transform = Transform(
            N_FFT, HOP, SAMPLES // HOP + 1, half + 1, half, half, scale="none", envelope="frames"
        )
        return (Branch("2048", (1.0, 0.5), transform, normalise=False),)

    def stages(self, model: nn.Module, branches: Sequence[Branch]) -> list[StageSource]:
        masks = graph("masks", "2048", ["spectrogram_2048"], ["estimate_2048"], model)
        return [*analysis(branches), masks, *synthesis(branches, SAMPLES), total(branches)]


@contextlib.contextmanager
def registered() -> Iterator[None]:
    FAMILIES["toy"] = Toy()
    try:
        yield
    finally:
        del FAMILIES["toy"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with registered():
        yield export_model(untrained_model("toy", 3), "toy", tmp_path_factory.mktemp("toy") / "toy")


def test_it_is_listed() -> None:
    assert "toy_wide" not in CliRunner().invoke(main, ["export", "--help"]).output
    with registered():
        shown = CliRunner().invoke(main, ["export", "--help"]).output
        assert "toy_wide" in shown
        assert "nothing" in shown
        counted = CliRunner().invoke(main, ["complexity", "--family", "toy_wide", "--json"])
        assert (counted.exit_code, '"name": "toy_wide"' in counted.output) == (0, True), counted.output


@pytest.mark.parametrize("engine", ["ort", "openvino", "torch"])
def test_segments_and_songs_are_torchs(bundle: Bundle, engine: str) -> None:
    """Songs shorter and longer than a segment; the seams are where the fades are, the song's length comes back."""
    random = np.random.RandomState(0)
    staged = untrained_model("toy", 3).staged().double()
    with Separator(bundle, engine=engine, threads=2) as separator:
        assert (separator.overlap, separator.stride) == (0.5, SAMPLES // 2)
        mix = random.standard_normal((1, 2, SAMPLES)).astype(np.float32) / 8
        exact = staged.tensors(torch.from_numpy(mix).double())[STEMS].numpy()
        assert np.linalg.norm(separator.run_segments(mix) - exact) < 1e-5 * np.linalg.norm(exact)
        for length in (1, SAMPLES // 3, SAMPLES, 3 * SAMPLES + 77):
            song = random.standard_normal((2, length)).astype(np.float32) / 8
            stems = separator.separate(song)
            assert {name: stem.shape for name, stem in stems.items()} == dict.fromkeys(SOURCES, (2, length))
            assert all(np.isfinite(stem).all() for stem in stems.values())


def test_it_verifies_in_float32_and_float16(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    tracks = builtin_tracks(manifest)[:2]
    assert [count_batches(track, manifest) for track in tracks] == [1, 1]  # by the model's own overlap
    plan = default_plan("float16", ())
    for candidate in (bundle, convert_bundle(bundle, plan, tmp_path / "half")):
        engine = choose("ort", EngineOptions(2)).engine
        found = verify(candidate, engine, TorchReference(manifest), tracks)
        engine.device.close()
        assert found.passes, found
