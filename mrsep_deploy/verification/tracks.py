"""The tracks that a verification runs on (built-in signals, songs, songs with true stems), and their batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.bundle.manifest import Manifest, ModelInfo
from mrsep_deploy.measuring.probe import probe_signal
from mrsep_deploy.separation.segments import (
    Segment,
    SongStatistics,
    applied,
    cut_segments,
    grouped,
    stride_of,
)
from mrsep_deploy.verification.multitrack import TrackFiles, read_multitrack

Float32 = NDArray[np.float32]
Span = tuple[int, int]
"""From which sample to which, the second excluded."""

Progress = Callable[[str, int, int], None]
"""Called with what happens now, how many steps are done and how many there are."""

ISOLATED = 4
"""Batches of one track, spread over it, on which what is expensive is measured."""
SEED = 20261
SILENT_LEVEL = 1e-5
"""Peak of the almost silent signal, -100 dBFS: half a bit of 16-bit audio."""
LOUD_GAIN = 8.0
"""The loud signal peaks 16 dB above full scale, as float files and sums of stems may."""


@dataclass(frozen=True)
class Track:
    """Something to separate.

    Attributes:
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

    def power(self) -> float:
        """Returns the mean square of all samples and channels of the mix, relative to full scale."""
        energy, count = 0.0, 0
        for block in self.blocks():
            energy += float(np.square(block, dtype=np.float64).sum())
            count += block.size
        return energy / max(count, 1)


def builtin_tracks(manifest: Manifest) -> list[Track]:
    """Returns test signals on which faults of reduced precision show: one segment each, always the same.

    Plucked music at a normal level, 16 dB above full scale, at -100 dBFS and clipped; digital silence, a
    full-scale sine, a click of one sample, and white noise. They are not normalised as songs are: a segment far
    louder or quieter than its song is what they are for.
    """
    # Anything longer than a stride is cut into two segments.
    model = manifest.model
    samples = stride_of(manifest.kept_samples, manifest.application.overlap)
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
    return [replace(with_stems(name, each, {}), statistics=as_it_is) for name, each in signals.items()]


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
    return Track(name, SongStatistics.measure([mix]), lambda: [mix], truth, remarks)


@dataclass(frozen=True)
class Batch:
    """Segments of one track.

    Attributes:
        segments: as many as the bundle's batch, or fewer at the end of the track.
        mix: what the model gets, ``[B, C, L]``, filled up with silence.
        spans: the part of every segment that is song.
        isolated: whether it is one of the batches on which what is expensive is measured.
    """

    segments: Sequence[Segment]
    mix: NDArray[np.float32]
    isolated: bool

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple((segment.cut, segment.cut + segment.length) for segment in self.segments)


def count_batches(track: Track, manifest: Manifest) -> int:
    """Returns how many batches a track has."""
    stride = stride_of(manifest.kept_samples, manifest.application.overlap)
    return math.ceil(math.ceil(track.statistics.frames / stride) / manifest.batch)


def batches(track: Track, manifest: Manifest) -> Iterator[Batch]:
    """Yields the batches of a track, normalised as the model takes it."""
    samples, application = manifest.kept_samples, manifest.application
    count = count_batches(track, manifest)
    # evenly from the first to the last
    isolated = set(np.linspace(0, count - 1, min(count, ISOLATED)).round().astype(int).tolist())
    song = track.statistics.normalised(track.blocks())
    stride = stride_of(samples, application.overlap)
    segments = cut_segments(song, samples, stride, application.last, application.context)
    for index, group in enumerate(grouped(segments, manifest.batch)):
        mix = np.zeros((manifest.batch, *group[0].samples.shape), np.float32)
        for item, segment in zip(mix, group, strict=False):
            item[:] = segment.samples
        yield Batch(group, mix, index in isolated)


def silent(_what: str, _done: int, _total: int) -> None:
    """Reports no progress."""
