"""The tracks that a verification runs on: built-in signals, songs, and songs whose true stems are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.bundle.manifest import Manifest, ModelInfo
from mrsep_deploy.export.probe import probe_signal
from mrsep_deploy.separation.segments import SongStatistics, applied, stride_of
from mrsep_deploy.verification.multitrack import TrackFiles, read_multitrack

Float32 = NDArray[np.float32]

SEED = 20261
SILENT_LEVEL = 1e-5
"""Peak of the almost silent signal, -100 dBFS: half a bit of 16-bit audio."""
LOUD_GAIN = 8.0
"""The loud signal peaks 16 dB above full scale, as float files and sums of stems may."""


@dataclass(frozen=True)
class Track:
    """Something to separate.

    Attributes:
        name: for people.
        statistics: what the song is normalised by; mean 0 and deviation 1 leave it as it is.
        blocks: gives its blocks ``[C, n]`` at the model's rate, the same at every call.
        truth: true stems ``[C, samples]`` by source, where they are known.
        remarks: how what was read differs from what is in the files, with their paths.
    """

    name: str
    statistics: SongStatistics
    blocks: Callable[[], Iterable[Float32]]
    truth: Mapping[str, Float32] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def builtin_tracks(manifest: Manifest) -> list[Track]:
    """Returns test signals on which faults of reduced precision show: one segment each, always the same.

    Plucked music at a normal level, 16 dB above full scale, at -100 dBFS and clipped; digital silence, a
    full-scale sine, a click of one sample, and white noise. They are not normalised as songs are: a segment far
    louder or quieter than its song is what they are for.
    """
    # Anything longer than a stride is cut into two segments.
    model = manifest.model
    samples = stride_of(model.segment_samples, manifest.application.overlap)
    music = probe_signal(model.audio_channels, samples, model.sample_rate)
    loud = music * np.float32(LOUD_GAIN)
    silence = np.zeros_like(music)
    click = silence.copy()
    click[:, samples // 2] = 1
    sine = np.sin(2 * np.pi * 440 * (np.arange(samples) / model.sample_rate))
    noise = np.random.RandomState(SEED).standard_normal(music.shape) * 0.25
    signals = {
        "music": music,
        "loud music": loud,
        "music at -100 dBFS": music * np.float32(SILENT_LEVEL / np.abs(music).max()),
        "clipped music": np.clip(loud, -1, 1),
        "silence": silence,
        "full-scale sine": np.tile(sine, (len(music), 1)).astype(np.float32),
        "click": click,
        "noise": np.clip(noise, -1, 1).astype(np.float32),
    }
    as_it_is = SongStatistics.neutral(samples)
    return [Track(name, as_it_is, _whole(signal)) for name, signal in signals.items()]


def read_tracks(paths: Sequence[Path], manifest: Manifest) -> list[Track]:
    """Reads audio files, and tracks with true stems: folders and ``.stem.mp4`` files.

    A folder holds ``mixture.wav`` and a file for at least one source (``vocals.wav``), all of one length; see
    ``mrsep_deploy.verification.multitrack``.

    Raises:
        AudioError: one of them cannot be read, or is no such folder or file.
    """
    tracks = [_read_track(path, manifest.model) for path in paths]
    return [replace(track, statistics=applied(track.statistics, manifest.application)) for track in tracks]


def _read_track(path: Path, model: ModelInfo) -> Track:
    files = TrackFiles(path.name, path)
    if path.is_dir() or files.is_stem_file:
        found = read_multitrack(files, model, every_source=False)
        return with_stems(path.name, found.mix, found.truth, found.remarks)
    source = AudioSource(path, model.sample_rate, model.audio_channels)
    statistics = SongStatistics.measure(source.blocks())
    remarks = tuple(f"{path} {remark}" for remark in source.remarks)
    return Track(path.name, statistics, source.blocks, remarks=remarks)


def with_stems(name: str, mix: Float32, truth: Mapping[str, Float32], remarks: tuple[str, ...] = ()) -> Track:
    """Returns a track held in memory, ``mix`` and every true stem ``[C, samples]``."""
    return Track(name, SongStatistics.measure([mix]), _whole(mix), truth, remarks)


def _whole(samples: Float32) -> Callable[[], Iterable[Float32]]:
    return lambda: [samples]
