"""Songs through a bundle: what goes in wrong is refused, and nothing but the song decides what comes out."""

from __future__ import annotations

import functools
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from bundles import CHANNELS, HOP, SAMPLES, SOURCES, tiny_bundle, tiny_files, tiny_manifest
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle, registry, write_bundle
from mrsep_deploy.bundle.manifest import Stage
from mrsep_deploy.devices.cpu import CpuDevice
from mrsep_deploy.devices.interface import Device
from mrsep_deploy.engines.contract import EngineOptions
from mrsep_deploy.errors import BundleError, EngineError, UsageError
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.stream import Song, stems_of
from mrsep_deploy.testing import Arrays, FakeEngine, identity

Float32 = NDArray[np.float32]


def song(length: int = 1000, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((CHANNELS, length), np.float32)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


def waveform_bundle(folder: Path) -> Bundle:
    """The tiny model without its spectrogram branch: with identity stages, every source is the mix."""
    manifest = tiny_manifest("waveform")
    stages = tuple(s for s in manifest.stages if s.branch == "time")
    fusion = replace(manifest.stages[-1], inputs=("signal_time",))
    used = {name for s in (*stages, fusion) for name in (*s.inputs, *s.outputs)}
    manifest = replace(
        manifest,
        branches=tuple(b for b in manifest.branches if b.is_waveform),
        stages=(*stages, fusion),
        tensors=tuple(t for t in manifest.tensors if t.name in used),
        files={"branch.time.onnx": manifest.files["branch.time.onnx"]},
        fusion=(),
    )
    return write_bundle(folder / "waveform", manifest, tiny_files(manifest), overwrite=True)


# --- songs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("length", [2, 63, 64, 65, 1000])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_a_model_that_repeats_the_mix_gives_the_song(
    tmp_path: Path, length: int, overlap: float, offset: float
) -> None:
    mix = song(length) + np.float32(offset)
    with Separator(waveform_bundle(tmp_path), engine=FakeEngine(), overlap=overlap) as separator:
        stems = separator.separate(mix)
    assert list(stems) == list(SOURCES)
    for stem in stems.values():
        assert stem.shape == mix.shape
        assert stem.dtype == np.float32
        # The published 1e-5 beside a segment's deviation leaves out as much of it, and more of the last
        # segment, whose deviation zeros and a short rest make smaller.
        np.testing.assert_allclose(stem, mix, atol=1e-4 * np.abs(mix).max())


def test_one_sample(bundle: Bundle) -> None:
    with Separator(bundle, engine=FakeEngine()) as separator:
        stems = separator.separate(np.array([[0.25], [0.75]], np.float32))
    for stem in stems.values():
        assert stem.shape == (CHANNELS, 1)
        assert np.isfinite(stem).all()


def test_silence_stays_silence(bundle: Bundle) -> None:
    with Separator(bundle, engine="ort", threads=1) as separator:
        stems = separator.separate(np.zeros((CHANNELS, 500), np.float32))
    assert all(not stem.any() for stem in stems.values())


def test_batches_change_nothing(tmp_path: Path) -> None:
    """Three at a time or one by one: seven segments, so that the last batch is not full."""
    bundle = tiny_bundle(tmp_path)
    found = []
    for opened, batch in ((bundle, None), (bundle.at_batch(3), None), (bundle, 3)):
        with Separator(opened, engine="ort", threads=1, batch=batch) as separator:
            assert separator.manifest.batch == (batch or opened.manifest.batch)
            found.append(separator.separate(song(6 * 48 + 20)))
    for name in SOURCES:
        np.testing.assert_array_equal(found[0][name], found[1][name])
        np.testing.assert_array_equal(found[0][name], found[2][name])


def test_modes_change_nothing(bundle: Bundle) -> None:
    found = []
    for mode in ("sequential", "concurrent"):
        with Separator(bundle, engine="ort", threads=2, mode=mode) as separator:  # type: ignore[arg-type]
            found.append(separator.separate(song()))
    for name in SOURCES:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_a_song_does_not_depend_on_the_one_before(bundle: Bundle) -> None:
    with Separator(bundle, engine="ort", threads=1) as separator:
        first = separator.separate(song())
        separator.separate(100 * song(333, seed=1))
        again = separator.separate(song())
    for name in SOURCES:
        np.testing.assert_array_equal(first[name], again[name])


@pytest.mark.parametrize("gain", [2.0, 2.0**-10])
def test_louder_in_louder_out(bundle: Bundle, gain: float) -> None:
    """A song's level is taken out before the model and put back after it, so the model never sees it."""
    with Separator(bundle, engine="ort", threads=1) as separator:
        plain, scaled = separator.separate(song()), separator.separate(np.float32(gain) * song())
    for name in SOURCES:
        # Powers of two round nothing; 1e-8 beside the song's deviation, 1e-3 at least, leaves 1e-5.
        np.testing.assert_allclose(scaled[name], np.float32(gain) * plain[name], rtol=1e-4, atol=1e-5 * gain)


