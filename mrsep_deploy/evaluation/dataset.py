"""Tracks with known stems: MUSDB18-HQ, folders of the same form, and ``.stem.mp4`` files.

    DIR/TRACK/{mixture,drums,bass,other,vocals}.wav     or .flac; MUSDB18-HQ has DIR/{train,test}/TRACK
    DIR/TRACK.stem.mp4                                  MUSDB18: mixture, drums, bass, other, vocals as streams

A missing mixture is the sum of the stems. That of a ``.stem.mp4`` is always their sum: its own stream went
through the codec by itself, and is not what its stems add up to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio import audio_streams, open_audio
from mrsep_deploy.bundle.manifest import ModelInfo
from mrsep_deploy.errors import AudioError, UsageError
from mrsep_deploy.export.checkpoint.files import sha256
from mrsep_deploy.verification.tracks import MIXTURE, STEM_STREAMS

Float32 = NDArray[np.float32]
Subset = Literal["test", "train", "all"]

SUFFIXES = (".wav", ".flac")
STEM_SUFFIX = ".stem.mp4"
SUBSETS = ("train", "test")
SUM = "sum of the stems"
FILE = "file"


@dataclass(frozen=True)
class TrackFiles:
    """Where a track lies. ``name`` is ``TRACK``, or ``test/TRACK`` where the dataset has subsets."""

    name: str
    path: Path

    @property
    def is_stem_file(self) -> bool:
        return self.path.name.endswith(STEM_SUFFIX)

    def file(self, stem: str) -> Path | None:
        """The file of a stem, or of the mixture, in a folder."""
        return next((p for s in SUFFIXES if (p := self.path / f"{stem}{s}").is_file()), None)

    def digest(self, model: ModelInfo) -> str:
        """SHA-256 of every audio file that an evaluation reads."""
        names = (MIXTURE, *stem_names(self, model.sources))
        files = [self.path] if self.is_stem_file else [p for name in names if (p := self.file(name))]
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.name} {_sha256(path)}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class EvalTrack:
    """A track in memory.

    Attributes:
        mix: ``[C, samples]`` at the model's rate.
        truth: true stems of the model's sources, each as long as the mix.
        mixture: ``FILE``, or ``SUM`` where the mix was added up from the stems.
    """

    mix: Float32
    truth: Mapping[str, Float32]
    mixture: str


def find_tracks(folder: Path, subset: Subset | None = None) -> list[TrackFiles]:
    """The tracks in a folder, by name; or the folder or ``.stem.mp4`` file itself, if it is a track.

    Args:
        folder: see the top of this file.
        subset: of a folder with ``train`` or ``test`` in it; by default ``test`` where there is one, which
            is what published results are on.

    Raises:
        UsageError: there is no track, no such subset, or two tracks of one name.
    """
    if not folder.exists():
        raise UsageError(f"{folder} does not exist", f"Give a folder of tracks, {_EXPECTED}.")
    if _is_track(folder):
        return [TrackFiles(_track_name(folder), folder)]
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder and no {STEM_SUFFIX}", f"Give a folder of tracks, {_EXPECTED}."
        )
    found = list(_in_subsets(folder, subset))
    if not found:
        raise UsageError(
            f"{folder} holds no track, expected {_EXPECTED}", "Give the folder above the tracks."
        )
    _require_distinct(found)
    return found


_EXPECTED = f"TRACK/{{{','.join((MIXTURE, *STEM_STREAMS))}}}.wav or TRACK{STEM_SUFFIX}"


def _in_subsets(folder: Path, subset: Subset | None) -> Iterator[TrackFiles]:
    present = [name for name in SUBSETS if (folder / name).is_dir() and not _is_track(folder / name)]
    if not present:
        if subset not in (None, "all"):
            raise UsageError(f"{folder} has no folder {subset}", "Leave out --subset.")
        yield from _in_folder(folder, "")
        return
    chosen = subset or ("test" if "test" in present else present[0])
    if chosen != "all" and chosen not in present:
        raise UsageError(
            f"{folder} has no folder {chosen}, but {', '.join(present)}", "Choose it with --subset."
        )
    for name in present if chosen == "all" else [chosen]:
        yield from _in_folder(folder / name, f"{name}/")


def _in_folder(folder: Path, prefix: str) -> Iterator[TrackFiles]:
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and _is_track(path):
            yield TrackFiles(prefix + _track_name(path), path)


def _is_track(path: Path) -> bool:
    if path.is_dir():
        track = TrackFiles("", path)
        return any(track.file(stem) for stem in (MIXTURE, *STEM_STREAMS))
    return path.name.endswith(STEM_SUFFIX) and path.is_file()


def _track_name(path: Path) -> str:
    name = Path(os.path.abspath(path)).name  # "." has no name of its own
    return name.removesuffix(STEM_SUFFIX) or name


def _require_distinct(tracks: Iterable[TrackFiles]) -> None:
    """Two tracks of one name would share one place for their results."""
    taken: dict[str, Path] = {}
    for track in tracks:
        # Case folded: the file system of the results may not tell them apart.
        other = taken.setdefault(track.name.casefold(), track.path)
        if other != track.path:
            raise UsageError(f"{other} and {track.path} are two tracks of one name", "Rename one.")


def stem_names(track: TrackFiles, sources: Sequence[str]) -> tuple[str, ...]:
    """What a track has that is read: the model's sources, and without a mixture all that add up to it."""
    if track.is_stem_file or track.file(MIXTURE) is not None:
        return tuple(sources)
    return tuple(name for name in dict.fromkeys((*sources, *STEM_STREAMS)) if track.file(name) is not None)


