"""Reading: every format gives the same song, aligned, in any block size; every broken file one AudioError."""

from __future__ import annotations

import fractions
import os
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mrsep_deploy.audio.blocks import reblock
from mrsep_deploy.audio.info import Samples
from mrsep_deploy.audio.read import AudioSource, audio_streams
from mrsep_deploy.audio.resample import Resampler, resampled_length
from mrsep_deploy.errors import AudioError

RATE = 44100


def tones(rate: int = RATE, channels: int = 2, frames: int = 50003, amplitude: float = 0.5) -> Samples:
    """A different tone in every channel, ``[channels, frames]``."""
    time = np.arange(frames) / rate
    return np.stack(
        [amplitude * np.sin(2 * np.pi * 220 * (n + 1) * time) for n in range(channels)], dtype=np.float32
    )


def resample(samples: Samples, rate_in: int, rate_out: int) -> Samples:
    resampler = Resampler(rate_in, rate_out, len(samples))
    return np.concatenate([resampler.push(samples), resampler.finish()], axis=1)


def snr(reference: Samples, found: Samples) -> float:
    """Signal to noise in dB; equal lengths are part of what is asserted."""
    assert found.shape == reference.shape
    noise = np.mean((found.astype(np.float64) - reference) ** 2)
    return float("inf") if noise == 0 else 10 * np.log10(np.mean(reference.astype(np.float64) ** 2) / noise)


def snr_to_the_millisecond(reference: Samples, found: Samples) -> float:
    """As ``snr``, but the end may be 1 ms off: some FFmpeg versions write lengths into mp4 that coarsely."""
    assert abs(found.shape[1] - reference.shape[1]) <= RATE // 1000
    common = min(found.shape[1], reference.shape[1])
    return snr(reference[:, :common], found[:, :common])


def write_av(path: Path, streams: list[Samples], codec: str = "aac", **how: object) -> Path:
    """Encode with FFmpeg, one stereo audio stream per array; ALAC as 16-bit."""
    av = pytest.importorskip("av")
    layout, size = ("fltp", 1024) if codec == "aac" else ("s16p", 4096)
    with av.open(str(path), "w", **how) as container:
        encoders = [container.add_stream(codec, rate=RATE, layout="stereo", format=layout) for _ in streams]
        for encoder, samples in zip(encoders, streams, strict=True):
            if layout == "s16p":
                samples = np.round(samples * 32767).astype(np.int16)
            for at in range(0, samples.shape[1], size):
                piece = np.ascontiguousarray(samples[:, at : at + size])
                frame = av.AudioFrame.from_ndarray(piece, format=layout, layout="stereo")
                frame.sample_rate, frame.pts = RATE, at
                frame.time_base = fractions.Fraction(1, RATE)
                container.mux(encoder.encode(frame))
            container.mux(encoder.encode(None))
    return path


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    soundfile.write(path, tones().T, RATE, subtype="FLOAT")
    return path


# Formats


@pytest.mark.parametrize(
    ("name", "options", "at_least"),
    [
        ("a.wav", {"subtype": "PCM_U8"}, 35),
        ("a.wav", {"subtype": "PCM_16"}, 85),
        ("a.wav", {"subtype": "PCM_24"}, 130),
        ("a.wav", {"subtype": "PCM_32"}, 130),
        ("a.wav", {"subtype": "FLOAT"}, 200),
        ("a.wav", {"subtype": "DOUBLE"}, 200),
        ("a.flac", {"subtype": "PCM_24"}, 130),
        ("a.aiff", {"subtype": "PCM_16"}, 85),
        ("a.ogg", {"subtype": "VORBIS"}, 30),
        ("a.mp3", {}, 30),
        ("a.mp3", {"bitrate_mode": "VARIABLE"}, 30),
    ],
)
def test_every_format_gives_the_song_at_its_length(
    tmp_path: Path, name: str, options: dict[str, str], at_least: float
) -> None:
    path = tmp_path / name
    soundfile.write(path, tones().T, RATE, **options)
    source = AudioSource(path, RATE, 2)
    assert source.info.frames == 50003
    assert snr(tones(), source.read()) > at_least


