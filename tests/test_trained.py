"""Trained weights on real music: what comes out is what the published demucs makes of it.

The whole song takes minutes: MRSEP_DEPLOY_FULL=1 runs it, otherwise its first minute has to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import trained
from assets import CHANNELS, SAMPLE_RATE, STEMS, read_excerpt, songs, trained_htdemucs
from numpy.typing import NDArray
from parity_trained import REQUIRED_SNR, StemParity, parity, sdr, separate_published

from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.export.checkpoint.read import read_checkpoint
from mrsep_deploy.export.families import known_classes
from mrsep_deploy.separation.separator import Separator

pytest.importorskip("demucs", reason="the published reference; pip install demucs==4.1.0")

pytestmark = [pytest.mark.weights, pytest.mark.network, pytest.mark.slow]

PUBLISHED_SDR = {"drums": 10.4, "bass": 3.4, "other": 0.7, "vocals": 5.4}
"""Of these weights on the excerpt, in dB, without shifts."""

FULL = bool(os.environ.get("MRSEP_DEPLOY_FULL"))
LAYOUTS: tuple[Layout, ...] = ("split", "whole")


@pytest.fixture(scope="session", params=LAYOUTS)
def excerpt(request: pytest.FixtureRequest) -> dict[str, NDArray[np.float32]]:
    """The excerpt's stems as this package separates them."""
    with Separator(trained.trained_bundle(request.param), engine="ort") as separator:
        return separator.separate(trained.excerpt_mix())


def test_the_package_is_the_published_one() -> None:
    checkpoint = read_checkpoint(trained_htdemucs(), known_classes())
    assert checkpoint.klass == "demucs.htdemucs.HTDemucs"
    assert len(checkpoint.state) == 533
    assert sum(value.numel() for value in checkpoint.state.values()) == 41_984_456


def test_excerpt_is_what_demucs_makes_of_it(
    excerpt: Mapping[str, NDArray[np.float32]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = parity(excerpt, trained.excerpt_reference())
    show("excerpt", found, capsys)
    require(found)


def test_excerpt_separates_as_well_as_published(
    excerpt: Mapping[str, NDArray[np.float32]], capsys: pytest.CaptureFixture[str]
) -> None:
    truth, reference = trained.excerpt_stems(), trained.excerpt_reference()
    ours = {name: sdr(excerpt[name], truth[name]) for name in STEMS}
    with capsys.disabled():
        print(f"\nexcerpt: SDR {', '.join(f'{name} {value:.2f} dB' for name, value in ours.items())}")
    assert ours == pytest.approx({name: sdr(reference[name], truth[name]) for name in STEMS}, abs=0.01)
    assert ours == pytest.approx(PUBLISHED_SDR, abs=0.1)


def test_excerpt_has_four_stems_of_one_length() -> None:
    assert {stem.shape for stem in read_excerpt().values()} == {(CHANNELS, trained.excerpt_mix().shape[1])}


@pytest.mark.skipif(sys.platform != "linux", reason="the songs come from Debian packages")
@pytest.mark.timeout(7200 if FULL else 1800)
def test_song_is_what_demucs_makes_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file, streamed, as the command line does it; the end of the file is a real end."""
    song = next(song for song in songs() if song.vocals) if FULL else songs()[0]
    path = tmp_path / "song.wav"
    soundfile.write(path, song.read(None if FULL else 60).T, SAMPLE_RATE, subtype="FLOAT")
    source = AudioSource(path, SAMPLE_RATE, CHANNELS)
    with Separator(trained.trained_bundle("split"), engine="ort") as separator:
        stems = np.concatenate(list(separator.separate_blocks(source.blocks)), axis=-1)
    found = parity(dict(zip(STEMS, stems, strict=True)), separate_published(source.read()))
    show(song.name, found, capsys)
    require(found)


def show(what: str, found: Mapping[str, StemParity], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(*(f"\n{what}: {name:6} {stem}" for name, stem in found.items()), sep="")


def require(found: Mapping[str, StemParity]) -> None:
    short = {name: str(stem) for name, stem in found.items() if not stem.passes}
    assert not short, f"below {REQUIRED_SNR} dB: {short}"


def test_stems_add_up_to_the_mix_as_far_as_published(excerpt: Mapping[str, NDArray[np.float32]]) -> None:
    """What is missing from the sum of the stems is the model's own error, and no more."""
    mix = trained.excerpt_mix().astype(np.float64)
    reference = trained.excerpt_reference()
    ours = np.sum([excerpt[name].astype(np.float64) for name in STEMS], axis=0) - mix
    theirs = np.sum([reference[name] for name in STEMS], axis=0) - mix
    missing = 10 * np.log10(np.square(theirs).mean() / np.square(mix).mean())
    assert missing < -15
    assert np.sqrt(np.square(ours - theirs).mean()) < 1e-5 * np.sqrt(np.square(mix).mean())
