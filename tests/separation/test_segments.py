"""A song in segments and back is what Demucs makes of it, in flat memory, without a seam."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrsep_deploy.errors import UsageError
from mrsep_deploy.separation.segments import OverlapAdd, SongStatistics, cut_segments, stride_of, triangle

Array = NDArray[Any]
Model = Callable[[Array], Array]
"""``[C, segment]`` -> ``[S, C, segment]``."""

SOURCES = 2


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def positional(segment: int) -> Model:
    """A model that gives itself away: what it says of a sample depends on the sample's place in the segment,
    on its neighbours, and on where the zeros are."""
    place = np.linspace(0.5, 1.5, segment)

    def model(x: Array) -> Array:
        return np.stack([x * place, np.cumsum(x, axis=-1) / segment + np.roll(x, 1, axis=-1)[::-1]])

    return model


def repeat(x: Array) -> Array:
    return np.stack([x] * SOURCES)


def plain(mix: Array, model: Model, segment: int, stride: int) -> Array:
    """Demucs' ``apply_model(split=True, shifts=0, transition_power=1)`` on arrays that fit in memory."""
    channels, length = mix.shape
    padded = np.pad(mix.astype(np.float64), [(0, 0), (segment, segment)])
    weights = np.minimum(np.arange(1, segment + 1), segment - np.arange(segment)).astype(np.float64)
    total = np.zeros((SOURCES, channels, length))
    weight_sum = np.zeros(length)
    for start in range(0, length, stride):
        count = min(segment, length - start)
        before = (segment - count) // 2
        first = segment + start - before
        output = model(padded[:, first : first + segment])[..., before : before + count]
        total[..., start : start + count] += output * weights[:count]
        weight_sum[start : start + count] += weights[:count]
    return total / weight_sum


def stream(
    blocks: Iterator[Array], model: Model, segment: int, stride: int, channels: int, frames: int
) -> Array:
    """The same through the code under test."""
    adder = OverlapAdd(SOURCES, channels, segment)
    done = []
    for part in cut_segments(blocks, segment, stride):
        assert part.samples.dtype == np.float32
        output = model(part.samples)[..., part.cut : part.cut + part.length].astype(np.float32)
        done.append(adder.add(part.start, output))
    done.append(adder.finish(frames))
    return np.concatenate([piece for piece in done if piece is not None], axis=-1)


def blocks_of(mix: Array, sizes: list[int]) -> Iterator[Array]:
    """The song in blocks of these sizes, over and over; a size of 0 is an empty block."""
    position = turn = 0
    while position < mix.shape[-1]:
        size = sizes[turn % len(sizes)]
        yield mix[:, position : position + size]
        position, turn = position + size, turn + 1


PARTITIONS = st.lists(st.integers(0, 150), min_size=1, max_size=5).filter(any)


# --- Demucs' semantics -------------------------------------------------------------------------------------


@given(
    length=st.integers(1, 500),
    segment=st.integers(1, 120),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9]),
    sizes=PARTITIONS,
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_streamed_equals_whole(
    length: int, segment: int, overlap: float, sizes: list[int], seed: int
) -> None:
    stride = max(1, int((1 - overlap) * segment))
    mix, model = noise(2, length, seed=seed), positional(segment)
    found = stream(blocks_of(mix, sizes), model, segment, stride, 2, length)
    expected = plain(mix, model, segment, stride)
    assert found.shape == expected.shape
    # Sums of at most ten float32 products of the size of the signal's peak, and one division.
    assert np.abs(found - expected).max() <= 20 * 2**-24 * max(np.abs(expected).max(), np.abs(mix).max())


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.6])
@pytest.mark.parametrize("length", [1, 7, 100, 101, 149, 151, 250, 1003])
@pytest.mark.parametrize("segment", [100, 99])
def test_same_as_demucs(length: int, overlap: float, segment: int) -> None:
    torch = pytest.importorskip("torch")
    apply = pytest.importorskip("demucs.apply")
    model = positional(segment)

    class Fake(torch.nn.Module):  # type: ignore[name-defined,misc]
        samplerate, segment, sources, audio_channels = 1, 0, ["a", "b"], 2

        def valid_length(self, length: int) -> int:
            return segment

        def forward(self, x: Any) -> Any:
            return torch.from_numpy(np.stack([model(item) for item in x.numpy()]).astype(np.float32))

    fake = Fake()
    fake.segment = segment
    mix = noise(2, length)
    expected = apply.apply_model(fake, torch.from_numpy(mix)[None], shifts=0, overlap=overlap)[0].numpy()
    found = stream(blocks_of(mix, [40]), model, segment, stride_of(segment, overlap), 2, length)
    # The same float32 operations on both sides, but for how the weights are rounded.
    assert np.abs(found - expected).max() <= 10 * 2**-24 * np.abs(expected).max()


