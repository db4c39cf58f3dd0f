"""Songs one after the other through one scheduler: each as if it were alone, whatever happens to those around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import CHANNELS, tiny_bundle
from numpy.typing import NDArray
from test_separator import failing_at

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.errors import AudioError, DeviceLostError, EngineError
from mrsep_deploy.separation.segments import SongStatistics
from mrsep_deploy.separation.separator import Separator
from mrsep_deploy.separation.stream import Cutting, Separated, Song, SongStream
from mrsep_deploy.testing import FakeEngine

Float32 = NDArray[np.float32]
LENGTHS = (200, 1, 64, 130, 65, 300, 2, 48)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


def mixes() -> list[Float32]:
    random = np.random.default_rng(0)
    return [random.standard_normal((CHANNELS, length), np.float32) for length in LENGTHS]


def songs() -> list[Song]:
    return [Song(SongStatistics.measure([mix]), [mix]) for mix in mixes()]


def alone(bundle: Bundle) -> list[Float32]:
    with Separator(bundle, engine=FakeEngine()) as separator:
        return [np.stack(list(separator.separate(mix).values())) for mix in mixes()]


def together(given: list[Song], events: Iterator[Separated]) -> dict[int, Float32 | Exception]:
    """What became of each song, which ends once, after its last stems."""
    pieces: dict[int, list[Float32]] = {n: [] for n in range(len(given))}
    ended: dict[int, Float32 | Exception] = {}
    for event in events:
        number = next(n for n, song in enumerate(given) if song is event.song)
        assert number not in ended
        if event.stems is not None:
            pieces[number].append(event.stems)
        else:
            ended[number] = event.error or np.concatenate(pieces[number], axis=-1)
    return ended


@pytest.mark.parametrize("pauses", [False, True])
def test_each_as_if_alone(bundle: Bundle, pauses: bool) -> None:
    given, expected = songs(), alone(bundle)
    fed = [entry for song in given for entry in ((None, song) if pauses else (song,))]
    with Separator(bundle, engine=FakeEngine()) as separator:
        found = together(given, separator.separate_songs(fed))
    for number, stems in enumerate(expected):
        np.testing.assert_array_equal(found[number], stems)


@pytest.mark.parametrize("call", range(1, 44, 6))
def test_a_gpu_that_is_lost_ends_them_all(bundle: Bundle, call: int) -> None:
    """None of the others is tried: each would fail, after it has been read."""
    engine = FakeEngine(failing_at(call, DeviceLostError))
    with (
        Separator(bundle, engine=engine) as separator,
        pytest.raises(DeviceLostError, match="the fake failed"),
    ):
        list(separator.separate_songs(songs()))
    assert len(engine.calls) <= call + 4, "what was under way beside it"


@pytest.mark.parametrize("call", range(1, 44, 3))
def test_an_engine_that_fails_once_costs_one_song(bundle: Bundle, call: int) -> None:
    """Wherever it fails, segments of the next song may be under way: they are started again."""
    given, expected = songs(), alone(bundle)
    with Separator(bundle, engine=FakeEngine(failing_at(call))) as separator:
        found = together(given, separator.separate_songs(given))
    failed = [number for number, stems in found.items() if isinstance(stems, Exception)]
    assert sorted(found) == list(range(len(LENGTHS)))
    assert len(failed) == 1
    assert isinstance(found[failed[0]], EngineError)
    for number, stems in enumerate(expected):
        if number not in failed:
            np.testing.assert_array_equal(found[number], stems)


@pytest.mark.parametrize("broken", range(len(LENGTHS)))
def test_a_song_that_breaks_off_costs_itself(bundle: Bundle, broken: int) -> None:
    given, expected = songs(), alone(bundle)
    mix = mixes()[broken]

    def breaking() -> Iterator[Float32]:
        yield mix[:, : len(mix[0]) // 2 + 1]
        raise AudioError("the file is gone")

    given[broken] = Song(given[broken].statistics, breaking())
    with Separator(bundle, engine=FakeEngine()) as separator:
        found = together(given, separator.separate_songs(given))
    assert [n for n, stems in found.items() if isinstance(stems, Exception)] == [broken]
    for number, stems in enumerate(expected):
        if number != broken:
            np.testing.assert_array_equal(found[number], stems)


def test_the_next_song_is_under_way_before_this_one_ends(bundle: Bundle) -> None:
    """The engine does not wait between songs: a song is asked for while the one before has segments to give."""
    given, asked, ended = songs(), [], 0

    def feeding() -> Iterator[Song]:
        for song in given:
            asked.append(ended)
            yield song

    with Separator(bundle, engine=FakeEngine()) as separator:
        for event in separator.separate_songs(feeding()):
            ended += event.stems is None
    assert ended == len(given)
    assert any(before < number for number, before in enumerate(asked))


class Unreliable:
    """A scheduler of two slots, whose stems are the mix once per source; calls of these numbers fail."""

    capacity = 2

    def __init__(self, sources: int, submits: tuple[int, ...] = (), results: tuple[int, ...] = ()) -> None:
        self.sources, self.failing = sources, {"submit": submits, "result": results}
        self.calls = {"submit": 0, "result": 0}

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        if self.calls[name] in self.failing[name]:
            raise EngineError(f"{name} {self.calls[name]} failed")

    def submit(self, mix: Float32) -> Float32:
        self._called("submit")
        return mix

    def result(self, ticket: Float32) -> Float32:
        self._called("result")
        return np.repeat(ticket[:, None], self.sources, axis=1)


def streamed(bundle: Bundle, scheduler: Unreliable, given: list[Song]) -> dict[int, Float32 | Exception]:
    manifest = bundle.manifest
    cutting = Cutting(manifest.model.segment_samples, manifest.model.segment_samples)
    stream = SongStream(scheduler, manifest.model, 1, cutting)  # type: ignore[arg-type]
    return together(given, stream.run(given))


def short_songs(count: int) -> list[Song]:
    return [
        Song(SongStatistics.measure([mix]), [mix]) for mix in (mixes()[1] + number for number in range(count))
    ]


def test_a_song_that_cannot_be_started_again_is_the_one_that_fails(bundle: Bundle) -> None:
    """The first song fails while the third is fed; the second, lost with it, cannot be started a second time."""
    given = short_songs(4)
    scheduler = Unreliable(len(bundle.manifest.model.sources), submits=(3,), results=(1,))
    found = streamed(bundle, scheduler, given)
    assert [str(found[number]) for number in (0, 1)] == ["result 1 failed", "submit 3 failed"]
    assert not any(isinstance(found[number], Exception) for number in (2, 3))


def test_stems_that_cannot_be_put_together_end_their_own_song(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrsep_deploy.separation import stream

    calls = 0

    class Failing(stream.OverlapAdd):
        def add(self, start: int, output: Float32) -> Float32 | None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise MemoryError("no room for stems")
            return super().add(start, output)

    monkeypatch.setattr(stream, "OverlapAdd", Failing)
    found = streamed(bundle, Unreliable(len(bundle.manifest.model.sources)), short_songs(4))
    assert [number for number, stems in found.items() if isinstance(stems, Exception)] == [0]
    assert len(found) == 4
