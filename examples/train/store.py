"""Rendered stems on disk, laid out to be read at random and quickly.

    STORE/train/fluid-openmsx-chemistry_lab-0/drums.npy     int16 [2, samples], 44.1 kHz, full scale 32767
                                              bass.npy
                                              other.npy
                                              info.json     song, licence, whole, ...

An entry appears whole or not at all. A stem that is silent has no file. ``whole`` entries are songs, whose
stems belong together; the others hold material for one source.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 44100
SOURCES = ("drums", "bass", "other", "vocals")
SPLITS = ("train", "held_out")
_FULL = 32767
_SILENT = 1e-4  # root mean square, of full scale
_PEAK = 0.98


@dataclass(frozen=True)
class Entry:
    """One rendering: a song, or material for one source.

    Attributes:
        stems: the files of those stems that sound.
        levels: their root mean square where they sound, of full scale.
        frames: samples of each.
        whole: the stems make a song.
    """

    name: str
    stems: dict[str, Path]
    levels: dict[str, float]
    frames: int
    whole: bool
    info: dict[str, Any]

    def read(self, source: str, start: int = 0, frames: int | None = None) -> NDArray[np.float32]:
        """Samples of one stem, ``[2, frames]``; zeros where it is silent or has ended."""
        frames = self.frames - start if frames is None else frames
        out = np.zeros((2, frames), np.float32)
        if source in self.stems:
            stored = np.load(self.stems[source], mmap_mode="r")[:, start : start + frames]
            out[:, : stored.shape[1]] = stored.astype(np.float32) / _FULL
        return out


def write_entry(
    store: Path,
    split: str,
    name: str,
    stems: Mapping[str, NDArray[np.float32]],
    whole: bool,
    info: Mapping[str, object],
) -> bool:
    """Store stems ``[2, samples]`` with one common gain, so that nothing clips and their balance stays.

    Returns:
        Whether anything sounds; nothing is written otherwise.
    """
    sounding = {source: stem for source, stem in stems.items() if float(np.std(stem)) > _SILENT}
    if not sounding:
        return False
    gain = _PEAK / max(float(np.abs(stem).max()) for stem in sounding.values())
    target = entry_path(store, split, name)
    work = target.with_name(f".{name}.{os.getpid()}")
    work.mkdir(parents=True)
    for source, stem in sounding.items():
        np.save(work / f"{source}.npy", np.rint(stem * (gain * _FULL)).astype(np.int16))
    facts = {
        **info,
        "whole": whole,
        "frames": next(iter(sounding.values())).shape[1],
        "levels": {source: active_level(stem * gain) for source, stem in sounding.items()},
    }
    (work / "info.json").write_text(json.dumps(facts, indent=1))
    if target.exists():
        shutil.rmtree(target)
    os.replace(work, target)
    return True


def entry_path(store: Path, split: str, name: str) -> Path:
    """Where an entry is or would be."""
    return store / split / name


def read_entries(store: Path, split: str) -> list[Entry]:
    """All entries of a split, by name."""
    entries = []
    for path in sorted((store / split).glob("[!.]*/info.json")):
        info = json.loads(path.read_text())
        stems = {source: path.with_name(f"{source}.npy") for source in info["levels"]}
        entries.append(Entry(path.parent.name, stems, info["levels"], info["frames"], info["whole"], info))
    return entries


def active_level(stem: NDArray[np.float32]) -> float:
    """Root mean square over the tenths of a second within 30 dB of the loudest."""
    block = SAMPLE_RATE // 10
    blocks = stem[:, : stem.shape[1] // block * block].reshape(2, -1, block)
    power = np.square(blocks, dtype=np.float64).mean(axis=(0, 2))
    return float(np.sqrt(power[power >= power.max() * 1e-3].mean())) if power.size else 0.0
