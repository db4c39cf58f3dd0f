"""Nothing of a song is left out without a word: cut and damaged files, several songs in one, and more channels."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundles import tiny_bundle
from test_audio_read import RATE, tones, wav_bytes, write_av

from mrsep_deploy.audio.headers import stated_frames
from mrsep_deploy.audio.info import DamagedAudio, Samples
from mrsep_deploy.audio.ogg_pages import find_links
from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.bundle import registry
from mrsep_deploy.errors import DONE, FAILED, PARTIAL, AudioError

SECONDS = 4


def noise(seed: int = 0, frames: int = SECONDS * RATE) -> Samples:
    return np.random.default_rng(seed).normal(0, 0.1, (2, frames)).astype(np.float32)


def write(path: Path, samples: Samples, rate: int = RATE) -> Path:
    """A song in the format that the suffix names."""
    how = {
        ".opus": {"format": "OGG", "subtype": "OPUS"},
        ".rf64": {"format": "RF64", "subtype": "PCM_16"},
        ".wavex": {"format": "WAVEX", "subtype": "PCM_16"},
        ".adpcm": {"format": "WAV", "subtype": "MS_ADPCM"},
    }
    if path.suffix == ".m4a":
        write_av(path, [samples], options={"movflags": "faststart"})
    else:
        rate = 48000 if path.suffix == ".opus" else rate
        soundfile.write(path, samples.T, rate, **how.get(path.suffix, {}))
    return path


KINDS = ["wav", "wavex", "rf64", "adpcm", "w64", "aiff", "au", "caf", "flac", "mp3", "ogg", "opus", "m4a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_song_is_an_error_that_says_where(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", noise())
    whole = AudioSource(path, RATE, 2)
    expected = whole.read()
    assert whole.remarks == ()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedAudio, match=r"a\.\w+ (ends|is damaged) after \d\.\d\d s") as caught:
        AudioSource(path, RATE, 2).read()
    assert "--allow-damaged" in caught.value.fix
    source = AudioSource(path, RATE, 2, allow_damaged=True)
    found = source.read()
    assert 0.25 * expected.shape[1] < found.shape[1] < 0.6 * expected.shape[1]
    assert source.remarks == (caught.value.what,)
    np.testing.assert_array_equal(source.read(), found)
    assert len(source.remarks) == 1
    if kind != "opus":  # resampled, so the end rings
        np.testing.assert_allclose(found[:, :50_000], expected[:, :50_000], atol=1e-6)


def test_a_cut_wav_says_what_its_header_states(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(RATE, stated=6 * RATE))
    with pytest.raises(DamagedAudio, match=r"ends after 1\.00 s, its header states 6\.00 s"):
        AudioSource(tmp_path / "a.wav", RATE, 1).read()


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0xFFFF_FFDB, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000])
def test_a_wav_that_was_streamed_is_whole(tmp_path: Path, size: int) -> None:
    data = bytearray(wav_bytes(RATE))
    data[40:44] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(data)
    source = AudioSource(tmp_path / "a.wav", RATE, 1)
    assert source.read().shape == (1, RATE)
    assert source.remarks == ()


def test_a_few_samples_less_are_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(RATE, stated=RATE + RATE // 11))
    assert AudioSource(tmp_path / "a.wav", RATE, 1).read().shape == (1, RATE)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"RIFF", b"RIFF\0\0\0\0WAVE" * 9, b"RF64" + bytes(99), b"caff" + bytes(99)),
        *(b".snd" + b"\xff" * 8, b"riff" + bytes(36) + b"junk" + bytes(20) * 9),
        *(b"RIFF....WAVE" + (b"JUNK" + bytes(4)) * 9999, b"caff\0\1\0\0free" + b"\xff" * 99),
    ],
)
def test_headers_without_sense(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert stated_frames(tmp_path / "a", 7) == 7
    assert find_links(tmp_path / "a") == []


# Damage in the middle


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_a_damaged_flac_says_where(tmp_path: Path, at: float) -> None:
    path = write(tmp_path / "a.flac", noise())
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0xFF
    path.write_bytes(data)
    source = AudioSource(path, RATE, 2, allow_damaged=True)
    found = source.read()
    # noise is packed to the same size throughout; a FLAC frame has 4096 samples here
    assert found.shape[1] / RATE == pytest.approx(at * SECONDS, abs=0.15)
    assert source.remarks[0].startswith(f"is damaged after {found.shape[1] / RATE:.2f} s: ")
    np.testing.assert_allclose(found, noise()[:, : found.shape[1]], atol=1 / 32000)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda data, pages: data[: pages[-3] + 9] + b"?" + data[pages[-3] + 10 :], "a page is damaged"),
        (lambda data, pages: data[: pages[-3]] + data[pages[-2] :], "pages are missing"),
        (lambda data, pages: data[: pages[-1]], "its last page is missing"),
        (lambda data, pages: data[:-1], "the file is cut off"),
    ],
)
def test_damaged_pages(
    tmp_path: Path, kind: str, harm: Callable[[bytes, list[int]], bytes], why: str
) -> None:
    """libsndfile goes on after the gap, or ends, without a word."""
    path = write(tmp_path / f"a.{kind}", noise())
    data = path.read_bytes()
    pages = [at for at in range(len(data)) if data.startswith(b"OggS\0", at)]
    path.write_bytes(harm(data, pages))
    with pytest.raises(DamagedAudio, match=rf"is damaged after \d\.\d\d s: {why}"):
        AudioSource(path, RATE, 2).read()


def test_damaged_pages_that_ffmpeg_reads(tmp_path: Path) -> None:
    """FLAC in Ogg as FFmpeg writes it, which libsndfile does not take."""
    av = pytest.importorskip("av")
    path = tmp_path / "a.oga"
    with av.open(str(path), "w", format="oga") as file:
        stream = file.add_stream("flac", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(noise(), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler("s16", "stereo", RATE, 4096)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            file.mux(stream.encode(part))
    assert AudioSource(path, RATE, 2).read().shape == noise().shape
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedAudio, match=r"is damaged after [12]\.\d\d s: "):
        AudioSource(path, RATE, 2).read()


def test_what_follows_an_ogg_file_is_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", noise())
    whole = AudioSource(path, RATE, 2).read()
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    np.testing.assert_array_equal(AudioSource(path, RATE, 2).read(), whole)


# Several songs in one file


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_a_chain_is_read_to_its_end(tmp_path: Path, kind: str) -> None:
    rate = 48000 if kind == "opus" else RATE
    parts = [write(tmp_path / f"{seed}.{kind}", noise(seed, (1 + seed) * 60_000)) for seed in range(3)]
    chain = tmp_path / f"chain.{kind}"
    chain.write_bytes(b"".join(part.read_bytes() for part in parts))
    source = AudioSource(chain, rate, 2)
    expected = np.concatenate([AudioSource(part, rate, 2).read() for part in parts], axis=1)
    found = source.read()
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (2, 360_000)
    assert source.info.frames == pytest.approx(360_000, abs=2000)
    assert source.remarks == ()


def test_a_chain_that_changes(tmp_path: Path) -> None:
    parts = [write(tmp_path / "a.ogg", noise()), write(tmp_path / "b.ogg", noise(), 22050)]
    (tmp_path / "chain.ogg").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(AudioError, match=r"changes to 22050 Hz, 2 channels after 4\.00 s"):
        AudioSource(tmp_path / "chain.ogg", RATE, 2).read()


def test_a_chain_whose_second_song_is_cut(tmp_path: Path) -> None:
    data = write(tmp_path / "a.ogg", noise()).read_bytes()
    (tmp_path / "chain.ogg").write_bytes(data + data[: len(data) // 2])
    with pytest.raises(DamagedAudio, match=r"is damaged after 5\.\d\d s: the file is cut off"):
        AudioSource(tmp_path / "chain.ogg", RATE, 2).read()


def test_two_mp3_files_in_one(tmp_path: Path) -> None:
    pytest.importorskip("av")
    data = write(tmp_path / "a.mp3", noise()).read_bytes()
    (tmp_path / "two.mp3").write_bytes(data * 2)
    found = AudioSource(tmp_path / "two.mp3", RATE, 2).read()
    assert 0 <= found.shape[1] - 2 * SECONDS * RATE <= 4 * 1152


# Channels


def channels_file(path: Path, loud: int, count: int, frames: int = 3000) -> Path:
    """Full scale in one channel, silence in the others."""
    samples = np.zeros((frames, count), np.float32)
    samples[:, loud] = 1
    soundfile.write(path, samples, RATE, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


HALF = 0.5**0.5
SURROUND = 1 + 2 * HALF
"""The weights of one side of 5.1."""


@pytest.mark.parametrize(
    ("count", "loud", "expected"),
    [
        (3, 2, (HALF / (1 + HALF),) * 2),
        (4, 0, (1 / (1 + HALF), 0)),
        (4, 2, (HALF / (1 + HALF), 0)),
        (4, 3, (0, HALF / (1 + HALF))),
        (5, 4, (0, HALF / SURROUND)),
        (6, 0, (1 / SURROUND, 0)),
        (6, 2, (HALF / SURROUND, HALF / SURROUND)),
        (6, 3, (0, 0)),
        (6, 5, (0, HALF / SURROUND)),
        (8, 6, (HALF / (1 + 3 * HALF), 0)),
        (12, 11, (1 / 12, 1 / 12)),
    ],
)
def test_channels_are_mixed_down(
    tmp_path: Path, count: int, loud: int, expected: tuple[float, float]
) -> None:
    source = AudioSource(channels_file(tmp_path / "a.wav", loud, count), RATE, 2)
    np.testing.assert_allclose(source.read()[:, 1000], expected, atol=1e-6)
    assert source.remarks[0].startswith(f"has {count} channels")
    assert ("LFE" in source.remarks[0]) == (count in (6, 8))


def test_the_order_of_channels_is_the_formats(tmp_path: Path) -> None:
    """Vorbis has the centre second, where WAV has the right."""
    tone = tones(channels=6, frames=20_000)
    soundfile.write(tmp_path / "a.wav", tone.T, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "a.ogg", tone[[0, 2, 1, 4, 5, 3]].T, RATE, format="OGG", subtype="VORBIS")
    wav, ogg = (AudioSource(tmp_path / name, RATE, 2) for name in ("a.wav", "a.ogg"))
    np.testing.assert_allclose(ogg.read()[:, 2000:-2000], wav.read()[:, 2000:-2000], atol=0.03)
    assert wav.remarks == (
        "has 6 channels (FL FR FC LFE BL BR), mixed down to 2 by ITU-R BS.775, without LFE",
    )


def test_a_mix_stays_within_full_scale(tmp_path: Path) -> None:
    for count in (3, 4, 5, 6, 7, 8, 9):
        soundfile.write(tmp_path / "a.wav", np.ones((100, count)), RATE, subtype="FLOAT")
        np.testing.assert_allclose(AudioSource(tmp_path / "a.wav", RATE, 2).read(), 1, atol=1e-6)


def test_a_model_of_more_channels_hears_the_first(tmp_path: Path) -> None:
    source = AudioSource(channels_file(tmp_path / "a.wav", 2, 6), RATE, 3)
    assert source.read()[2].min() == 1
    assert source.remarks == ("has 6 channels, of which the model hears the first 3",)


# The command


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    registry.register(tiny_bundle(tmp_path / "bundles"))


def run(*arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mrsep_deploy", "run", "--engine", "ort", "--threads", "1", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=120)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.usefixtures("model")
def test_a_cut_song_fails_and_what_is_there_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "cut.wav").write_bytes(wav_bytes(RATE // 4, stated=6 * RATE))
    said = "ends after 0.25 s, its header states 6.00 s"
    fix = "Get the file again, or take what is there with run --allow-damaged"
    assert run("cut.wav", "-q").stderr == f"mrsep-deploy: error: cut.wav {said}. {fix}\n"
    done = run("-", "-q", given=(tmp_path / "cut.wav").read_bytes())
    assert (done.returncode, done.stderr) == (FAILED, f"mrsep-deploy: error: stdin {said}. {fix}\n")
    assert not list(tmp_path.glob("separated/**/*.wav"))
    done = run("cut.wav", "--allow-damaged", "--summary", "summary.json")
    assert done.returncode == DONE
    assert f"mrsep-deploy: cut.wav {said}" in done.stderr.splitlines()
    (track,) = json.loads((tmp_path / "summary.json").read_text())["tracks"]
    assert track["remarks"] == [said]
    done = run("cut.wav", "--allow-damaged", "--json")
    assert said in json.loads(done.stdout.splitlines()[-2])["remarks"]
    assert run("cut.wav", "--allow-damaged", "-q").stderr == ""


def damaged_songs(folder: Path) -> list[Path]:
    """Of each kind one cut in the middle, one with a gap, one with noise in it, one with bytes changed."""
    made = []
    for kind in ("wav", "flac", "mp3", "ogg", "opus", "m4a", "caf"):
        data = write(folder / f"whole.{kind}", noise()).read_bytes()
        third = len(data) // 3
        dice = random.Random(7)
        flipped = bytearray(data)
        for _ in range(300):
            flipped[dice.randrange(2000, len(data))] = dice.randrange(256)
        harmed = {
            "cut": data[: len(data) // 2],
            "gap": data[:third] + data[third + len(data) // 4 :],
            "noise": data[:third] + dice.randbytes(5000) + data[third:],
            "flipped": bytes(flipped),
        }
        for name, content in harmed.items():
            made.append(folder / f"{name}.{kind}")
            made[-1].write_bytes(content)
    return made


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("allowed", [False, True])
def test_decoders_do_not_print(tmp_path: Path, allowed: bool) -> None:
    """libmpg123 and FFmpeg have texts of their own for damage; each song has one line or none."""
    songs = damaged_songs(tmp_path)
    names = [song.name for song in songs]
    done = run(*names, "-q", "--summary", "summary.json", *(["--allow-damaged"] if allowed else []))
    tracks = json.loads((tmp_path / "summary.json").read_text())["tracks"]
    failed = [track["track"] for track in tracks if track["status"] == "failed"]
    assert done.returncode == PARTIAL
    lines = done.stderr.splitlines()
    assert sorted(line.split(": ")[1] for line in lines[:-1]) == sorted(failed)
    assert lines[-1].startswith(f"{len(failed)} of {len(songs)} failed: ")
    told = {track["track"] for track in tracks if track["status"] == "failed" or track.get("remarks")}
    # integers of a WAV have no checksum: bytes put in or changed are samples
    silent = {"noise.wav", "flipped.wav", "noise.caf", "flipped.caf"}
    assert set(names) - told <= silent
