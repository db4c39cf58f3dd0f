"""Small honest files of every kind, from which fuzzers start, and words that matter in them."""

from __future__ import annotations

import functools
import io
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

FRAMES = 300


@functools.cache
def seeds(reader: str) -> list[bytes]:
    """The files for one reader; the same on every call."""
    return _MAKERS[reader]()


def words(reader: str) -> list[bytes]:
    """Tokens of the format."""
    return [*_WORDS[reader], b"../../etc/passwd", b"/dev/zero", b"\xff\xff\xff\xff", b"\0" * 4]


def _in_folder(make: Callable[[Path], None]) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return [path.read_bytes() for path in sorted(Path(folder).iterdir())]


# --- checkpoints


def _kwargs() -> dict[str, object]:
    from fractions import Fraction

    return {"sources": ["drums", "vocals"], "segment": Fraction(39, 5), "channels": 4, "depth": 2}


def _packages(folder: Path) -> None:
    import torch
    from pickles import KLASS, module, named, save, text, write, write_legacy

    state = {
        "a.weight": torch.ones(2, 3).half(),
        "b": torch.nn.Parameter(torch.ones(2)),
        "n": torch.tensor(3),
    }
    rest = {"kwargs": _kwargs(), "training_args": {"seed": 42}}
    save(folder / "zip.th", state, **rest)
    save(folder / "legacy.th", state, legacy=True, **rest)
    klass = named(*KLASS.rsplit(".", 1))
    write_legacy(folder / "source.th", klass=module(klass, text("htdemucs.py"), text("class HTDemucs: ...")))
    write(folder / "hand.th")


def _safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    fraction = {"_type": "fraction", "numerator": 39, "denominator": 5}
    metadata = {
        "klass": "demucs.htdemucs.HTDemucs",
        "args": "[]",
        "kwargs": json.dumps({**_kwargs(), "segment": fraction}),
    }
    save_file({"w": torch.ones(2), "n": torch.tensor([3])}, folder / "full.safetensors", metadata)
    save_file({"w": torch.ones(2).half()}, folder / "bare.safetensors")


def _bags() -> list[bytes]:
    return [
        b"models: ['a', 'b']\nweights: [[1., 0.], [0., 1.]]\nsegment: 44\n",
        b"models: [a, c]\n",
        b"models: &m ['a']\nweights: null\nsegment: 7.8\n",
        b"a: &a [x, x]\nb: &b [*a, *a]\nmodels: [*b, *b]\n",
        b'{"models": ["a"], "segment": 1e3}',
    ]


# --- bundles


@functools.cache
def manifest_bytes() -> bytes:
    """An honest manifest with the files' true hashes."""
    import hashlib
    from dataclasses import replace

    from bundles import tiny_files, tiny_manifest

    from mrsep_deploy.bundle.manifest import FileInfo
    from mrsep_deploy.bundle.manifest_json import to_json

    manifest = tiny_manifest()
    files = {
        name: FileInfo(hashlib.sha256(data).hexdigest(), len(data))
        for name, data in tiny_files(manifest).items()
    }
    return to_json(replace(manifest, files=files)).encode()


def _graphs() -> list[bytes]:
    from bundles import tiny_files, tiny_manifest
    from onnx import TensorProto, helper

    graphs = list(tiny_files(tiny_manifest()).values())
    outside = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="weights.bin")
    node = helper.make_node("Constant", [], ["c"], value=outside)
    inner = helper.make_graph([node], "g", [], [], [outside])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner)
    model = helper.make_model(helper.make_graph([branch], "h", [], []))
    return [*graphs, model.SerializeToString()]


def _zips() -> list[bytes]:
    import zipfile

    from bundles import tiny_files, tiny_manifest

    made = []
    for method, prefix in ((zipfile.ZIP_STORED, ""), (zipfile.ZIP_DEFLATED, "tiny/")):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", method) as archive:
            for name, data in [("manifest.json", manifest_bytes()), *tiny_files(tiny_manifest()).items()]:
                archive.writestr(zipfile.ZipInfo(prefix + name), data, method)
        made.append(target.getvalue())
    return made


# --- songs


def _samples() -> object:
    import numpy as np

    tones = np.sin(np.arange(FRAMES)[:, None] * np.array([0.05, 0.11]))
    return (0.4 * tones).astype(np.float32)


def _songs(folder: Path) -> None:
    """One of each format and subtype that libsndfile writes."""
    import soundfile

    for container in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(container):
            with suppress(soundfile.LibsndfileError, ValueError):  # not this number of channels
                place = folder / f"{container}-{subtype}"
                soundfile.write(place, _samples(), 8000, subtype, format=container)