def test_opus(tmp_path: Path) -> None:
    path = tmp_path / "a.opus"
    soundfile.write(path, tones(48000).T, 48000, format="OGG", subtype="OPUS")
    assert snr(tones(48000), AudioSource(path, 48000, 2).read()) > 20


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_blocks_of_a_lossy_file_are_those_of_one_read(tmp_path: Path, name: str) -> None:
    # soundfile seeks between its own blocks, which an MP3 decoder does not survive
    path = tmp_path / name
    noise = np.random.default_rng(0).normal(0, 0.1, (200_000, 2))
    soundfile.write(path, noise, RATE)
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(AudioSource(path, RATE, 2).read(), whole.T)


def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    # Loud then quiet at a variable bit rate: a guess from the first frame ends after a fifth of it.
    pytest.importorskip("av")
    path = tmp_path / "a.mp3"
    soundfile.write(path, tones(frames=100_003).T, RATE, bitrate_mode="VARIABLE")
    data = path.read_bytes()
    second = data.index(data[:2], 200)  # the first frame holds nothing but the length
    art = b"\0" * 3000
    tag = b"ID3\x03\0\0" + bytes([0, 0, len(art) >> 7, len(art) & 127]) + art
    for start in (b"", tag):
        path.write_bytes(start + data[second:])
        assert 100_003 <= AudioSource(path, RATE, 2).read().shape[1] <= 100_003 + 2 * 1152


def test_a_flac_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tones().T, RATE)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's total samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    source = AudioSource(path, RATE, 2)
    assert source.info.frames is None
    assert snr(tones(), source.read()) > 85


@pytest.mark.parametrize(("codec", "at_least"), [("aac", 20), ("alac", 80)])
def test_m4a_is_aligned_and_has_its_length(tmp_path: Path, codec: str, at_least: float) -> None:
    path = write_av(tmp_path / "a.m4a", [tones()], codec)
    found = AudioSource(path, RATE, 2).read()
    assert snr_to_the_millisecond(tones(), found) > at_least


def test_streams_of_a_stem_file(tmp_path: Path) -> None:
    songs = [tones(amplitude=amplitude) for amplitude in (0.5, 0.1, 0.3)]
    path = write_av(tmp_path / "a.stem.mp4", songs)
    assert audio_streams(path) == 3
    assert snr_to_the_millisecond(songs[0], AudioSource(path, RATE, 2).read()) > 20
    for index, song in enumerate(songs):
        found = AudioSource(path, RATE, 2, stream=index).read()
        assert snr_to_the_millisecond(song, found) > 20
    with pytest.raises(AudioError, match="no audio stream 3, it has 3"):
        AudioSource(path, RATE, 2, stream=3)


def test_streams_of_a_plain_file(wav: Path) -> None:
    assert audio_streams(wav) == 1
    assert AudioSource(wav, RATE, 2, stream=0).read().shape == (2, 50003)
    with pytest.raises(AudioError, match="no audio stream 1"):
        AudioSource(wav, RATE, 2, stream=1)


# Channels


@pytest.mark.parametrize(
    ("file_channels", "model_channels", "expected"),
    [
        (1, 1, lambda x: x),
        (2, 2, lambda x: x),
        (1, 2, lambda x: x[[0, 0]]),
        (2, 1, lambda x: x.mean(0, keepdims=True)),
        (6, 1, lambda x: x.mean(0, keepdims=True)),
    ],
)
def test_channels(tmp_path: Path, file_channels: int, model_channels: int, expected: object) -> None:
    assert callable(expected)
    song = tones(channels=file_channels, frames=3000)
    path = tmp_path / "a.wav"
    soundfile.write(path, song.T, RATE, subtype="FLOAT")
    found = AudioSource(path, RATE, model_channels).read()
    np.testing.assert_array_equal(found, expected(song))