# --- no seam -----------------------------------------------------------------------------------------------


@given(length=st.integers(1, 700), segment=st.integers(2, 90), overlap=st.floats(0, 0.95), sizes=PARTITIONS)
@settings(max_examples=100, deadline=None)
def test_a_model_that_says_one_makes_one_everywhere(
    length: int, segment: int, overlap: float, sizes: list[int]
) -> None:
    stride = max(1, int((1 - overlap) * segment))
    mix = noise(1, length)
    ones = stream(blocks_of(mix, sizes), lambda x: np.ones((SOURCES, *x.shape)), segment, stride, 1, length)
    assert ones.shape == (SOURCES, 1, length)
    # Twenty weights added twice in the same order; an error of one weight would be 1 / 90 or more.
    assert np.abs(ones - 1).max() <= 1e-6


@given(length=st.integers(1, 700), segment=st.integers(2, 90), overlap=st.floats(0, 0.95), sizes=PARTITIONS)
@settings(max_examples=100, deadline=None)
def test_a_model_that_changes_nothing_gives_the_song(
    length: int, segment: int, overlap: float, sizes: list[int]
) -> None:
    stride = max(1, int((1 - overlap) * segment))
    mix = noise(2, length)
    found = stream(blocks_of(mix, sizes), repeat, segment, stride, 2, length)
    for source in found:
        # At each sample: up to 20 products and sums, and a division, each off by 2^-24.
        assert (np.abs(source - mix) <= 24 * 2**-24 * np.abs(mix)).all()


# --- segments ----------------------------------------------------------------------------------------------


def test_segments_start_every_stride_and_end_with_the_song() -> None:
    mix = noise(2, 1000)
    parts = list(cut_segments([mix], 300, 225))
    assert [part.start for part in parts] == [0, 225, 450, 675, 900]
    assert [part.length for part in parts] == [300, 300, 300, 300, 100]
    for part in parts:
        assert part.samples.shape == (2, 300)
        inside = part.samples[:, part.cut : part.cut + part.length]
        np.testing.assert_array_equal(inside, mix[:, part.start : part.start + part.length])


def test_the_last_segment_has_real_context_before_it_and_zeros_after() -> None:
    mix = noise(2, 1000)
    last = list(cut_segments([mix], 300, 225))[-1]
    assert (last.start, last.length, last.cut) == (900, 100, 100)
    np.testing.assert_array_equal(last.samples[:, :200], mix[:, 800:])
    assert not last.samples[:, 200:].any()


@pytest.mark.parametrize("context", [0, 1, 7, 60, 150])
@pytest.mark.parametrize("length", [1, 60, 99, 100, 101, 250, 751])
def test_context_is_that_of_demucs(length: int, context: int) -> None:
    """Demucs gives models whose layers need more samples than a segment has the song around it."""
    torch = pytest.importorskip("torch")
    chunk = pytest.importorskip("demucs.apply").TensorChunk
    mix = noise(2, length)
    parts = list(cut_segments(blocks_of(mix, [13]), 100, 75, "centred", context))
    assert [part.start for part in parts] == list(range(0, length, 75))
    for part in parts:
        expected = chunk(torch.from_numpy(mix)[None], part.start, 100).padded(100 + context)[0].numpy()
        assert np.array_equal(part.samples, expected)
        inside = part.samples[:, part.cut : part.cut + part.length]
        assert np.array_equal(inside, mix[:, part.start : part.start + 100])


def test_a_song_of_one_sample() -> None:
    (part,) = cut_segments([np.full((2, 1), 0.5, np.float32)], 10, 7)
    assert (part.start, part.length, part.cut) == (0, 1, 4)
    assert part.samples.sum(axis=1).tolist() == part.samples[:, 4].tolist() == [0.5, 0.5]
    found = stream(iter([np.full((2, 1), 0.5, np.float32)]), repeat, 10, 7, 2, 1)
    assert found.tolist() == [[[0.5], [0.5]]] * SOURCES


