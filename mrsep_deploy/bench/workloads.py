"""Makes the inputs of a benchmark: batches of segments and whole songs, from a file of music or synthetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.errors import AudioError, UsageError
from mrsep_deploy.separation.segments import SONG_EPS

Float32 = NDArray[np.float32]

SEGMENTS = "segments"
ITEMS = 8
"""Batches that rounds go through in turn."""


@dataclass(frozen=True)
class Workload:
    """One thing to run.

    Attributes:
        name: ``segments``, or ``20 s song``.
        audio_seconds: that one run separates.
        path: a file of NumPy's: ``[K, B, C, L]`` normalised segments, or songs ``[K, C, n]`` as they are.
        items: ``K``.
        scale: what a sample of 1 means in full scale; for the level of stems.
    """

    name: str
    audio_seconds: float
    path: Path
    items: int
    scale: float

    @property
    def song(self) -> bool:
        return self.name != SEGMENTS

    def power(self) -> float:
        """The mean square of the first item, in full scale; stems are compared on that one."""
        first = np.load(self.path, mmap_mode="r")[0]
        return float(np.mean(np.square(first, dtype=np.float64))) * self.scale**2


def make_workloads(
    manifest: Manifest, audio: Path | None, lengths: Sequence[float], folder: Path
) -> list[Workload]:
    """The segments of a bundle, then songs by their length in seconds; written into a folder.

    They are of music, which is repeated where it is too short; without any, of something made up that is like it.

    Raises:
        AudioError: the music cannot be read, or there is none in it.
        UsageError: a length is no song.
    """
    model = manifest.model
    for length in lengths:
        if length * model.sample_rate < 1:
            raise UsageError(f"a song of {length:g} s was asked for", "Give a length above 0.")
    if audio is not None:
        music = _read(audio, manifest, max(lengths, default=0.0))
    else:
        from mrsep_deploy.measuring.probe import probe_signal

        music = probe_signal(model.audio_channels, 2 * model.segment_samples, model.sample_rate)
    made = [_segments(manifest, music, folder / "segments.npy")]
    for length in sorted(lengths):
        song = _repeated(music, round(length * model.sample_rate))
        path = folder / f"song-{length:g}.npy"
        np.save(path, song[None])
        made.append(Workload(f"{length:g} s song", song.shape[1] / model.sample_rate, path, 1, 1.0))
    return made


def _read(audio: Path, manifest: Manifest, seconds: float) -> Float32:
    """As much of it as songs of so many seconds and segments need, from its start."""
    model = manifest.model
    wanted = max(round(seconds * model.sample_rate), (ITEMS + manifest.batch) * model.segment_samples)
    pieces: list[Float32] = []
    for block in AudioSource(audio, model.sample_rate, model.audio_channels).blocks():
        pieces.append(block)
        wanted -= block.shape[1]
        if wanted <= 0:
            break
    if not sum(piece.shape[1] for piece in pieces):
        raise AudioError(f"{audio} holds no samples, expected music", "Give another file with --audio.")
    return np.concatenate(pieces, axis=1)


def _segments(manifest: Manifest, music: Float32, path: Path) -> Workload:
    """Batches ``[K, B, C, L]`` of neighbouring segments, normalised as songs are."""
    model, batch = manifest.model, manifest.batch
    length = model.segment_samples
    count = max(2, min(ITEMS, music.shape[1] // length))
    level = music.mean(0, dtype=np.float64)
    scale = float(level.std()) + SONG_EPS
    segments = _repeated(music, (count + batch - 1) * length)
    segments = np.ascontiguousarray((segments - level.mean()) / scale, np.float32)
    parts = segments.reshape(len(segments), -1, length).swapaxes(0, 1)
    np.save(path, np.stack([parts[k : k + batch] for k in range(count)]))
    return Workload(SEGMENTS, batch * float(model.segment), path, count, scale)


def _repeated(music: Float32, frames: int) -> Float32:
    """The first ``frames`` samples, from the start again where it ends."""
    times = -(-frames // music.shape[1])
    repeated: Float32 = np.ascontiguousarray(np.tile(music, (1, times))[:, :frames])
    return repeated
