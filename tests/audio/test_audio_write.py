"""Writing: the bytes Demucs would write, whole or not at all, the same for any partition into blocks."""

from __future__ import annotations

import errno
import io
import os
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mrsep_deploy.audio.encode import WAV_16, WAV_24, WAV_FLOAT, Encoding
from mrsep_deploy.audio.info import Samples
from mrsep_deploy.audio.write import CLIP_MODES, Clip, StemWriter, WrittenStem, bytes_needed
from mrsep_deploy.errors import OutputError, UsageError

RATE = 44100
ENCODINGS = {encoding.name: encoding for encoding in (WAV_16, WAV_24, WAV_FLOAT)}


def noise(peak: float, channels: int = 2, frames: int = 5001) -> Samples:
    samples = np.random.default_rng(0).uniform(-1, 1, (channels, frames)).astype(np.float32)
    return samples * np.float32(peak / np.abs(samples).max())


def write(
    path: Path, samples: Samples, encoding: Encoding = WAV_16, clip: Clip = "rescale", block: int = 1000
) -> WrittenStem:
    with StemWriter(path, RATE, samples.shape[0], encoding, clip) as stem:
        for at in range(0, samples.shape[1], block):
            stem.write(samples[:, at : at + block])
    assert stem.written is not None
    return stem.written


def expected_samples(samples: Samples, encoding: Encoding, clip: Clip) -> np.ndarray[Any, Any]:
    """The rule, on the whole stem at once."""
    if clip.startswith("rescale"):
        samples = samples / max(np.float32(1.01) * np.abs(samples).max(), np.float32(1))
    elif clip == "clamp":
        samples = samples.clip(-0.99, 0.99)
    if encoding.floating:
        return samples
    return np.trunc(samples.clip(-1, 1) * np.float32(2 ** (encoding.bits - 1) - 1)).astype(np.int32)


# What is in the file


@pytest.mark.parametrize("peak", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("clip", CLIP_MODES)
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_samples_follow_the_rule(
    tmp_path: Path, peak: float, clip: Clip, encoding: Encoding, channels: int
) -> None:
    samples = noise(peak, channels)
    written = write(tmp_path / "a.wav", samples, encoding, clip)
    assert written.frames == 5001
    assert written.peak == pytest.approx(peak)
    rescaled = clip.startswith("rescale") and 1.01 * peak > 1
    assert written.gain == pytest.approx(1 / (1.01 * peak) if rescaled else 1)
    dtype = "float32" if encoding.floating else "int32"
    found, rate = soundfile.read(tmp_path / "a.wav", dtype=dtype, always_2d=True)
    assert rate == RATE
    if not encoding.floating:
        found = found >> (32 - encoding.bits)  # soundfile puts the bits at the top
    np.testing.assert_array_equal(found.T, expected_samples(samples, encoding, clip))


def test_integers_saturate_and_are_cut_towards_zero(tmp_path: Path) -> None:
    samples = np.array([[-9, -1, -0.99999, -1e-5, 0, 1e-5, 0.5, 0.99999, 1, 9]], np.float32)
    write(tmp_path / "a.wav", samples, WAV_16, "none")
    found, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert found.tolist() == [-32767, -32767, -32766, 0, 0, 0, 16383, 32766, 32767, 32767]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 300), max_size=8),
    st.sampled_from(list(ENCODINGS.values())),
    st.sampled_from(CLIP_MODES),
)
def test_any_partition_into_blocks_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], encoding: Encoding, clip: Clip
) -> None:
    directory = tmp_path_factory.mktemp("partition")
    samples = noise(1.7, frames=max(sum(lengths), 1))
    write(directory / "whole.wav", samples, encoding, clip, block=10**6)
    with StemWriter(directory / "parts.wav", RATE, 2, encoding, clip) as stem:
        for block in np.split(samples, np.cumsum(lengths), axis=1):
            stem.write(block)
    assert (directory / "parts.wav").read_bytes() == (directory / "whole.wav").read_bytes()


def test_rescaling_more_than_one_chunk_in_place(tmp_path: Path) -> None:
    samples = noise(3.0, frames=200_001)
    for encoding in (WAV_16, WAV_FLOAT):
        write(tmp_path / "a.wav", samples, encoding, block=7001)
        found, _ = soundfile.read(tmp_path / "a.wav", dtype="float32" if encoding.floating else "int16")
        np.testing.assert_array_equal(found.T, expected_samples(samples, encoding, "rescale"))


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_a_stem_without_samples_is_a_valid_file(tmp_path: Path, encoding: Encoding) -> None:
    assert write(tmp_path / "a.wav", noise(1.0)[:, :0], encoding).frames == 0
    assert soundfile.info(tmp_path / "a.wav").frames == 0


def test_a_chunk_of_odd_size_is_padded(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(0.5, channels=1, frames=3), WAV_24)
    data = (tmp_path / "a.wav").read_bytes()
    assert len(data) == 80 + 9 + 1
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
@pytest.mark.parametrize("over", [-1, 0, 1000])
def test_four_gigabytes_and_more(tmp_path: Path, encoding: Encoding, over: int) -> None:
    header = encoding.header(RATE, 2, 0)
    frame = encoding.frame_bytes(2)
    frames = (0xFFFFFFFF - len(header) + 8) // frame + 1 + over  # at 0 the first that does not fit
    header = encoding.header(RATE, 2, frames)
    assert len(header) == (92 if encoding.floating else 80)
    assert header[:4] == (b"RIFF" if over < 0 else b"RF64")
    with open(tmp_path / "a.wav", "wb") as file:
        file.write(header)
        file.truncate(len(header) + frames * frame)  # a hole, which takes no space on the disk
    assert soundfile.info(tmp_path / "a.wav").frames == frames