def test_too_few_channels(wav: Path) -> None:
    with pytest.raises(AudioError, match="has 2 channels, expected 1 or at least 4"):
        AudioSource(wav, RATE, 4)


# Blocks and sample rate


@pytest.mark.parametrize("rate", [8000, 22050, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2])
def test_resampled_song_is_aligned_and_two_passes_are_identical(
    tmp_path: Path, rate: int, channels: int
) -> None:
    path = tmp_path / "a.wav"
    song = tones(rate, channels, frames=2 * rate + 11)
    soundfile.write(path, song.T, rate, subtype="FLOAT")
    source = AudioSource(path, RATE, channels)
    blocks = list(source.blocks(10_000))
    assert {block.shape for block in blocks[:-1]} == {(channels, 10_000)}
    assert all(block.dtype == np.float32 and block.flags.c_contiguous for block in blocks)
    found = np.concatenate(blocks, axis=1)
    assert found.shape[1] == resampled_length(song.shape[1], rate, RATE)
    np.testing.assert_array_equal(found, source.read())
    middle = slice(2000, -2000)  # the ends ring: the tone starts and stops there
    assert snr(tones(RATE, channels, found.shape[1])[:, middle], found[:, middle]) > 100


def test_streamed_resampling_is_one_shot_resampling(tmp_path: Path) -> None:
    rate, seconds = 48000, 5
    time = np.arange(rate * seconds) / rate
    phase = 2 * np.pi * (1000 * time + (15000 - 1000) / (2 * seconds) * time**2)
    sweep = (0.5 * np.sin(phase)).astype(np.float32)[None]
    path = tmp_path / "a.wav"
    soundfile.write(path, sweep.T, rate, subtype="FLOAT")
    one_shot = soxr.resample(sweep[0].astype(np.float64), rate, RATE, quality="VHQ")[None]
    assert snr(one_shot, AudioSource(path, RATE, 1).read()) > 100
    assert snr(one_shot, resample(sweep, rate, RATE)) > 100
    time = np.arange(RATE * seconds) / RATE
    ideal = 0.5 * np.sin(2 * np.pi * (1000 * time + 14000 / (2 * seconds) * time**2))[None]
    assert snr(ideal[:, 2000:-2000], one_shot[:, 2000:-2000]) > 100


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([1000, 8000, 11025, 37123, 48000, 96000, 192000]))
def test_length_of_short_songs(frames: int, rate: int) -> None:
    found = resample(np.ones((2, frames), np.float32), rate, RATE)
    assert found.shape == (2, resampled_length(frames, rate, RATE))
    assert abs(found.shape[1] - max(frames * RATE / rate, 1)) <= 0.5  # never none at all


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 40))
def test_any_pieces_make_the_same_blocks(lengths: list[int], frames: int) -> None:
    song = np.arange(2 * sum(lengths), dtype=np.float32).reshape(2, -1)
    blocks = list(reblock(np.split(song, np.cumsum(lengths), axis=1), frames))
    assert all(block.shape[1] == frames for block in blocks[:-1])
    assert [block.shape[1] for block in blocks[-1:]] == [((sum(lengths) - 1) % frames) + 1] * bool(blocks)
    np.testing.assert_array_equal(np.concatenate([song[:, :0], *blocks], axis=1), song)