def read_track(track: TrackFiles, model: ModelInfo) -> EvalTrack:
    """Read a track at the model's sample rate and channels.

    Raises:
        AudioError: a file is missing or cannot be read, or its stems have different lengths.
    """
    read = _read_stem_file if track.is_stem_file else _read_folder
    stems = read(track, model)
    lengths = {name: stem.shape[1] for name, stem in stems.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise AudioError(
            f"{track.path} has files of different lengths in samples ({found})",
            "Cut all of them to the same length.",
        )
    mixture = FILE if MIXTURE in stems else SUM
    mix = stems.pop(MIXTURE) if MIXTURE in stems else _sum(list(stems.values()))
    return EvalTrack(mix, {source: stems[source] for source in model.sources}, mixture)


def _sum(stems: list[Float32]) -> Float32:
    mix: Float32 = np.sum(stems, axis=0, dtype=np.float32)
    return mix


def _read_folder(track: TrackFiles, model: ModelInfo) -> dict[str, Float32]:
    missing = [source for source in model.sources if track.file(source) is None]
    if missing:
        raise AudioError(
            f"{track.path} holds no {' and no '.join(f'{name}.wav' for name in missing)}, which the model separates",
            f"Evaluate a model of its stems; this one has {', '.join(model.sources)}.",
        )
    names = stem_names(track, model.sources)
    if track.file(MIXTURE) is not None:
        names = (MIXTURE, *names)
    elif len(names) < 2:
        raise AudioError(
            f"{track.path} holds no {MIXTURE}.wav and only one stem, {names[0]}",
            "Add the mixture, or the other stems.",
        )
    paths = {name: track.file(name) for name in names}
    return {
        name: open_audio(path, model.sample_rate, model.audio_channels).read()
        for name, path in paths.items()
        if path is not None
    }


def _read_stem_file(track: TrackFiles, model: ModelInfo) -> dict[str, Float32]:
    found = audio_streams(track.path)
    expected = 1 + len(STEM_STREAMS)
    if found != expected:
        raise AudioError(
            f"{track.path} has {found} audio streams, expected {expected}: {', '.join((MIXTURE, *STEM_STREAMS))}",
            "Give a file of MUSDB18, or a folder of stems.",
        )
    strange = [source for source in model.sources if source not in STEM_STREAMS]
    if strange:
        raise AudioError(
            f"{track.path} has no stem {strange[0]}, which the model separates",
            f"Evaluate a model of {', '.join(STEM_STREAMS)}.",
        )
    return {
        name: open_audio(track.path, model.sample_rate, model.audio_channels, stream).read()
        for stream, name in enumerate(STEM_STREAMS, start=1)
    }


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as audio:
            return sha256(audio)
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror or error}", "Check the file.") from error
