"""Compressed stems: whole, as long as they should be, with their tags; FLAC to the bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from mrsep_deploy.audio.compress import flac, mp3, ogg
from mrsep_deploy.audio.encode import RAW_16, RAW_24, RAW_FLOAT, WAV_16, WAV_24, WAV_FLOAT, Encoding
from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.audio.tags import read_tags
from mrsep_deploy.audio.write import AnyEncoding, Cancelled, Clip, StemWriter, bytes_needed
from mrsep_deploy.errors import OutputError

RATE = 44100
TAGS = {
    "title": "Überfluß – live",
    "artist": "The Tests",
    "album": "First",
    "date": "1999",
    "genre": "Rock",
    "tracknumber": "7",
    "comment": "odd",
    "copyright": "nobody",
}
ALL: dict[str, AnyEncoding] = {
    "wav16": WAV_16,
    "wav24": WAV_24,
    "wav32f": WAV_FLOAT,
    "flac": flac(),
    "flac24": flac(24),
    "mp3": mp3(),
    "ogg": ogg(),
}


def music(frames: int, peak: float = 0.5, channels: int = 2) -> NDArray[np.float32]:
    """Two notes and a little noise, different in each channel."""
    time = np.arange(frames) / RATE
    noise = 0.02 * np.random.default_rng(0).standard_normal((channels, frames))
    notes = [np.sin(2 * np.pi * (220 + 70 * n) * time) + np.sin(1500 * time) for n in range(channels)]
    samples = (np.stack(notes) + noise).astype(np.float32)
    return samples * np.float32(peak / np.abs(samples).max())


def write(
    path: Path, samples: NDArray[np.float32], encoding: AnyEncoding, clip: Clip = "rescale", **more: Any
) -> Path:
    with StemWriter(path, RATE, len(samples), encoding, clip, **more) as stem:
        for at in range(0, samples.shape[1], 10_000):
            stem.write(samples[:, at : at + 10_000])
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []
    return path


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("clip", ["rescale", "clamp", "none"])
@pytest.mark.parametrize("peak", [0.5, 2.5])
def test_flac_holds_the_samples_of_the_wav(tmp_path: Path, bits: int, clip: Clip, peak: float) -> None:
    samples = music(150_001, peak)
    wav = write(tmp_path / "a.wav", samples, WAV_24 if bits == 24 else WAV_16, clip)
    packed = write(tmp_path / "a.flac", samples, flac(bits), clip)
    assert soundfile.info(packed).subtype == f"PCM_{bits}"
    expected, _ = soundfile.read(wav, dtype="int32")
    found, rate = soundfile.read(packed, dtype="int32")
    assert rate == RATE
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("frames", [1, 1151, 1152, 44_100, 150_001])
@pytest.mark.parametrize("encoding", [mp3(), mp3(128), ogg(), flac()], ids=["320", "128", "ogg", "flac"])
def test_as_long_as_what_was_given(tmp_path: Path, encoding: AnyEncoding, frames: int) -> None:
    """To the sample, in both decoders: nothing before the song, nothing after it."""
    path = write(tmp_path / f"a{encoding.suffix}", music(frames), encoding)
    assert soundfile.info(path).frames == frames
    assert AudioSource(path, RATE, 2).read().shape == (2, frames)


@pytest.mark.parametrize(("encoding", "least"), [(mp3(320), 30), (mp3(128), 20), (ogg(10), 30), (ogg(3), 15)])
def test_lossy_is_close_and_aligned(tmp_path: Path, encoding: AnyEncoding, least: float) -> None:
    """A signal-to-noise ratio that one sample of delay would take away."""
    samples = music(100_000)
    found = AudioSource(write(tmp_path / f"a{encoding.suffix}", samples, encoding), RATE, 2).read()
    snr = 10 * np.log10(np.square(samples).sum() / np.square(found - samples).sum())
    assert snr > least


@pytest.mark.parametrize("bitrate", [64, 80, 96, 128, 160, 192, 256, 320])
def test_the_bit_rate_is_what_was_asked_for(tmp_path: Path, bitrate: int) -> None:
    path = write(tmp_path / "a.mp3", music(20 * RATE), mp3(bitrate))
    assert path.stat().st_size * 8 / 20 / 1000 == pytest.approx(bitrate, rel=0.02)


def test_a_better_quality_takes_more_space(tmp_path: Path) -> None:
    sizes = [write(tmp_path / "a.ogg", music(5 * RATE), ogg(q)).stat().st_size for q in (0, 3, 6, 10)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.6 * sizes[-1]


@pytest.mark.parametrize("encoding", [mp3(), ogg(), flac()], ids=["mp3", "ogg", "flac"])
def test_beyond_full_scale_saturates(tmp_path: Path, encoding: AnyEncoding) -> None:
    """Unclipped input of twice full scale never wraps round."""
    samples = np.full((2, 50_000), 2, np.float32)
    found = AudioSource(write(tmp_path / f"a{encoding.suffix}", samples, encoding, "none"), RATE, 2).read()
    assert found[:, 5000:-5000].min() > 0.9


@pytest.mark.parametrize("kind", ALL)
def test_tags_are_carried(tmp_path: Path, kind: str) -> None:
    encoding = ALL[kind]
    path = write(tmp_path / f"a{encoding.suffix}", music(5000), encoding, tags=TAGS)
    assert read_tags(path) == TAGS
    assert soundfile.info(path).frames == 5000


FOREIGN = {
    "title": "Überfluß – 日本語, a title of more than thirty bytes",
    "artist": "Ärzte",
    "comment": "für Élise",
}


@pytest.mark.parametrize("kind", ["wav16", "flac", "mp3", "ogg"])
def test_ffmpeg_reads_the_same_tags(tmp_path: Path, kind: str) -> None:
    av = pytest.importorskip("av")
    path = write(tmp_path / f"a{ALL[kind].suffix}", music(5000), ALL[kind], tags={**TAGS, **FOREIGN})
    with av.open(str(path)) as file:
        found = {name.lower(): text for name, text in {**file.metadata, **file.streams[0].metadata}.items()}
    expected = {
        "track" if name == "tracknumber" else name: text for name, text in {**TAGS, **FOREIGN}.items()
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg"])
def test_mutagen_reads_the_same_tags(tmp_path: Path, kind: str) -> None:
    mutagen = pytest.importorskip("mutagen")
    path = write(tmp_path / f"a{ALL[kind].suffix}", music(5000), ALL[kind], tags={**TAGS, **FOREIGN})
    found = mutagen.File(path, easy=True)
    for name, text in {**TAGS, **FOREIGN}.items():
        if (kind, name) != ("mp3", "comment"):  # the easy names have none
            assert found.tags[name] == [text], name
    if kind == "mp3":
        assert mutagen.File(path).tags["COMM::und"].text == [FOREIGN["comment"]]
    assert found.info.length == pytest.approx(5000 / RATE, abs=0.06)


def test_text_in_the_wrong_encoding(tmp_path: Path) -> None:
    """UTF-8 where a frame says Latin-1, and Windows-1252 where nothing is said."""
    pytest.importorskip("av")
    path = write(tmp_path / "a.mp3", music(5000), mp3(), tags={"title": "Ärzte", "artist": "日本"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x03\xc3\x84", b"\0\xc3\x84").replace(b"\x03\xe6", b"\0\xe6"))
    assert read_tags(path) == {"title": "Ärzte", "artist": "日本"}
    old = b"TAG" + "Ärzte „live“".encode("cp1252").ljust(30, b"\0") + bytes(94) + b"\xff"
    path.write_bytes(write(tmp_path / "b.mp3", music(5000), mp3()).read_bytes() + old)
    assert read_tags(path) == {"title": "Ärzte „live“"}
    path = write(tmp_path / "a.wav", music(5000), WAV_16, tags={"title": "AArzte"})
    path.write_bytes(path.read_bytes().replace(b"AArzte", "Ärzte\0".encode("cp1252")))
    assert read_tags(path) == {"title": "Ärzte"}


def test_a_file_with_tags_is_a_whole_riff_file(tmp_path: Path) -> None:
    for frames in (3, 4):  # one sample of padding, or none
        data = write(tmp_path / "a.wav", music(frames, channels=1), WAV_24, tags=TAGS).read_bytes()
        assert int.from_bytes(data[4:8], "little") == len(data) - 8
        assert data.index(b"LIST") % 2 == 0


def test_tags_that_are_no_text(tmp_path: Path) -> None:
    """Control characters and novels stay behind; a file without tags has none; a broken one does not raise."""
    path = write(tmp_path / "a.flac", music(100), flac(), tags={"title": "a\nb", "comment": "x" * 5000})
    assert read_tags(path) == {"title": "ab"}
    assert read_tags(write(tmp_path / "b.wav", music(100), WAV_16)) == {}
    (tmp_path / "c.mp3").write_bytes(b"ID3\x04\0\0\xff\xff\xff\xff nonsense")
    assert read_tags(tmp_path / "c.mp3") == {}
    assert read_tags(tmp_path / "nothing.mp3") == {}


def test_raw_samples_are_the_data_of_the_wav(tmp_path: Path) -> None:
    samples = music(70_000, 1.7)
    pairs: list[tuple[Encoding, Encoding]] = [(RAW_16, WAV_16), (RAW_24, WAV_24), (RAW_FLOAT, WAV_FLOAT)]
    for raw, wav in pairs:
        for clip in ("rescale", "clamp", "none"):
            expected = write(tmp_path / "a.wav", samples, wav, clip).read_bytes()  # type: ignore[arg-type]
            found = write(tmp_path / "a.raw", samples, raw, clip).read_bytes()  # type: ignore[arg-type]
            header = len(wav.header(RATE, 2, 70_000))
            assert found == expected[header : header + len(found)]
            assert len(found) == 70_000 * 2 * raw.bits // 8


@pytest.mark.parametrize(
    ("encoding", "rate", "channels"), [(mp3(), 96_000, 2), (mp3(), 44_100, 4), (flac(), 44_100, 9)]
)
def test_what_a_format_has_no_place_for(
    tmp_path: Path, encoding: AnyEncoding, rate: int, channels: int
) -> None:
    with pytest.raises(OutputError, match=rf"{rate} Hz and {channels} channels"):
        StemWriter(tmp_path / "a", rate, channels, encoding)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", [WAV_16, flac(), mp3(), ogg()], ids=["wav", "flac", "mp3", "ogg"])
def test_a_cancelled_stem_leaves_nothing(tmp_path: Path, encoding: AnyEncoding) -> None:
    cancel = threading.Event()
    stem = StemWriter(tmp_path / "a", RATE, 2, encoding, cancel=cancel)
    stem.write(music(100_000, 2.0))
    cancel.set()
    with pytest.raises(Cancelled):
        stem.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", [flac(), mp3(), ogg()], ids=["flac", "mp3", "ogg"])
def test_a_disk_that_fills_up_while_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: AnyEncoding
) -> None:
    """What libsndfile could not write is noticed when the file is read back; nothing is left."""

    class Short:
        frames = 17

    monkeypatch.setattr(soundfile, "info", lambda path: Short())
    stem = StemWriter(tmp_path / "a", RATE, 2, encoding)
    stem.write(music(50_000))
    with pytest.raises(OutputError, match=r"holds 17 frames .*expected 50000"):
        stem.close()
    assert list(tmp_path.iterdir()) == []


def test_space_is_reckoned_with_both_files(tmp_path: Path) -> None:
    for encoding in (flac(), mp3(), ogg()):
        path = write(tmp_path / "a", music(50_000), encoding)
        assert path.stat().st_size + 50_000 * 8 < bytes_needed(50_000, 2, encoding)