def test_blocks_of_any_size_give_the_same(bundle: Bundle) -> None:
    mix = song(1000)
    with Separator(bundle, engine=FakeEngine()) as separator:
        whole = np.stack(list(separator.separate(mix).values()))
        for size in (1, 7, 64, 999):
            blocks = [mix[:, i : i + size] for i in range(0, 1000, size)]
            found = np.concatenate(list(separator.separate_blocks(lambda b=blocks: b)), axis=-1)  # type: ignore[misc]
            # The song's mean and deviation are float64 sums in another order.
            np.testing.assert_allclose(found, whole, atol=1e-6 * np.abs(whole).max())


def test_the_mix_may_be_of_another_type(bundle: Bundle) -> None:
    mix = song(200)
    with Separator(bundle, engine=FakeEngine()) as separator:
        expected = separator.separate(mix)
        given = np.asfortranarray(mix.astype(np.float64))
        found = separator.separate(given)  # type: ignore[arg-type]
    for name in SOURCES:
        np.testing.assert_array_equal(found[name], expected[name])


def test_stems_come_out_while_the_song_goes_in(bundle: Bundle) -> None:
    """Memory does not grow with the length, nor does the wait for the first samples."""
    peaks = []
    for count in (50, 400):
        read = done = 0

        def blocks(count: int = count) -> Iterator[Float32]:
            nonlocal read
            for seed in range(count):
                read += SAMPLES
                yield song(SAMPLES, seed)

        with Separator(bundle, engine=FakeEngine()) as separator:
            # What is made once is not counted, nor the small tuples that Python keeps for the next ones.
            separator.separate(song(400 * SAMPLES))
            tracemalloc.start()
            try:
                measured = SongStatistics(0.0, 1.0, count * SAMPLES)
                for stems in stems_of(separator.separate_songs([Song(measured, blocks())])):
                    done += stems.shape[-1]
                    assert read - done <= 8 * SAMPLES  # segments under way, and a block read ahead
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert done == count * SAMPLES
    # 350 more blocks and their stems would be 540 kB.
    assert peaks[1] < peaks[0] + 100_000


def test_progress_ends_at_the_end(bundle: Bundle) -> None:
    seen: list[int] = []
    with Separator(bundle, engine=FakeEngine()) as separator:
        for _ in separator.separate_blocks(lambda: [song(500)], seen.append):
            pass
    assert seen == sorted(seen)
    assert seen[-1] == 500


# --- failures ----------------------------------------------------------------------------------------------


def failing_at(call: int, kind: type[EngineError] = EngineError) -> Callable[[Stage, Arrays, Arrays], None]:
    calls = 0

    def compute(stage: Stage, inputs: Arrays, outputs: Arrays) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise kind(f"the fake failed in stage {stage.name}")
        identity(stage, inputs, outputs)

    return compute