def test_bytes_needed_is_the_space_taken(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", noise(0.5), WAV_24, "none")
    assert 0 <= bytes_needed(5001, 2, WAV_24, "none") - (tmp_path / "a.wav").stat().st_size <= 1
    assert bytes_needed(5001, 2, WAV_16, "rescale") > 5001 * 2 * 4


def test_memory_does_not_grow_with_the_stem(tmp_path: Path) -> None:
    block = noise(2.0, frames=65536)
    tracemalloc.start()
    with StemWriter(tmp_path / "a.wav", RATE, 2) as stem:
        for _ in range(60):  # 31 MB as float32
            stem.write(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


# Whole or not at all


def test_the_name_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.wav"
    stem = StemWriter(path, RATE, 2)
    stem.write(noise(0.5))
    (part,) = path.parent.iterdir()
    assert part.name.startswith(".a.wav.")
    assert part.name.endswith(".part")
    written = stem.close()
    assert stem.close() is written
    assert written.path == path
    assert list(path.parent.iterdir()) == [path]
    stem.abort()
    assert path.exists()


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    stem = StemWriter(path, RATE, 2)
    stem.write(noise(0.5))
    assert path.read_bytes() == b"old"
    stem.close()
    assert soundfile.info(path).frames == 5001


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_block_that_raises(tmp_path: Path, error: type[BaseException]) -> None:
    def separate() -> None:
        with StemWriter(tmp_path / "a.wav", RATE, 2) as stem:
            stem.write(noise(0.5))
            raise error

    with pytest.raises(error):
        separate()
    assert list(tmp_path.iterdir()) == []


def test_an_aborted_writer_is_closed(tmp_path: Path) -> None:
    stem = StemWriter(tmp_path / "a.wav", RATE, 2)
    stem.abort()
    stem.abort()
    with pytest.raises(ValueError, match="closed"):
        stem.write(noise(0.5))
    with pytest.raises(ValueError, match="aborted"):
        stem.close()
    assert list(tmp_path.iterdir()) == []


class FullDisk(io.FileIO):
    """A file on a disk with room for 30 kB."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 30_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data) or 0


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrsep_deploy.audio.write.open", FullDisk, raising=False)
    stem = StemWriter(tmp_path / "a.wav", RATE, 2, WAV_16, "rescale")
    stem.write(noise(0.5, frames=3000))
    with pytest.raises(
        OutputError, match=r"no space left for .*a\.wav: it needs at least 48093 bytes, \d+ are"
    ):
        stem.write(noise(0.5, frames=3000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    stem = StemWriter(path, RATE, 2)
    stem.write(noise(0.5))
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        stem.close()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("mrsep_deploy.audio.write.open", refuse, raising=False)
    with pytest.raises(OutputError, match="may not be written by this user"):
        StemWriter(tmp_path / "a.wav", RATE, 2)


@pytest.fixture
def readonly(tmp_path: Path) -> Iterator[Path]:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("permissions do not bind this user")
    tmp_path.chmod(0o500)
    yield tmp_path
    tmp_path.chmod(0o700)


def test_a_read_only_directory(readonly: Path) -> None:
    with pytest.raises(OutputError, match="may not be written by this user"):
        StemWriter(readonly / "a.wav", RATE, 2)


def test_places_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="is a directory"):
        StemWriter(tmp_path, RATE, 2)
    with pytest.raises(OutputError, match="Not a directory"):
        StemWriter(tmp_path / "file" / "a.wav", RATE, 2)
    with pytest.raises(OutputError, match="too long"):
        StemWriter(tmp_path / ("a" * 300), RATE, 2)
    with pytest.raises(OutputError, match="NUL"):
        StemWriter(tmp_path / "a\0.wav", RATE, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe or a device"):
        StemWriter(tmp_path / "pipe", RATE, 2)


@pytest.mark.parametrize("name", ["a" * 251 + ".wav", "♫" * 83 + ".wav", ".wav", "вокал.wav"])
def test_the_longest_names_fit(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, noise(0.5))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "b.wav").write_bytes(b"other")
    (tmp_path / "a.wav").symlink_to(tmp_path / "disk" / "b.wav")
    write(tmp_path / "a.wav", noise(0.5))
    assert not (tmp_path / "a.wav").is_symlink()
    assert soundfile.info(tmp_path / "a.wav").frames == 5001
    assert (tmp_path / "disk" / "b.wav").read_bytes() == b"other"


def test_a_directory_that_disappears(tmp_path: Path) -> None:
    stem = StemWriter(tmp_path / "out" / "a.wav", RATE, 2)
    stem.write(noise(0.5))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        stem.close()


# What is given


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    stem = StemWriter(tmp_path / "a.wav", RATE, 2)
    stem.write(noise(0.5, frames=RATE))
    bad = noise(0.5)
    bad[1, 7] = value
    with pytest.raises(OutputError, match=r"NaN or infinite after 1\.00 s"):
        stem.write(bad)
    assert list(tmp_path.iterdir()) == []


def test_wrong_shapes_and_modes(tmp_path: Path) -> None:
    with StemWriter(tmp_path / "a.wav", RATE, 2) as stem:
        for shape in [(5,), (1, 5), (5, 2), (1, 2, 5)]:
            with pytest.raises(ValueError, match="expected"):
                stem.write(np.zeros(shape, np.float32))
    bad: Any = "loud"
    with pytest.raises(UsageError, match="no clip mode 'loud'"):
        StemWriter(tmp_path / "b.wav", RATE, 2, clip=bad)
