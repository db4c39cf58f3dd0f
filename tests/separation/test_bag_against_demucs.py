"""Demucs' own bag of two models, with a weight for every source, gives the same files here: both command lines run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from mrsep_deploy.commands.main import main
from mrsep_deploy.measuring.deviation import Deviation

pytest.importorskip("demucs", reason="the published reference; pip install demucs==4.1.0")

RATE = 8000
SOURCES = ["drums", "bass", "other", "vocals"]
SIGNATURES = ("aaaa1111", "bbbb2222")
BAG = f"models: {list(SIGNATURES)}\nweights: [[1.0, 0.25, 0.0, 2.0], [0.5, 1.0, 1.0, 0.0]]\n"
SMALL = {
    "channels": 4,
    "dconv_comp": 2,
    "nfft": 512,
    "depth": 3,
    "t_layers": 0,
    "samplerate": RATE,
    "segment": 0.5,
}
REQUIRED_SNR = 95.0
"""dB, of float32 against float32, as for a single model (``test_demucs_options``)."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packages of the published class with random weights, the bag, and a song."""
    from demucs.htdemucs import HTDemucs

    folder = tmp_path_factory.mktemp("repo")
    for seed, signature in enumerate(SIGNATURES):
        torch.manual_seed(seed)
        kwargs = {"sources": SOURCES, **SMALL}
        package = {"klass": HTDemucs, "args": (), "kwargs": kwargs, "state": HTDemucs(**kwargs).state_dict()}
        torch.save({**package, "training_args": {}}, folder / f"{signature}.th")
    (folder / "mybag.yaml").write_text(BAG)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (int(2.3 * RATE), 2))
    soundfile.write(folder / "song.wav", noise, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def exported(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A home in which the models have been exported under their signatures."""
    home = str(tmp_path_factory.mktemp("home"))
    for signature in SIGNATURES:
        arguments = ["export", str(repo / f"{signature}.th"), "--name", signature]
        done = CliRunner().invoke(main, arguments, env={"MRSEP_DEPLOY_HOME": home})
        assert done.exit_code == 0, done.output
    return home


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--shifts", "0"], ["--shifts", "2", "--overlap", "0.5"]])
@pytest.mark.parametrize("stems", [[], ["--two-stems", "vocals"]], ids=["four", "two"])
def test_a_bag_is_demucs_bag(
    tmp_path: Path, repo: Path, exported: str, options: list[str], stems: list[str]
) -> None:
    from demucs import separate

    same = [*options, *stems, "--float32", "--clip-mode", "none"]
    # The models draw from the same source between two shifts, for an embedding that is shifted by 0 places.
    with mock.patch("demucs.apply.random", random.Random(7)):
        separate.main(
            [
                "--repo",
                str(repo),
                "-n",
                "mybag",
                "-o",
                str(tmp_path / "theirs"),
                *same,
                str(repo / "song.wav"),
            ]
        )
    ours = [
        "run",
        str(repo / "song.wav"),
        "-n",
        str(repo / "mybag.yaml"),
        "-o",
        str(tmp_path / "ours"),
        *same,
    ]
    done = CliRunner().invoke(
        main, [*ours, "--seed", "7", "--threads", "1"], env={"MRSEP_DEPLOY_HOME": exported}
    )
    assert done.exit_code == 0, done.output
    files = sorted(path.relative_to(tmp_path / "theirs") for path in (tmp_path / "theirs").rglob("*.wav"))
    assert files == sorted(path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*.wav"))
    assert len(files) == (2 if stems else 4)
    for name in files:
        expected, found = (soundfile.read(tmp_path / who / name)[0] for who in ("theirs", "ours"))
        assert Deviation.between(found, expected).snr >= REQUIRED_SNR, name
