"""The tracks that a verification runs on: built-in signals, songs, and songs whose true stems are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio.read import AudioSource
from mrsep_deploy.bundle.manifest import Application, Manifest, ModelInfo
from mrsep_deploy.separation.segments import SongStatistics, applied, stride_of
from mrsep_deploy.verification.multitrack import TrackFiles, read_multitrack
from mrsep_deploy.verification.signals import builtin_signals

Float32 = NDArray[np.float32]


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

    @property
    def scale(self) -> float:
        """What the normalised song is multiplied by in the end."""
        return self.statistics.scale

    def normalised(self) -> Iterator[Float32]:
        """The blocks as the model hears them."""
        return self.statistics.normalised(self.blocks())


def for_model(tracks: Sequence[Track], application: Application) -> list[Track]:
    """The tracks as a model takes them, normalised or as they are."""
    return [replace(track, statistics=applied(track.statistics, application)) for track in tracks]


def builtin_tracks(manifest: Manifest) -> list[Track]:
    """The built-in signals, one segment each.

    They are not normalised as songs are: a segment far louder or quieter than its song is what they are for.
    """
    # Anything longer than a stride is cut into two segments.
    model = manifest.model
    samples = stride_of(model.segment_samples, manifest.application.overlap)
    signals = builtin_signals(model.audio_channels, samples, model.sample_rate)
    as_it_is = SongStatistics.neutral(samples)
    return [Track(name, as_it_is, _whole(samples)) for name, samples in signals]


def read_tracks(paths: Sequence[Path], model: ModelInfo) -> list[Track]:
    """Reads audio files, and tracks with true stems: folders and ``.stem.mp4`` files.

    A folder holds ``mixture.wav`` and a file for at least one source (``vocals.wav``), all of one length; see
    ``mrsep_deploy.verification.multitrack``.

    Raises:
        AudioError: one of them cannot be read, or is no such folder or file.
    """
    return [_read_track(path, model) for path in paths]


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