@pytest.mark.parametrize("blocks", [[], [np.zeros((2, 0), np.float32)]])
def test_no_song_no_segments(blocks: list[Array]) -> None:
    assert list(cut_segments(blocks, 10, 7)) == []


def test_segments_are_copies() -> None:
    """A decoder may use its block again, and a model may write into its input."""
    mix = noise(1, 100)
    kept = mix.copy()
    for part in cut_segments([mix], 40, 30):
        part.samples[:] = np.nan
    np.testing.assert_array_equal(mix, kept)


# --- flat memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 37, 100, 250])
def test_reads_no_further_than_it_must(block: int) -> None:
    """From an endless song: when a segment is out, at most a block beyond its end has been read."""
    read = 0

    def endless() -> Iterator[Array]:
        nonlocal read
        while True:
            read += block
            yield np.zeros((1, block), np.float32)

    parts = cut_segments(endless(), 100, 75)
    for _ in range(60):
        part = next(parts)
        assert read < part.start + 100 + block


def test_memory_does_not_grow_with_the_song() -> None:
    """A thousand segments, about 30 MB, in the memory of a dozen; what is finished comes out at once."""
    segment, stride, block = 10_000, 7_500, 1_000

    def endless() -> Iterator[Array]:
        while True:
            yield np.zeros((1, block), np.float32)

    parts, adder = cut_segments(endless(), segment, stride), OverlapAdd(SOURCES, 1, segment)
    handed_out = 0
    tracemalloc.start()
    try:
        for _ in range(1000):
            part = next(parts)
            finished = adder.add(part.start, repeat(part.samples))
            handed_out += 0 if finished is None else finished.shape[-1]
            assert handed_out == part.start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Held samples and their successor, 2 to 3 segments each; one segment; sums and their copies, 2 sources.
    assert peak < 16 * segment * np.dtype(np.float32).itemsize


# --- weights and strides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", [1, 2, 3, 8, 9, 1001])
def test_triangle(segment: int) -> None:
    weights = triangle(segment)
    assert weights.dtype == np.float32
    to_the_nearer_end = [min(n + 1, segment - n) for n in range(segment)]
    # One rounding; weights that were 0 somewhere could leave a sample without any.
    np.testing.assert_allclose(weights, np.array(to_the_nearer_end) / max(to_the_nearer_end), rtol=1e-7)


@pytest.mark.parametrize(("overlap", "stride"), [(0, 44100), (0.25, 33075), (0.1, 39690), (0.999, 44)])
def test_stride(overlap: float, stride: int) -> None:
    assert stride_of(44100, overlap) == stride


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5, float("nan"), float("inf"), 0.99999999])
def test_an_overlap_that_leaves_no_step(overlap: float) -> None:
    with pytest.raises(UsageError, match="overlap"):
        stride_of(44100, overlap)


# --- the song's level --------------------------------------------------------------------------------------


@given(
    length=st.integers(2, 3000),
    channels=st.integers(1, 3),
    offset=st.sampled_from([0.0, 0.3, -1e3, 1e3]),
    level=st.sampled_from([1e-3, 1.0, 100.0]),
    sizes=PARTITIONS,
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_song_statistics(
    length: int, channels: int, offset: float, level: float, sizes: list[int], seed: int
) -> None:
    """Those of the mono mix, whatever the blocks; an offset a million times the signal costs nothing."""
    mix = noise(channels, length, seed=seed) * np.float32(level) + np.float32(offset)
    mono = mix.astype(np.float64).mean(axis=0)
    song = SongStatistics.measure(blocks_of(mix, sizes))
    assert song.frames == length
    # float64 throughout: 1e-16 for each of a few sums, of values of the size of the largest.
    peak = np.abs(mono).max()
    assert song.mean == pytest.approx(mono.mean(), abs=1e-14 * peak)
    assert song.std == pytest.approx(mono.std(ddof=1), rel=1e-9, abs=1e-13 * peak)


def test_song_statistics_of_little() -> None:
    assert SongStatistics.measure([]) == SongStatistics(0.0, 0.0, 0)
    assert SongStatistics.measure([np.array([[0.25], [0.75]], np.float32)]) == SongStatistics(0.5, 0.0, 1)
    silence = [np.zeros((2, 5), np.float32), np.zeros((2, 0), np.float32), np.zeros((2, 9), np.float32)]
    assert SongStatistics.measure(silence) == SongStatistics(0.0, 0.0, 14)