@pytest.mark.parametrize("call", [1, 2, 9, 10])
def test_a_song_that_fails_does_not_spoil_the_next(bundle: Bundle, call: int) -> None:
    with Separator(bundle, engine=FakeEngine()) as separator:
        expected = separator.separate(song())
    with Separator(bundle, engine=FakeEngine(failing_at(call))) as separator:
        with pytest.raises(EngineError, match=r"stage branch\.(16|time)"):
            separator.separate(song(seed=1))
        found = separator.separate(song())
    for name in SOURCES:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_source_that_fails_in_the_middle_does_not_spoil_the_next(bundle: Bundle) -> None:
    def breaking() -> Iterator[Float32]:
        yield song(200)
        raise OSError("the disk is gone")

    with Separator(bundle, engine=FakeEngine()) as separator:
        expected = separator.separate(song())
        with pytest.raises(OSError, match="gone"):
            list(stems_of(separator.separate_songs([Song(SongStatistics(0.0, 1.0, 1000), breaking())])))
        found = separator.separate(song())
    for name in SOURCES:
        np.testing.assert_array_equal(found[name], expected[name])


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1000,), (1, 1000), (3, 1000), (1000, 2), (2, 0), (1, 2, 1000)])
def test_a_mix_of_another_shape(bundle: Bundle, shape: tuple[int, ...]) -> None:
    with (
        Separator(bundle, engine=FakeEngine()) as separator,
        pytest.raises(UsageError, match=r"\[2, samples\]"),
    ):
        separator.separate(np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whole", [True, False])
def test_a_mix_that_is_not_finite(bundle: Bundle, bad: float, whole: bool) -> None:
    """One sample would make every stem NaN."""
    mix = song()
    mix[1, 700] = bad
    with Separator(bundle, engine=FakeEngine()) as separator:
        with pytest.raises(UsageError, match=r"the mix holds NaN or infinity at sample 700 \(0\.087 s\)"):
            separator.separate(mix) if whole else list(
                separator.separate_blocks([mix[:, :450], mix[:, 450:]])
            )
        assert all(np.isfinite(stem).all() for stem in separator.separate(song()).values())


def test_blocks_as_a_list_or_a_function(bundle: Bundle) -> None:
    blocks = [song()[:, :450], song()[:, 450:]]
    with Separator(bundle, engine=FakeEngine()) as separator:
        expected = list(separator.separate(song()).values())
        for given in (blocks, tuple(blocks), lambda: iter(blocks)):
            found = np.concatenate(list(separator.separate_blocks(given)), axis=-1)  # type: ignore[arg-type]
            np.testing.assert_array_equal(found, np.stack(expected))


def test_blocks_that_can_be_read_once(bundle: Bundle) -> None:
    with (
        Separator(bundle, engine=FakeEngine()) as separator,
        pytest.raises(UsageError, match=r"the blocks are an iterator.*Give a list"),
    ):
        list(separator.separate_blocks(iter([song()])))


@pytest.mark.parametrize("shape", [(2, CHANNELS, SAMPLES), (1, CHANNELS, SAMPLES + 1), (CHANNELS, SAMPLES)])
def test_segments_of_another_shape(bundle: Bundle, shape: tuple[int, ...]) -> None:
    with Separator(bundle, engine=FakeEngine()) as separator, pytest.raises(UsageError, match="expected"):
        separator.run_segments(np.zeros(shape, np.float32))


@pytest.mark.parametrize("overlap", [-0.25, 1.0, 1.25, float("nan"), 0.999])
def test_an_overlap_out_of_range(bundle: Bundle, overlap: float) -> None:
    """0.999 leaves no step between segments of 64 samples."""
    with pytest.raises(UsageError, match="overlap"):
        Separator(bundle, engine=FakeEngine(), overlap=overlap)


def test_negative_threads(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="-1 threads"):
        Separator(bundle, threads=-1)


def test_an_engine_there_is_not(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no engine 'gpu'.*ort"):
        Separator(bundle, engine="gpu")


def test_a_mode_there_is_not(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no mode 'parallel'.*sequential"):
        Separator(bundle, engine=FakeEngine(), mode="parallel")  # type: ignore[arg-type]


def test_a_bundle_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    with pytest.raises(BundleError, match="nowhere"):
        Separator(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no model"):
        Separator("nowhere")


def test_a_bundle_that_lost_a_graph(bundle: Bundle) -> None:
    (bundle.path / "branch.time.onnx").unlink()
    with pytest.raises(BundleError, match=r"branch\.time\.onnx"):
        Separator(bundle.path)


# --- what a separator says of itself -----------------------------------------------------------------------


def test_by_name_path_and_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    bundle = tiny_bundle(tmp_path)
    registry.register(bundle, "mine")
    for given in (bundle, bundle.path, str(bundle.path), "mine"):
        with Separator(given, engine=FakeEngine()) as separator:
            assert separator.bundle.digest == bundle.digest


def test_properties(bundle: Bundle) -> None:
    with Separator(bundle, engine=FakeEngine(), overlap=0.5) as separator:
        assert separator.sources == SOURCES
        assert separator.sample_rate == 8000
        assert separator.audio_channels == CHANNELS
        assert separator.engine_name == "fake"
        assert separator.stride == SAMPLES // 2
        assert separator.manifest is bundle.manifest
        assert separator.manifest.model.segment == Fraction(SAMPLES, 8000)
        assert SAMPLES % HOP == 0


def test_closing_twice_and_after_the_bundle_is_gone(bundle: Bundle) -> None:
    engine = FakeEngine()
    separator = Separator(bundle, engine=engine)
    separator.separate(song(100))
    shutil.rmtree(bundle.path)
    separator.separate(song(100))
    separator.close()
    separator.close()
    assert sorted(engine.closed) == ["branch.16", "branch.time"]
    assert engine.device.memory_used() == 0


class NeverOpened(FakeEngine):
    """An engine whose device counts how often it was opened."""

    opened = 0

    @functools.cached_property
    def device(self) -> Device:
        self.opened += 1
        return CpuDevice()


def test_a_separator_that_cannot_be_made_opens_no_device_to_close_it(bundle: Bundle) -> None:
    engine = NeverOpened(options=EngineOptions(threads=2))
    with pytest.raises(UsageError, match="9999 segments side by side"):
        Separator(bundle, engine=engine, lanes=9999)
    assert engine.opened == 0
    engine.close()
    assert engine.opened == 0


def test_a_device_is_closed_though_its_streams_fail(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, closed = FakeEngine(), []
    separator = Separator(bundle, engine=engine)
    original = engine.device.close
    monkeypatch.setattr(engine.device, "close", lambda: (closed.append(True), original()))

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(separator.scheduler._pipelines[0], "drain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        separator.close()
    assert closed
    assert sorted(engine.closed) == ["branch.16", "branch.time"]
    with pytest.raises(UsageError, match="closed"):
        separator.separate(song())
    separator.close()
