"""Songs from strangers."""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from hostile_run import ENGINE, TESTS, Case, generated, write_song

NAMES = (
    *(
        "-i.wav",
        "a\nb.wav",
        "\u202egnp.wav",
        "x" * 240 + ".wav",
        "http:a.wav",
        "concat:a|b.wav",
        "file:b.wav",
        "pipe:0",
    ),
    *(
        "$(touch pwned).wav",
        "`id`.wav",
        "%s%n.wav",
        "{track}.wav",
        "a;b&c.wav",
        "[a].wav",
        "*.wav",
        "CON.wav",
    ),
    *("...wav", " .wav", "ä\u0308.wav", os.fsdecode(b"\xff\xfe.wav")),
)


def songs() -> Iterator[Case]:
    """Runs over folders of them, half of them taking what is there of damaged ones."""
    from seeds import seeds

    made = _special_songs(Path("special"))
    corpus = sorted((TESTS / "fuzz" / "corpus").glob("*/*"))
    contents = [path.read_bytes() for path in corpus if path.parent.name in ("audio", "ffmpeg")]
    contents += _cut_and_flipped()
    contents += seeds("ffmpeg")
    contents += generated("audio", 220)
    contents += generated("ffmpeg", 150)
    Path("music").mkdir()
    suffixes = (".wav", ".mp3", ".flac", ".ogg", ".m4a", "", ".raw", ".m3u8")
    for number, data in enumerate(contents):
        path = Path("music", f"{number}{suffixes[number % len(suffixes)]}")
        path.write_bytes(data)
        made.append(str(path))
    for number in range(0, len(made), 40):
        batch = made[number : number + 40]
        options = ["--allow-damaged"] if number % 80 else []
        arguments = ["run", "--json", *ENGINE, "-o", f"out{number}", *options, "--", *batch]
        yield Case(f"songs from {number}", arguments, tuple(batch))


def _cut_and_flipped() -> list[bytes]:
    """Honest songs of each kind, cut, with bytes changed, with a gap, twice in a row."""
    dice = random.Random(21)
    made = []
    for kind, how in (
        *(
            ("WAV", {}),
            ("FLAC", {}),
            ("OGG", {}),
            ("MP3", {}),
            ("AIFF", {}),
            ("CAF", {}),
            ("W64", {}),
            ("AU", {}),
        ),
        ("OGG", {"subtype": "OPUS"}),
    ):
        whole = io.BytesIO()
        import numpy as np
        import soundfile

        noise = 0.1 * np.random.default_rng(0).standard_normal((4000, 2))
        soundfile.write(whole, noise, 8000, format=kind, **how)
        data = whole.getvalue()
        made += [data + data, data[: len(data) // 3] + data[len(data) // 2 :]]
        for _ in range(9):
            flipped = bytearray(data)
            for _ in range(dice.choice([1, 5, 50])):
                flipped[dice.randrange(len(data))] = dice.randrange(256)
            made += [bytes(flipped), data[: dice.randrange(1, len(data))]]
    return made


def _special_songs(folder: Path) -> list[str]:
    """What is no file, is called oddly, lies about itself, or is another kind of file."""
    import numpy as np
    import soundfile

    folder.mkdir()
    write_song(folder / "honest.wav")
    honest = (folder / "honest.wav").read_bytes()
    for name in NAMES:
        (folder / name).write_bytes(honest)
    (folder / "folder.wav").mkdir()
    (folder / "folder.wav" / "inner.wav").write_bytes(honest)
    os.mkfifo(folder / "fifo.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "nowhere.wav").symlink_to("nothing")
    (folder / "zero.wav").symlink_to("/dev/zero")
    (folder / "secret.m3u8").write_text("#EXTM3U\n#EXTINF:9,\n../../outside/secret.wav\n#EXT-X-ENDLIST\n")
    (folder / "secret.ffconcat").write_text("ffconcat version 1.0\nfile ../../outside/secret.wav\n")
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_text("hello\n" * 99)
    (folder / "zip.wav").write_bytes(b"PK\x03\x04" + bytes(99))
    (folder / "script.wav").write_text("#!/bin/sh\ntouch pwned\n")
    for value in (np.nan, np.inf, -np.inf, 1e38):
        samples = np.zeros((900, 2), np.float32)
        samples[500] = value
        soundfile.write(folder / f"{value}.wav", samples, 8000, "FLOAT")
    for rate in (1, 999, 1000, 999_999, 1_000_000, 2**31 - 1, 2**32 - 1):
        (folder / f"rate{rate}.wav").write_bytes(honest[:24] + struct.pack("<I", rate) + honest[28:])
    for channels in (0, 1, 3, 5, 7, 64, 65, 1023, 65535):
        (folder / f"channels{channels}.wav").write_bytes(
            honest[:22] + struct.pack("<H", channels) + honest[24:]
        )
    for size in (0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 10**6):
        (folder / f"size{size}.wav").write_bytes(honest[:40] + struct.pack("<I", size) + honest[44:])
    for count in (3, 4, 5, 6, 7, 8, 9, 33, 64):
        soundfile.write(folder / f"wide{count}.wav", np.ones((300, count)) * 0.1, 8000)
    soundfile.write(folder / "wide.ogg", np.ones((300, 6)) * 0.1, 8000)
    soundfile.write(folder / "bomb.flac", np.zeros((8000 * 20, 1), np.int16), 8000)  # half a minute in a kB
    for path, data in _ogg_chains():
        (folder / path).write_bytes(data)
    found = sorted({*os.listdir(folder), "folder.wav/inner.wav"} - {"folder.wav"})
    return [*(str(folder / name) for name in found), str(folder / "missing.wav"), "/dev/zero"]


def _ogg_chains() -> list[tuple[str, bytes]]:
    """Thousands of songs in a file, pages without end, and songs of different kinds in a row."""
    import numpy as np
    import soundfile

    short, other = io.BytesIO(), io.BytesIO()
    soundfile.write(short, np.zeros((1, 1)), 8000, format="OGG", subtype="VORBIS")
    soundfile.write(other, np.zeros((300, 1)), 16000, format="OGG", subtype="OPUS")
    page = b"OggS\0\4" + bytes(8) + b"1234" + bytes(8) + b"\xff" + b"\xff" * 255
    return [
        ("chain.ogg", short.getvalue() * 1200),
        ("mixed.ogg", short.getvalue() + other.getvalue()),
        ("pages.ogg", short.getvalue() + b"OggS" * 50_000),
        ("long.ogg", short.getvalue() + page * 200),
    ]