def test_memory_does_not_grow_with_the_song(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((8_000_000, 2), np.int16), 48000)  # 61 MB as float32
    source = AudioSource(path, RATE, 2)
    tracemalloc.start()
    frames = sum(block.shape[1] for block in source.blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == 7_350_000
    assert peak < 8e6


@pytest.mark.parametrize("bad", [{"sample_rate": 0, "channels": 2}, {"sample_rate": RATE, "channels": 0}])
def test_nonsense_arguments(wav: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        AudioSource(wav, **bad)
    with pytest.raises(ValueError, match="1 or more"):
        next(AudioSource(wav, RATE, 2).blocks(0))


# Broken files


def wav_bytes(frames: int, rate: int = RATE, channels: int = 1, stated: int | None = None) -> bytes:
    """A 16-bit WAV of silence whose header says whatever is asked for."""
    data = bytes(2 * channels * frames)
    form = struct.pack("<HHIIHH", 1, channels, rate, (2 * rate * channels) % 2**32, 2 * channels, 16)
    size = len(data) if stated is None else 2 * channels * stated
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", size) + data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "is empty"),
        ("nothing.wav", wav_bytes(0), "holds no samples"),
        ("cut.wav", wav_bytes(9)[:30], "not audio that can be decoded|damaged"),
        ("text.wav", b"hello world\n" * 99, "not audio that can be decoded|no audio stream"),
        ("text.mp3", b"hello world\n" * 99, "not audio that can be decoded|no audio stream"),
        ("text.raw", b"hello world\n" * 99, "not audio that can be decoded|no audio stream"),
        ("text.m4a", b"hello world\n" * 99, "not audio that can be decoded|no audio stream"),
        ("noise.flac", bytes(range(256)) * 9, "not audio that can be decoded|sample rate of 0 Hz"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "decoded|stream"),
        ("slow.wav", wav_bytes(9, rate=1), "sample rate of 1 Hz"),
        ("fast.wav", wav_bytes(9, rate=2_000_000_000), "sample rate of 2000000000 Hz"),
        ("wide.wav", wav_bytes(9, channels=200), "200 channels"),
    ],
)
def test_broken_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    pytest.importorskip("av")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        AudioSource(path, RATE, 1)
    assert str(path) in caught.value.message
    assert caught.value.fix


def test_a_cut_m4a(tmp_path: Path) -> None:
    path = write_av(tmp_path / "a.m4a", [tones()])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # the index is at the end
    with pytest.raises(AudioError, match="not audio that can be decoded"):
        AudioSource(path, RATE, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [RATE, 48000])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float, rate: int) -> None:
    song = tones(rate, frames=150_000)
    song[1, 100_000:] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, song.T, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=rf"at {100_000 / rate:.3f} s \(frame 100000\)"):
        AudioSource(path, RATE, 2).read()


def test_a_bad_sample_in_a_channel_the_model_does_not_hear(tmp_path: Path) -> None:
    song = tones(channels=6, frames=100)
    song[3] = np.nan
    soundfile.write(tmp_path / "a.wav", song.T, RATE, subtype="FLOAT")
    assert np.isfinite(AudioSource(tmp_path / "a.wav", RATE, 2).read()).all()


def test_a_double_too_great_for_float32(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.0, 1e300]), RATE, subtype="DOUBLE")
    with pytest.raises(AudioError, match="frame 1"):
        AudioSource(tmp_path / "a.wav", RATE, 1).read()


def test_places_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        AudioSource(tmp_path / "missing.wav", RATE, 2)
    with pytest.raises(AudioError, match="is a directory"):
        AudioSource(tmp_path, RATE, 2)
    with pytest.raises(AudioError, match="cannot be opened"):
        AudioSource(tmp_path / "a\0.wav", RATE, 2)
    with pytest.raises(AudioError, match="cannot be opened"):
        AudioSource(tmp_path / ("a" * 300 + ".wav"), RATE, 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="pipe or a device"):
        AudioSource(tmp_path / "pipe.wav", RATE, 2)


def test_no_permission(wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mrsep_deploy.audio.info.open", refuse, raising=False)
    with pytest.raises(AudioError, match="may not be read"):
        AudioSource(wav, RATE, 2)


def test_without_ffmpeg_the_message_is_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_av(tmp_path / "a.m4a", [tones(frames=5000)])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match="cannot be decoded without FFmpeg") as caught:
        AudioSource(path, RATE, 2)
    assert caught.value.fix == 'pip install "mrsep-deploy[av]"'


@pytest.mark.parametrize("name", ["песня ♫.wav", "-i.wav", "http:a.wav", "concat:a|b.wav"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tones(frames=100).T, RATE, subtype="FLOAT")
    assert AudioSource(tmp_path / name, RATE, 2).read().shape == (2, 100)
