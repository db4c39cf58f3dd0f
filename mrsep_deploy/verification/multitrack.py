"""Finds and reads tracks with their true stems: folders of audio files, and ``.stem.mp4`` files.

    DIR/TRACK/{mixture,drums,bass,other,vocals}.wav     or .flac; a missing mixture is the sum of the stems;
                                                        MUSDB18-HQ has DIR/{train,test}/TRACK
    DIR/TRACK.stem.mp4                                  MUSDB18: mixture, drums, bass, other, vocals as streams

The mixture of a ``.stem.mp4`` is always the sum of its stems: its own stream went through the codec by itself and
differs from their sum by far more than anything that is measured.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.read import AudioSource, audio_streams
from mrsep_deploy.bundle.manifest import ModelInfo
from mrsep_deploy.errors import AudioError, UsageError
from mrsep_deploy.export.checkpoint.files import sha256

Float32 = NDArray[np.float32]

MIXTURE = "mixture"
STEM_STREAMS = ("drums", "bass", "other", "vocals")
"""Streams of a ``.stem.mp4`` after the mixture, in the order of MUSDB18."""
STEM_SUFFIX = ".stem.mp4"
SUFFIXES = (".wav", ".flac")
EXPECTED = f"TRACK/{{{','.join((MIXTURE, *STEM_STREAMS))}}}.wav or TRACK{STEM_SUFFIX}"
Subset = Literal["test", "train", "all"]
SUBSETS = ("train", "test")
SUM = "sum of the stems"
FILE = "file"


@dataclass(frozen=True)
class TrackFiles:
    """The folder or file of a track. ``name`` is ``TRACK``, or ``test/TRACK`` where a dataset has subsets."""

    name: str
    path: Path

    @property
    def is_stem_file(self) -> bool:
        return self.path.name.endswith(STEM_SUFFIX)

    def file(self, stem: str) -> Path | None:
        """The file of a stem, or of the mixture, in a folder."""
        return next((p for s in SUFFIXES if (p := self.path / f"{stem}{s}").is_file()), None)

    def read_files(self, sources: Sequence[str]) -> dict[str, Path]:
        """The files that are read: mixture and sources, or without a mixture all stems, which add up to it."""
        names = (MIXTURE, *sources) if self.file(MIXTURE) else dict.fromkeys((*sources, *STEM_STREAMS))
        return {name: path for name in names if (path := self.file(name)) is not None}

    def digest(self, model: ModelInfo) -> str:
        """SHA-256 of every audio file that is read."""
        files = [self.path] if self.is_stem_file else self.read_files(model.sources).values()
        digest = hashlib.sha256()
        try:
            for path in files:
                with open(path, "rb") as audio:
                    digest.update(f"{path.name} {sha256(audio)}\n".encode())
        except OSError as error:
            raise AudioError(
                f"{path} cannot be read: {error.strerror or error}", "Check the file."
            ) from error
        return digest.hexdigest()


def find_tracks(folder: Path, subset: Subset | None = None) -> list[TrackFiles]:
    """Returns the tracks in a folder, by name; or the folder or ``.stem.mp4`` file itself, if it is a track.

    Args:
        folder: see the top of this file.
        subset: of a folder with ``train`` or ``test`` in it; by default ``test`` where there is one, which
            is what published results are on.

    Raises:
        UsageError: there is no track, no such subset, or two tracks of one name.
    """
    if not folder.exists():
        raise UsageError(f"{folder} does not exist", f"Give a folder of tracks, {EXPECTED}.")
    if _is_track(folder):
        return [TrackFiles(_track_name(folder), folder)]
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder and no {STEM_SUFFIX}", f"Give a folder of tracks, {EXPECTED}."
        )
    found: dict[str, TrackFiles] = {}
    for prefix, place in _folders(folder, subset):
        for path in sorted(place.iterdir()):
            if path.name.startswith(".") or not _is_track(path):
                continue
            track = TrackFiles(prefix + _track_name(path), path)
            # Results lie under a track's name; case folded, because their file system may not tell cases apart.
            other = found.setdefault(track.name.casefold(), track)
            if other is not track:
                raise UsageError(f"{other.path} and {path} are two tracks of one name", "Rename one.")
    if not found:
        raise UsageError(f"{folder} holds no track, expected {EXPECTED}", "Give the folder above the tracks.")
    return list(found.values())


def _folders(folder: Path, subset: Subset | None) -> list[tuple[str, Path]]:
    """Returns the folders with the tracks, each after what goes in front of their names."""
    present = [name for name in SUBSETS if (folder / name).is_dir() and not _is_track(folder / name)]
    if not present:
        if subset not in (None, "all"):
            raise UsageError(f"{folder} has no folder {subset}", "Leave out --subset.")
        return [("", folder)]
    chosen = subset or ("test" if "test" in present else present[0])
    if chosen != "all" and chosen not in present:
        raise UsageError(
            f"{folder} has no folder {chosen}, but {', '.join(present)}", "Choose it with --subset."
        )
    return [(f"{name}/", folder / name) for name in present if chosen in ("all", name)]


def _is_track(path: Path) -> bool:
    if path.is_dir():
        track = TrackFiles("", path)
        return any(track.file(stem) for stem in (MIXTURE, *STEM_STREAMS))
    return path.name.endswith(STEM_SUFFIX) and path.is_file()


def _track_name(path: Path) -> str:
    name = Path(os.path.abspath(path)).name  # "." has no name of its own
    return name.removesuffix(STEM_SUFFIX) or name


@dataclass(frozen=True)
class Multitrack:
    """A track in memory.

    Attributes:
        mix: ``[C, samples]`` at the model's rate.
        truth: true stems of the model's sources, each as long as the mix.
        mixture: ``FILE``, or ``SUM`` where the mix was added up from the stems.
        remarks: how what was read differs from what is in the files, with their paths.
    """

    mix: Float32
    truth: Mapping[str, Float32]
    mixture: str
    remarks: tuple[str, ...] = ()


def read_multitrack(track: TrackFiles, model: ModelInfo, every_source: bool) -> Multitrack:
    """Reads a track at the model's sample rate and channels.

    Args:
        track: the folder or file.
        model: whose sources are read.
        every_source: whether every source of the model has to be there; else one is enough.

    Raises:
        AudioError: a file is missing or cannot be read, or the stems have different lengths.
    """
    places = _streams(track) if track.is_stem_file else _files(track, model.sources)
    missing = [source for source in model.sources if source not in places]
    if missing and every_source:
        names = missing if track.is_stem_file else [f"{source}.wav" for source in missing]
        raise AudioError(
            f"{track.path} holds no {' and no '.join(names)}, which the model separates",
            f"Evaluate a model of its stems; this one has {', '.join(model.sources)}.",
        )
    sources = {
        name: AudioSource(path, model.sample_rate, model.audio_channels, stream)
        for name, (path, stream) in places.items()
    }
    stems = {name: source.read() for name, source in sources.items()}
    lengths = {name: stem.shape[-1] for name, stem in stems.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise AudioError(
            f"{track.path} has stems of different lengths in samples ({found})",
            "Cut all of them to the same length.",
        )
    remarks = dict.fromkeys(f"{s.info.path} {remark}" for s in sources.values() for remark in s.remarks)
    truth = {source: stems[source] for source in model.sources if source in stems}
    mix = stems.get(MIXTURE)
    if mix is None:
        return Multitrack(np.sum(list(stems.values()), axis=0, dtype=np.float32), truth, SUM, tuple(remarks))
    return Multitrack(mix, truth, FILE, tuple(remarks))


def _streams(track: TrackFiles) -> dict[str, tuple[Path, int | None]]:
    found, names = audio_streams(track.path), (MIXTURE, *STEM_STREAMS)
    if found != len(names):
        raise AudioError(
            f"{track.path} has {found} audio streams, expected {len(names)}: {', '.join(names)}",
            "Give a file of MUSDB18, or a folder of stems.",
        )
    return {name: (track.path, stream) for stream, name in enumerate(STEM_STREAMS, start=1)}


def _files(track: TrackFiles, sources: Sequence[str]) -> dict[str, tuple[Path, int | None]]:
    found = track.read_files(sources)
    expected = f"expected {MIXTURE}.wav and true stems ({', '.join(f'{s}.wav' for s in sources)})"
    if not found:
        raise AudioError(
            f"{track.path} holds no {MIXTURE}.wav and no stem, {expected}", "Name the audio files."
        )
    if not set(sources) & set(found):
        raise AudioError(
            f"{track.path} holds no stem of this model, {expected}", "Name the audio file itself."
        )
    if len(found) == 1:
        raise AudioError(
            f"{track.path} holds no {MIXTURE}.wav and only one stem, {next(iter(found))}",
            "Add the mixture, or the other stems.",
        )
    return {name: (path, None) for name, path in found.items()}