_ENCODERS = (
    *(("mp4", "aac"), ("ipod", "alac"), ("adts", "aac"), ("asf", "wmav2"), ("matroska", "flac")),
    *(("webm", "libopus"), ("mpegts", "mp2"), ("flv", "aac"), ("avi", "ac3"), ("tta", "tta")),
    *(("wv", "wavpack"), ("mov", "pcm_s16le"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("ac3", "ac3")),
    *(("aiff", "pcm_s16be"), ("caf", "alac"), ("amr", "libopencore_amrnb"), ("oga", "flac")),
)
_PLAYLISTS = (
    b"ffconcat version 1.0\nfile other.wav\n",
    b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    b"<MPD><Period><AdaptationSet><BaseURL>file:///etc/passwd</BaseURL></AdaptationSet></Period></MPD>",
    b"v=0\nm=audio 5004 RTP/AVP 0\nc=IN IP4 127.0.0.1\n",
)


def _containers(folder: Path) -> None:
    """One of each container and codec that FFmpeg writes, and playlists, which name other files."""
    import av
    import numpy as np

    samples = np.ascontiguousarray(np.tile(_samples(), (8, 1)).T)  # type: ignore[arg-type]
    for container, codec in _ENCODERS:
        with suppress(av.FFmpegError, ValueError):  # this build may not have it
            _encode(folder / f"{container}-{codec}", container, codec, samples)
    for number, text in enumerate(_PLAYLISTS):
        (folder / f"playlist-{number}").write_bytes(text)


def _encode(path: Path, container: str, codec: str, samples: object) -> None:
    import av

    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=44100 if codec != "libopus" else 48000, layout="stereo")
        resampler = av.AudioResampler(
            stream.codec_context.format, "stereo", stream.rate, stream.codec_context.frame_size or 1024
        )
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        for part in (frame, None):
            for ready in resampler.resample(part):
                for packet in stream.encode(ready):
                    file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)


_MAKERS: dict[str, Callable[[], list[bytes]]] = {
    "checkpoint": lambda: _in_folder(_packages),
    "safetensors": lambda: _in_folder(_safetensors),
    "bag": _bags,
    "manifest": lambda: [manifest_bytes()],
    "graph": _graphs,
    "zip": _zips,
    "audio": lambda: _in_folder(_songs),
    "ffmpeg": lambda: _in_folder(_containers),
}
_ZIP_WORDS = [
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"../",
    b"\x01\x00\x10\x00",
]
_WORDS: dict[str, list[bytes]] = {
    "checkpoint": [
        *(b"cposix\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"),
        *(b"cfractions\nFraction\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"R", b"b", b"\x81", b"(", b"t", b"u"),
        *(b"Q", b"\x93", b"\x82\x01", b"r\xff\xff\xff\x7f", b"\x8a\xff", *_ZIP_WORDS),
    ],
    "safetensors": [b'"__metadata__"', b'"data_offsets"', b'"shape":[', b'"dtype":"F32"', b'"F64"', b"9" * 20],
    "bag": [b"models:", b"weights:", b"segment:", b"&a ", b"*a", b"!!python/object/apply:os.system ", b"!!binary ",
            b"<<: ", b"? ", b"- ", b"1:1:1", b"2001-99-99", b"0o7", b".inf", b".nan", b"!!int "],
    "manifest": [b'"', b"[", b"{", b"1e999", b"NaN", b"9" * 30, b"\\ud800", b'"segment"', b'"file"', b'"shape"',
                 b'"inputs"', b"-1", b"null", b"true", b"[[[[[[[["],
    "graph": [b"EPContext", b"\x3a", b"\x0a", b"\x2a", b"\x6a", b"\x70\x01", b"location", b"\xff" * 9 + b"\x01"],
    "zip": _ZIP_WORDS,
    "audio": [b"RIFF", b"RF64", b"WAVE", b"fmt ", b"data", b"LIST", b"fLaC", b"OggS", b"ID3", b"Xing", b"FORM",
              b"COMM", b"SSND", b"caff", b"desc", b".snd", struct.pack("<I", 2**31), struct.pack(">d", 1e300)],
    "ffmpeg": [b"moov", b"mdat", b"stsz", b"stco", b"stsd", b"esds", b"mp4a", b"elst", b"mvhd", b"trak", b"alac",
               b"dref", b"url ", b"\x1aE\xdf\xa3", b"#EXTM3U\n", b"ffconcat version 1.0\n", b"file:///etc/passwd"],
}  # fmt: skip
