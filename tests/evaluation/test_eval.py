"""Evaluation: the metrics against museval and formulas, the folder walk, resuming, the command."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import trained
from assets import SAMPLE_RATE as RATE
from assets import four_stem_excerpt
from bundles import CHANNELS, OFFSET, SAMPLE_RATE, SOURCES, tiny_bundle
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from mrsep_deploy import errors
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.commands import main
from mrsep_deploy.engines import engine_class
from mrsep_deploy.errors import AudioError, EvaluationError, UsageError
from mrsep_deploy.evaluation import metrics
from mrsep_deploy.evaluation.evaluate import Request, evaluate
from mrsep_deploy.evaluation.metrics import BssScore, bss_eval, mdx_sdr
from mrsep_deploy.evaluation.scores import (
    ALL,
    Conditions,
    TrackScores,
    differences,
    read_scores,
    summarise,
    write_scores,
)
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.verification.multitrack import (
    FILE,
    SUM,
    Multitrack,
    TrackFiles,
    find_tracks,
    read_multitrack,
)
from mrsep_deploy.verification.tracks import Track, read_tracks

needs_museval = pytest.mark.skipif(importlib.util.find_spec("museval") is None, reason="pip install museval")

Samples = NDArray[np.float32]


def noise(seed: int, seconds: float = 2.5, level: float = 0.1) -> Samples:
    shape = (CHANNELS, round(seconds * SAMPLE_RATE))
    return np.asarray(level * np.random.default_rng(seed).standard_normal(shape), np.float32)


def stems(seconds: float = 2.5) -> dict[str, Samples]:
    return {source: noise(index, seconds) for index, source in enumerate(SOURCES)}


def write(path: Path, samples: Samples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = "FLOAT" if path.suffix == ".wav" else "PCM_24"
    soundfile.write(path, samples.T, SAMPLE_RATE, subtype=subtype)


def make_track(folder: Path, seconds: float = 2.5, mixture: bool = True) -> Path:
    parts = stems(seconds)
    for source, samples in parts.items():
        write(folder / f"{source}.wav", samples)
    if mixture:
        write(folder / "mixture.wav", sum(parts.values(), np.zeros_like(noise(0, seconds))))
    return folder


# --- metrics -----------------------------------------------------------------------------------------------


def test_mdx_is_the_ratio_of_energies() -> None:
    truth = noise(0)
    assert mdx_sdr(truth + truth / 10, truth) == pytest.approx(20, abs=1e-3)
    assert mdx_sdr(np.zeros_like(truth), truth) == pytest.approx(0, abs=1e-6)
    energy = float(np.square(truth.astype(np.float64)).sum())
    assert mdx_sdr(truth, truth) == pytest.approx(10 * math.log10((energy + 1e-7) / 1e-7))
    assert mdx_sdr(np.zeros_like(truth), np.zeros_like(truth)) == 0
    assert mdx_sdr(truth, np.zeros_like(truth)) == pytest.approx(10 * math.log10(1e-7 / (energy + 1e-7)))


def test_mdx_is_that_of_demucs() -> None:
    torch = pytest.importorskip("torch")
    truth, estimate = noise(0), noise(0) + noise(1, level=0.03)
    signal, error = (torch.from_numpy(x).double().square().sum() for x in (truth, truth - estimate))
    assert mdx_sdr(estimate, truth) == pytest.approx(
        float(10 * torch.log10((signal + 1e-7) / (error + 1e-7))), abs=1e-5
    )


@needs_museval
def test_bss_eval_is_museval_s_median_over_windows_of_a_second() -> None:
    truth = stems(4.5)
    estimates = {
        source: truth[source] + noise(5 + i, 4.5, 0.02 * (1 + i)) for i, source in enumerate(SOURCES)
    }
    estimates["drums"][:, SAMPLE_RATE : 2 * SAMPLE_RATE] += truth["other"][:, SAMPLE_RATE : 2 * SAMPLE_RATE]
    found = bss_eval(estimates, truth, SAMPLE_RATE)
    exact, heard = (
        np.stack([each[source].T for source in SOURCES]).astype(np.float64) for each in (truth, estimates)
    )
    windows = metrics.museval_metrics().bss_eval(exact, heard, window=SAMPLE_RATE, hop=SAMPLE_RATE)[:4]
    assert windows[0].shape == (len(SOURCES), 4)
    for index, source in enumerate(SOURCES):
        score = found[source]
        assert score is not None
        medians = [np.nanmedian(ratio[index]) for ratio in windows]
        assert (score.sdr, score.isr, score.sir, score.sar) == pytest.approx(medians, abs=1e-9)


@needs_museval
def test_sdr_of_bss_eval_is_the_energy_ratio_of_each_window() -> None:
    """Version 4 on stem images distorts nothing: its SDR has a closed form, its median is that of the windows."""
    truth = stems(3)
    estimates = {source: truth[source] + noise(7 + i, 3, 0.03) for i, source in enumerate(SOURCES)}
    found = bss_eval(estimates, truth, SAMPLE_RATE)
    for source in SOURCES:
        pieces = zip(np.split(estimates[source], 3, axis=1), np.split(truth[source], 3, axis=1), strict=True)
        score = found[source]
        assert score is not None
        assert score.sdr == pytest.approx(np.median([mdx_sdr(one, other) for one, other in pieces]), abs=0.02)


@needs_museval
def test_silence_has_no_score() -> None:
    truth = {**stems(), "drums": np.zeros_like(noise(0))}
    estimates = {source: samples + noise(9, level=0.01) for source, samples in stems().items()}
    found = bss_eval(estimates, truth, SAMPLE_RATE)
    assert found["drums"] is None
    assert found["other"] is not None
    assert bss_eval(
        estimates, {s: 0 * samples for s, samples in truth.items()}, SAMPLE_RATE
    ) == dict.fromkeys(SOURCES)


def test_without_museval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    metrics.museval_metrics.cache_clear()
    try:
        request = Request(
            tiny_bundle(tmp_path),
            find_tracks(make_track(tmp_path / "song")),
            ("ort",),
            ("museval",),
            tmp_path,
        )
        with pytest.raises(EvaluationError, match=r"mrsep-deploy\[eval\].*--metric mdx"):
            evaluate(request, lambda *_: None)
        found = evaluate(replace(request, metrics=("mdx",)), lambda *_: None)
        assert found.scores["ort"][0].museval == {}
    finally:
        metrics.museval_metrics.cache_clear()


# --- tracks ------------------------------------------------------------------------------------------------


def test_the_walk(tmp_path: Path) -> None:
    for name in ("train/b", "train/a", "test/c"):
        make_track(tmp_path / name, 0.1)
    (tmp_path / "test" / "notes").mkdir()
    (tmp_path / "test" / "d.stem.mp4").write_bytes(b"x")
    assert [track.name for track in find_tracks(tmp_path)] == ["test/c", "test/d"]
    assert [track.name for track in find_tracks(tmp_path, "train")] == ["train/a", "train/b"]
    assert [track.name for track in find_tracks(tmp_path, "all")] == [
        "train/a",
        "train/b",
        "test/c",
        "test/d",
    ]
    assert [track.name for track in find_tracks(tmp_path / "train")] == ["a", "b"]
    assert [track.name for track in find_tracks(tmp_path / "train" / "a")] == ["a"]
    assert [track.name for track in find_tracks(tmp_path / "test" / "d.stem.mp4")] == ["d"]


def test_no_tracks(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_track(tmp_path / "twice" / "a", 0.1)
    (tmp_path / "twice" / "a.stem.mp4").write_bytes(b"x")
    for folder, complaint in (
        ("absent", "does not exist"),
        ("empty", "holds no track"),
        ("twice", "one name"),
    ):
        with pytest.raises(UsageError, match=complaint):
            find_tracks(tmp_path / folder)
    with pytest.raises(UsageError, match="no folder test"):
        find_tracks(tmp_path / "empty", "test")


def test_a_missing_mixture_is_the_sum(tmp_path: Path) -> None:
    model = tiny_bundle(tmp_path).manifest.model
    with_mix, without = make_track(tmp_path / "a"), make_track(tmp_path / "b", mixture=False)
    write(without / "vocals.flac", noise(3))
    found = read_multitrack(TrackFiles("a", with_mix), model, every_source=True)
    assert found.mixture == FILE
    assert list(found.truth) == list(SOURCES)
    np.testing.assert_allclose(found.mix, sum(stems().values()), atol=1e-6)
    found = read_multitrack(TrackFiles("b", without), model, every_source=True)
    assert found.mixture == SUM
    np.testing.assert_allclose(found.mix, sum(stems().values()) + noise(3), atol=1e-6)  # flac has 24 bits
    assert list(found.truth) == list(SOURCES)


def test_broken_tracks(tmp_path: Path) -> None:
    model = tiny_bundle(tmp_path).manifest.model
    short = make_track(tmp_path / "short")
    write(short / "other.wav", noise(1, 1))
    lacking = make_track(tmp_path / "lacking")
    (lacking / "other.wav").unlink()
    alone = make_track(tmp_path / "alone", mixture=False)
    (alone / "other.wav").unlink()
    for folder, complaint in ((short, "different lengths"), (lacking, "no other.wav")):
        with pytest.raises(AudioError, match=complaint):
            read_multitrack(TrackFiles("x", folder), model, every_source=True)
    with pytest.raises(AudioError, match="only one stem"):
        read_multitrack(TrackFiles("x", alone), replace(model, sources=("drums",)), every_source=True)


def write_stem_file(path: Path, streams: int) -> Path:
    """A file of so many audio streams, all of them noise."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4") as container:
        encoders = [container.add_stream("alac", rate=SAMPLE_RATE, layout="stereo") for _ in range(streams)]
        for number, encoder in enumerate(encoders):
            samples = np.round(noise(number, 0.5) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout="stereo")
            frame.sample_rate = SAMPLE_RATE
            container.mux(encoder.encode(frame))
            container.mux(encoder.encode(None))
    return path


