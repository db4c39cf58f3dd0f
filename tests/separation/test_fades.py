"""Linear fades and reflected edges: songs in chunks, as the training toolkits of RoFormers join them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Application, ModelInfo
from mrsep_deploy.separation.segments import SongStatistics, weights_of
from mrsep_deploy.separation.stream import Cutting, Song, SongStream, stems_of

Array = NDArray[np.float32]

CHUNK = 100


def toolkit(mix: Array, chunks: int) -> NDArray[np.float64]:
    """A song ``[C, n]`` as ``demix`` of the toolkit joins it, every chunk with fades of its own, in float64."""
    step, fade, length = CHUNK // chunks, CHUNK // 10, mix.shape[-1]
    border = CHUNK - step if length > 2 * (CHUNK - step) else 0
    song = np.pad(mix.astype(np.float64), [(0, 0), (border, border)], mode="reflect")
    total, weights = np.zeros((2, *song.shape)), np.zeros(song.shape[-1])
    for start in range(0, song.shape[-1], step):
        part = song[:, start : start + CHUNK]
        size = part.shape[-1]
        mode = "reflect" if size > CHUNK // 2 else "constant"
        found = model(np.pad(part, [(0, 0), (0, CHUNK - size)], mode=mode)[None])[0]  # type: ignore[call-overload]
        window = np.ones(CHUNK)
        if start > 0:
            window[:fade] = np.linspace(0, 1, fade)
        if start + step < song.shape[-1]:
            window[-fade:] = np.linspace(1, 0, fade)
        total[..., start : start + size] += found[..., :size] * window[:size]
        weights[start : start + size] += window[:size]
    return (total / weights)[..., border : border + length]


def model(mix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Two stems ``[b, 2, C, L]`` that depend on the place in the chunk and on all of it."""
    place = np.sin(np.arange(CHUNK))
    return np.stack([mix * place, np.roll(mix, 7, axis=-1) + mix.mean(axis=-1, keepdims=True)], axis=1)


class Runs:
    capacity = 2

    def submit(self, mix: Array) -> Array:
        return model(mix).astype(np.float32)

    def result(self, ticket: Array) -> Array:
        return ticket


def streamed(mix: Array, chunks: int, block: int) -> Array:
    def blocks() -> Iterator[Array]:
        for start in range(0, mix.shape[-1], block):
            yield mix[:, start : start + block]

    info = ModelInfo("m", ("a", "b"), 1000, len(mix), CHUNK / 1000, CHUNK, False, 0)  # type: ignore[arg-type]
    application = Application("none", "linear", CHUNK // 10, 1 - 1 / chunks, "reflected", "filled")
    stream = SongStream(Runs(), info, 3, Cutting(CHUNK, CHUNK // chunks, application=application))
    song = Song(SongStatistics.neutral(mix.shape[-1]), blocks())
    return np.concatenate(list(stems_of(stream.run([song, None]))), axis=-1)


@given(length=st.integers(2, 700), chunks=st.sampled_from([2, 3, 4, 5, 12]), block=st.integers(1, 150))
@settings(max_examples=100, deadline=None)
def test_same_as_the_toolkit(length: int, chunks: int, block: int) -> None:
    mix = np.random.RandomState(length).standard_normal((2, length)).astype(np.float32)
    found, expected = streamed(mix, chunks, block), toolkit(mix, chunks)
    assert found.shape == expected.shape
    # Sums of at most a dozen float32 products and one division.
    assert np.abs(found - expected).max() <= 20 * 2**-24 * max(np.abs(expected).max(), np.abs(mix).max())


def test_chunks_side_by_side_leave_no_hole() -> None:
    """Without overlap a fade has nothing to fade into: every sample is its chunk's, also at the ends, where the
    toolkit divides zero by zero and leaves zeros."""
    mix = np.ones((1, 300), np.float32)
    assert np.array_equal(streamed(mix, 1, 300)[1], 2 * mix)


@pytest.mark.parametrize(("segment", "fade"), [(100, 10), (7, 3), (6, 1)])
def test_fades_include_both_ends(segment: int, fade: int) -> None:
    weights = weights_of(Application("none", "linear", fade), segment)
    np.testing.assert_allclose(weights[:fade], np.linspace(0, 1, fade), atol=1e-12)
    assert np.array_equal(weights, weights[::-1])
    assert (weights > 0).all()
    assert (weights[fade:-fade] == 1).all()
