"""Finds tracks with known stems: MUSDB18-HQ, folders of the same form, and ``.stem.mp4`` files.

    DIR/TRACK/{mixture,drums,bass,other,vocals}.wav     or .flac; MUSDB18-HQ has DIR/{train,test}/TRACK
    DIR/TRACK.stem.mp4                                  MUSDB18

``mrsep_deploy.verification.multitrack`` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from mrsep_deploy.errors import UsageError
from mrsep_deploy.verification.multitrack import MIXTURE, STEM_STREAMS, STEM_SUFFIX, TrackFiles

Subset = Literal["test", "train", "all"]

SUBSETS = ("train", "test")


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