@pytest.mark.parametrize("streams", [2, 5])
def test_verify_and_eval_read_a_stem_file_alike(tmp_path: Path, streams: int) -> None:
    """With another number of streams it is an error in both, in one line; never silently a song."""
    manifest = tiny_bundle(tmp_path).manifest
    path = write_stem_file(tmp_path / "song.stem.mp4", streams)
    readers: tuple[Callable[[], Multitrack | Track], ...] = (
        lambda: read_multitrack(TrackFiles("song", path), manifest.model, every_source=True),
        lambda: read_tracks([path], manifest)[0],
    )
    for read in readers:
        if streams == 5:
            assert set(read().truth) == set(SOURCES)
        else:
            with pytest.raises(
                AudioError, match=r"song\.stem\.mp4 has 2 audio streams, expected 5: mixture, "
            ) as caught:
                read()
            assert "\n" not in str(caught.value)


def test_remarks_are_said_as_run_says_them(tmp_path: Path) -> None:
    """Songs that are heard otherwise than they are: by eval and verify, with their files, on stderr."""
    tiny_bundle(tmp_path)
    song = make_track(tmp_path / "songs" / "a")
    wide = np.zeros((6, noise(0).shape[1]), np.float32) + noise(0)[:1]
    write(song / "drums.wav", wide)
    remark = f"mrsep-deploy: {song / 'drums.wav'} has 6 channels"
    for given in (
        ("eval", str(tmp_path / "songs"), "-n", str(tmp_path / "tiny"), "--engine", "ort", "--metric", "mdx",
         "-o", str(tmp_path / "out")),
        ("verify", str(tmp_path / "tiny"), "--against", str(tmp_path / "tiny"), "--audio", str(song / "drums.wav")),
    ):  # fmt: skip
        found = CliRunner().invoke(main.main, given, prog_name=main.PROGRAM)
        assert remark in found.stderr, found.output
        assert found.stderr.count(remark) == 1


