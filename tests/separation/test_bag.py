"""Several models as one: the weighted mean of what each makes of the song, source by source."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from bundles import CHANNELS, SAMPLE_RATE, SOURCES, changed_bundle, tiny_manifest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper

from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.bundle import Bundle, registry
from mrsep_deploy.commands.main import main
from mrsep_deploy.errors import DONE, USAGE, UsageError
from mrsep_deploy.separation.bag import BagSeparator, open_bag
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.stream import Song, draw_leads

Float32 = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def offset_bundle(place: Path, offset: float) -> Bundle:
    """The tiny model with another number added: its stems differ."""

    def change(graph: onnx.GraphProto) -> None:
        graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([offset], np.float32), "offset"))

    return changed_bundle(place, replace(tiny_manifest(), name=place.name), change)


@pytest.fixture
def models(tmp_path: Path) -> list[Bundle]:
    made = [offset_bundle(tmp_path / name, offset) for name, offset in (("a", 0.25), ("b", -1.5), ("c", 3.0))]
    registry.register(made[1], "b-by-name")
    return made


def mix(length: int = 1000) -> Float32:
    return np.random.default_rng(0).standard_normal((CHANNELS, length), np.float32)


def separated(bag: BagSeparator, song: Float32) -> Float32:
    stems = []
    for each in bag.separate_songs(
        [None, Song(SongStatistics.measure([song]), [song[:, :300], song[:, 300:]]), None]
    ):
        assert each.error is None
        if each.stems is not None:
            stems.append(each.stems)
    return np.concatenate(stems, axis=-1)


def bag_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


WEIGHTS = "models = ['a', 'b-by-name', 'c']\nweights = [[1, 0], [0.5, 2], [1, 2]]\n"


@pytest.mark.parametrize("shifts", [0, 2])
@pytest.mark.parametrize("overlap", [0.25, 0.6])
def test_the_weighted_mean_of_its_models(
    tmp_path: Path, models: list[Bundle], shifts: int, overlap: float
) -> None:
    """Each model with shifts of its own, drawn one model after the other as demucs does."""
    song, source, alone = mix(), random.Random(5), []
    for bundle in models:
        with Separator(bundle, engine="ort", threads=1, overlap=overlap, shifts=shifts) as separator:
            separator.leads = draw_leads(shifts, SAMPLE_RATE, source)
            alone.append(np.stack(list(separator.separate(song).values())))
    weights = np.array([[1, 0], [0.5, 2], [1, 2]])
    expected = np.einsum("ms,mscn->scn", weights / weights.sum(axis=0), np.stack(alone).astype(np.float64))
    bag = open_bag(bag_file(tmp_path / "bag.toml", WEIGHTS))
    options = {"engine": "ort", "threads": 1, "overlap": overlap}
    with BagSeparator(bag, {0, 1}, shifts=shifts, seed=5, **options) as separator:
        found = separated(separator, song)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - alone[0]).max() > 0.1


def test_all_count_the_same_without_weights(tmp_path: Path, models: list[Bundle]) -> None:
    bag = open_bag(bag_file(tmp_path / "bag.toml", "models = ['a', 'c']"))
    assert bag.weights == ((1.0, 1.0), (1.0, 1.0))
    assert bag.sources == SOURCES


def test_models_that_do_not_count_are_left_out(tmp_path: Path, models: list[Bundle]) -> None:
    """``htdemucs_ft`` for the vocals alone is one model, not four."""
    bag = open_bag(bag_file(tmp_path / "bag.toml", WEIGHTS))
    with (
        BagSeparator(bag, {1}, engine="ort", threads=1) as one,
        BagSeparator(bag, {0, 1}, engine="ort", threads=1) as both,
    ):
        assert (len(one.separators), len(both.separators)) == (2, 3)
        np.testing.assert_array_equal(separated(one, mix())[1], separated(both, mix())[1])


@pytest.mark.parametrize("name", ["my bag.toml", "my bag.yaml"])
def test_on_the_command_line(tmp_path: Path, models: list[Bundle], name: str) -> None:
    """Demucs' own YAML has the same keys."""
    text = (
        WEIGHTS
        if name.endswith("toml")
        else "models: [a, b-by-name, c]\nweights: [[1, 0], [0.5, 2], [1, 2]]\n"
    )
    bag_file(tmp_path / name, text)
    soundfile.write("s.wav", mix(3000).T, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write("t.wav", mix(50).T, SAMPLE_RATE, subtype="FLOAT")
    arguments = ["run", "s.wav", "t.wav", "-n", name, "--engine", "ort", "--float32", "--clip-mode", "none"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == DONE, done.output
    with BagSeparator(open_bag(tmp_path / name), {0, 1}, engine="ort") as separator:
        for track in ("s", "t"):
            expected = separated(separator, AudioSource(f"{track}.wav", SAMPLE_RATE, CHANNELS).read())
            for index, source in enumerate(SOURCES):
                found = soundfile.read(f"separated/my bag/{track}/{source}.wav", dtype="float32")[0].T
                np.testing.assert_allclose(found, expected[index], atol=1e-5 * np.abs(expected).max())
    again = CliRunner().invoke(main, [*arguments, "--resume"])
    assert "2 skipped" in again.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = []", "models has 0 entries, expected 1 to 64"),
        ("weights = [[1, 1]]", "bag has no field 'models'"),
        ("models = ['a']\nload = 1", "has an unknown field 'load', expected models, weights, segment"),
        ("models = [1]", r"models\[0\] is 1, expected a name, in quotes"),
        ("models = ['a', 'nowhere']", "the model nowhere, which is not exported"),
        ("models = ['a', 'c']\nweights = [[1, 1]]", "has 1 rows, expected one row for each of the 2 models"),
        ("models = ['a', 'c']\nweights = [[1, 1, 1], [1, 1, 1]]", "are not 2 rows of 2 numbers"),
        ("models = ['a', 'c']\nweights = [[1, 1], [1]]", "has rows of 2, 1 numbers"),
        (
            "models = ['a', 'c']\nweights = [[1, nan], [1, 1]]",
            r"weights\[0\]\[1\] is nan, expected a finite number",
        ),
        (
            "models = ['a', 'c']\nweights = [[1, inf], [1, 1]]",
            r"weights\[0\]\[1\] is inf, expected a finite number",
        ),
        ("models = ['a', 'c']\nweights = [[1, 0], [1, 0]]", "weights of source 1 add up to 0"),
        ("models = ['a']\nsegment = 'long'", "segment is 'long', expected a number of seconds above 0"),
        ("models = ['a'", "cannot be read"),
        ("models = ['a', 'six']", "differ in sources"),
    ],
)
def test_what_is_no_bag(tmp_path: Path, models: list[Bundle], text: str, message: str) -> None:
    other = tiny_manifest()
    model = replace(other.model, sources=("drums", "rest"))
    changed_bundle(tmp_path / "six", replace(other, name="six", model=model, fusion=()), lambda graph: None)
    with pytest.raises(UsageError, match=message):
        open_bag(bag_file(tmp_path / "bag.toml", text))


def test_a_bag_there_is_not(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["run", "s.wav", "-n", "none.toml"])
    assert done.exit_code == USAGE
    assert "none.toml cannot be read" in done.output
