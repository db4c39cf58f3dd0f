"""Nobody is told anything: no command on any engine asks for a socket, or writes outside the folders it is given.

Each command runs where the kernel ends whatever asks for a socket (see ``silent``), with a home, a folder for
temporary files and a current folder of its own, all empty; what has appeared there is looked at afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import silent
import small_package
import soundfile
from bundles import tiny_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not silent.available(), reason="seccomp filters are Linux's"),
]

GOLDEN = Path(__file__).parents[1] / "golden" / "htdemucs_nf.th"
PROGRAM = [sys.executable, silent.__file__]
COMMANDS = {
    "doctor": ["doctor"],
    "help": ["run", "--help"],
    "models": ["models"],
    "models that could be fetched": ["models", "list", "--all"],
    "inspect": ["inspect", "mrsep-small"],
    "inspect a checkpoint": ["inspect", str(GOLDEN)],
    "complexity": ["complexity", str(GOLDEN)],
    "cache": ["cache", "list"],
    "completion": ["completion", "bash"],
    "run on ort": ["run", "song.wav", "--engine", "ort"],
    "run on openvino": ["run", "song.wav", "--engine", "openvino"],
    "run on torch": ["run", "song.wav", "--engine", "torch"],
    "run on whatever works": ["run", "song.wav", "--mp3"],
    "run in float16 on ort": ["run", "song.wav", "--engine", "ort", "--precision", "fp16"],
    "run in float16 on openvino": ["run", "song.wav", "--engine", "openvino", "--precision", "fp16"],
    "run from a video": ["run", "song.m4a"],
    "export": ["export", "../small.th", "--name", "mine"],
    "verify": ["verify", "mrsep-small", "--engine", "openvino", "--audio", "song.wav"],
    "build for OpenVINO": ["build", "../bundles/tiny", "--engine", "openvino"],
    "build for TensorRT for RTX": ["build", "../bundles/tiny", "--engine", "trt-rtx", "--target", "sm_86"],
    "bench": [
        "bench",
        "mrsep-small",
        "--engine",
        "ort,openvino",
        "--rounds",
        "1",
        "--length",
        "2",
        "--json",
        "bench.json",
    ],
    "eval": ["eval", "dataset", "-n", "mrsep-small", "--engine", "ort"],
}


OUTPUTS = {"run": {"separated"}, "bench": {"bench.json"}, "eval": {"evaluated"}}
"""What commands make in the current folder."""


class Place:
    """Folders of one command, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.user, self.temporary, self.work, self.own = (
            folder / name for name in ("user", "temporary", "work", "own")
        )
        for each in (self.user, self.temporary, self.work):
            each.mkdir()
        tiny_bundle(folder / "bundles")
        small_package.write(folder / "small.th")
        noise = np.random.default_rng(0).uniform(-0.3, 0.3, (44100 * 3, 2))
        for name in ("song.wav", "dataset/test/song/mixture.wav"):
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(self.work / name, noise, 44100)
        for stem in ("drums", "bass", "other", "vocals"):
            soundfile.write(self.work / f"dataset/test/song/{stem}.wav", noise / 4, 44100)

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XDG_", "MRSEP_DEPLOY_", "ORT_DISABLE"))
        }
        own = {"MRSEP_DEPLOY_HOME": str(self.own), "HOME": str(self.user), "TMPDIR": str(self.temporary)}
        return subprocess.run(
            [*PROGRAM, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.work,
            env={**kept, **own, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=600,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_socket_ends_the_program(place: Place) -> None:
    """What the other tests rest on: native code asks the kernel by the same call."""
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    assert place.run(["-c", code]).returncode == silent.ENDED
    assert place.run(["-c", "import socket; socket.socket(socket.AF_UNIX)"]).returncode == 0
    started = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}]) != {silent.ENDED})"
    assert place.run(["-c", started]).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_no_socket_and_no_file_elsewhere(place: Place, name: str) -> None:
    if name == "run from a video":
        _encode_aac(place.work / "song.wav", place.work / "song.m4a")
    before = set(place.work.rglob("*"))
    done = place.run(["-m", "mrsep_deploy", *COMMANDS[name]])
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(place.user.rglob("*")) == [], "the user's home"
    assert list(place.temporary.rglob("*")) == [], "left in the folder for temporary files"
    made = {path.relative_to(place.work).parts[0] for path in set(place.work.rglob("*")) - before}
    assert made <= OUTPUTS.get(COMMANDS[name][0], set())


def _encode_aac(source: Path, target: Path) -> None:
    import av

    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    with av.open(str(target), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="stereo")
        frame.sample_rate = rate
        for each in (frame, None):
            container.mux(stream.encode(each))