def test_the_digest_is_that_of_what_is_read(tmp_path: Path) -> None:
    model = tiny_bundle(tmp_path).manifest.model
    track = TrackFiles("a", make_track(tmp_path / "a"))
    before = track.digest(model)
    write(track.path / "vocals.wav", noise(3))
    assert track.digest(model) == before, "with a mixture, no other stem is read"
    write(track.path / "drums.wav", noise(4))
    assert track.digest(model) != before


# --- runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    for name in ("a", "b"):
        make_track(tmp_path / "songs" / name)
    bundle = tiny_bundle(tmp_path)
    return Request(bundle, find_tracks(tmp_path / "songs"), ("ort",), ("mdx",), tmp_path / "out")


def test_scores_are_those_of_the_stems(request_: Request) -> None:
    found = evaluate(request_, lambda *_: None)
    track = read_multitrack(request_.tracks[0], request_.bundle.manifest.model, every_source=True)
    with Separator(request_.bundle, engine="ort") as separator:
        separated = separator.separate(track.mix)
    expected = {source: mdx_sdr(separated[source], track.truth[source]) for source in SOURCES}
    assert found.scores["ort"][0].mdx == pytest.approx(expected)
    assert [scores.track for scores in found.scores["ort"]] == ["a", "b"]
    assert found.scores["ort"][0].seconds == 2.5
    assert OFFSET != 0, "the tiny model adds something, so that no score is infinite"


def test_a_run_goes_on_where_it_stopped(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(replace(request_, tracks=request_.tracks[:1]), lambda *_: None)
    assert first.kept == 0
    separated: list[int] = []
    separate = Separator.separate
    monkeypatch.setattr(Separator, "separate", lambda self, mix: separated.append(1) or separate(self, mix))

    def again(request: Request) -> tuple[int, int]:
        separated.clear()
        return evaluate(request, lambda *_: None).kept, len(separated)

    assert again(request_) == (1, 1)
    assert again(request_) == (2, 0)
    write(request_.tracks[1].path / "drums.wav", noise(8))
    assert again(request_) == (1, 1), "a file changed"
    assert again(replace(request_, overlap=0.5)) == (0, 2)
    assert again(replace(request_, overlap=0.5)) == (2, 0)
    other = tiny_bundle(request_.out.parent, "other", opset=18)
    assert again(replace(request_, overlap=0.5, bundle=other)) == (0, 2)
    place = request_.out / "tracks" / "a" / "ort.json"
    place.write_text(place.read_text()[:-20])
    assert again(replace(request_, overlap=0.5, bundle=other)) == (1, 1), "a file was cut"


@needs_museval
def test_a_further_metric_is_worked_out(request_: Request) -> None:
    evaluate(request_, lambda *_: None)
    found = evaluate(replace(request_, metrics=("museval", "mdx")), lambda *_: None)
    assert found.kept == 0
    assert set(found.scores["ort"][0].museval) == set(SOURCES)
    assert evaluate(request_, lambda *_: None).kept == 2, "what has more metrics will do"


def test_a_broken_track_does_not_cost_the_others(request_: Request) -> None:
    (request_.tracks[0].path / "drums.wav").write_bytes(b"no audio")
    found = evaluate(request_, lambda *_: None)
    assert [scores.track for scores in found.scores["ort"]] == ["b"]
    assert "drums.wav" in found.failed["a"]
    (request_.tracks[1].path / "drums.wav").write_bytes(b"no audio")
    with pytest.raises(EvaluationError, match="none of the tracks"):
        evaluate(request_, lambda *_: None)


def test_engines_that_cannot_be(request_: Request) -> None:
    with pytest.raises(UsageError, match="named twice"):
        evaluate(replace(request_, engines=("ort", "ort")), lambda *_: None)
    with pytest.raises(UsageError, match="no engine"):
        evaluate(replace(request_, engines=("tea",)), lambda *_: None)


def test_kept_scores_survive_infinity(tmp_path: Path) -> None:
    conditions = Conditions("m", "ort", "1", 0.25, "a")
    scores = TrackScores(
        "a", 1.0, SUM, 0.5, {"drums": BssScore(math.inf, 1.0, 2.0, 3.0), "other": None}, {"drums": 1.5}
    )
    write_scores(tmp_path / "x.json", conditions, scores)
    assert read_scores(tmp_path / "x.json", conditions, ("museval", "mdx")) == scores
    assert read_scores(tmp_path / "x.json", replace(conditions, version="2"), ("mdx",)) is None
    assert read_scores(tmp_path / "absent.json", conditions, ()) is None


# --- summaries ---------------------------------------------------------------------------------------------


def track_of(name: str, drums: float, other: float | None) -> TrackScores:
    museval = {
        "drums": BssScore(drums, 0, 0, 0),
        "other": None if other is None else BssScore(other, 0, 0, 0),
    }
    return TrackScores(name, 1.0, FILE, 1.0, museval, {"drums": drums, "other": other or 0.0})


def test_median_for_museval_and_mean_for_mdx() -> None:
    tracks = [track_of("a", 1.0, 2.0), track_of("b", 2.0, None), track_of("c", 9.0, 6.0)]
    assert summarise(tracks, "museval") == {"drums": 2.0, "other": 4.0, ALL: 3.0}
    assert summarise(tracks, "mdx") == pytest.approx({"drums": 4.0, "other": 8 / 3, ALL: 10 / 3})


def test_engines_side_by_side() -> None:
    scores = {
        "torch": [track_of("a", 1.0, 2.0), track_of("b", 2.0, None)],
        "ort": [track_of("a", 1.25, 2.0), track_of("b", 1.5, None)],
    }
    apart = differences(scores, "museval")["ort"]
    assert (apart.largest, apart.largest_track, apart.largest_source) == (-0.5, "b", "drums")
    assert apart.summary == {"drums": -0.125, "other": 0.0, ALL: -0.0625}


# --- the command -------------------------------------------------------------------------------------------


def run(*given: str | Path) -> Result:
    return CliRunner().invoke(main.main, ["eval", *map(str, given)], prog_name=main.PROGRAM)


def test_the_command(request_: Request, tmp_path: Path) -> None:
    songs, out = tmp_path / "songs", tmp_path / "out"
    given = (songs, "-n", request_.bundle.path, "-o", out, "--engine", "ort,openvino", "--metric", "mdx")
    pytest.importorskip("openvino")
    result = run(*given)
    assert result.exit_code == errors.DONE, result.output
    assert "openvino − ort" in result.output
    found = json.loads((out / "results.json").read_text())
    assert found["engines"].keys() == found["summary"]["mdx"].keys() == {"ort", "openvino"}
    assert abs(found["differences"]["mdx"]["openvino"]["largest"]) < 0.01
    assert [track["track"] for track in found["tracks"]["ort"]] == ["a", "b"]
    page = (out / "results.md").read_text()
    assert "| track | engine | drums | other | all |" in page
    assert "untrained" in page
    assert json.loads(run(*given, "--json").stdout)["summary"] == found["summary"]


def test_one_of_two_fails(request_: Request, tmp_path: Path) -> None:
    (request_.tracks[0].path / "drums.wav").write_bytes(b"no audio")
    given = (
        tmp_path / "songs",
        "-n",
        request_.bundle.path,
        "-o",
        tmp_path / "out",
        "--metric",
        "mdx",
        "--engine",
        "ort",
    )
    result = run(*given)
    assert result.exit_code == errors.PARTIAL
    assert "drums.wav" in result.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["failed"].keys() == {"a"}


@pytest.mark.parametrize("given", [("absent",), (".", "--engine", "tea"), (".", "--subset", "test"), ()])
def test_wrong_usage(given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*given)
    assert result.exit_code == errors.USAGE
    assert "rror: " in result.stderr


# --- trained weights ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.network
@needs_museval
def test_the_excerpt_scores_what_demucs_and_museval_say(tmp_path: Path) -> None:
    """From the coded file, on every engine: within 0.01 dB of the published demucs, source by source."""
    pytest.importorskip("demucs", reason="the published reference; pip install demucs==4.1.0")
    exact, heard = trained.excerpt_stems(), trained.excerpt_reference()
    sources = list(exact)
    windows = metrics.museval_metrics().bss_eval(
        *(np.stack([each[source].T for source in sources]).astype(np.float64) for each in (exact, heard)),
        window=RATE,
        hop=RATE,
    )
    bss = {source: float(np.nanmedian(windows[0][index])) for index, source in enumerate(sources)}
    mdx = {source: mdx_sdr(heard[source], exact[source]) for source in sources}
    engines = tuple(name for name in ("torch", "ort", "openvino") if engine_class(name).availability().works)
    bundle = Bundle.open(trained.trained_bundle("split"))
    found = evaluate(
        Request(bundle, find_tracks(four_stem_excerpt()), engines, ("museval", "mdx"), tmp_path),
        lambda *_: None,
    )
    for engine in engines:
        (scores,) = found.scores[engine]
        assert scores.mixture == SUM
        assert scores.sdr("museval") == pytest.approx(bss, abs=0.01)
        assert scores.sdr("mdx") == pytest.approx(mdx, abs=0.01)
