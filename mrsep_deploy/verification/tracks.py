"""What is listened to: built-in signals, songs, and songs whose true stems are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.audio import audio_streams, open_audio
from mrsep_deploy.bundle.manifest import ModelInfo
from mrsep_deploy.errors import AudioError
from mrsep_deploy.separation.segments import SONG_EPS, SongStatistics, stride_of
from mrsep_deploy.separation.separator import DEFAULT_OVERLAP
from mrsep_deploy.verification.signals import builtin_signals

Float32 = NDArray[np.float32]

MIXTURE = "mixture"
STEM_STREAMS = ("drums", "bass", "other", "vocals")
"""Streams of a ``.stem.mp4`` after the mixture, in the order of MUSDB18."""


@dataclass(frozen=True)
class Track:
    """Something to separate.

    Attributes:
        name: for people.
        statistics: what the song is normalised by; mean 0 and deviation 1 leave it as it is.
        blocks: gives its blocks ``[C, n]`` at the model's rate, the same at every call.
        truth: true stems ``[C, samples]`` by source, where they are known.
    """

    name: str
    statistics: SongStatistics
    blocks: Callable[[], Iterable[Float32]]
    truth: Mapping[str, Float32] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What the normalised song is multiplied by in the end."""
        return self.statistics.std + SONG_EPS

    def normalised(self) -> Iterator[Float32]:
        """The blocks as the model hears them."""
        mean, factor = np.float32(self.statistics.mean), np.float32(1 / self.scale)
        return ((block - mean) * factor for block in self.blocks())


def builtin_tracks(model: ModelInfo) -> list[Track]:
    """The built-in signals, one segment each.

    They are not normalised as songs are: a segment far louder or quieter than its song is what they are for.
    """
    # Anything longer than a stride is cut into two segments.
    samples = stride_of(model.segment_samples, DEFAULT_OVERLAP)
    signals = builtin_signals(model.audio_channels, samples, model.sample_rate)
    as_it_is = SongStatistics(0.0, 1.0 - SONG_EPS, samples)
    return [Track(name, as_it_is, _whole(samples)) for name, samples in signals]


def read_tracks(paths: Sequence[Path], model: ModelInfo) -> list[Track]:
    """Tracks of audio files, of folders with stems, and of ``.stem.mp4`` files.

    A folder holds ``mixture.wav`` and a file for at least one source (``vocals.wav``), all of one length. The
    mixture of a ``.stem.mp4`` is the sum of its stems: its own went through the codec by itself and differs
    from their sum by far more than anything that is measured here.

    Raises:
        AudioError: one of them cannot be read, or is no such folder.
    """
    return [_read_track(path, model) for path in paths]


def _read_track(path: Path, model: ModelInfo) -> Track:
    if path.is_dir():
        return _from_folder(path, model)
    if path.name.endswith(".stem.mp4") and audio_streams(path) == 1 + len(STEM_STREAMS):
        stems = {
            name: open_audio(path, model.sample_rate, model.audio_channels, stream).read()
            for stream, name in enumerate(STEM_STREAMS, start=1)
        }
        _require_one_length(path, stems)
        return with_stems(path.name, np.sum(list(stems.values()), axis=0, dtype=np.float32), stems)
    source = open_audio(path, model.sample_rate, model.audio_channels)
    return Track(path.name, SongStatistics.measure(source.blocks()), source.blocks)


def with_stems(name: str, mix: Float32, truth: Mapping[str, Float32]) -> Track:
    """A track held in memory, ``mix`` and every true stem ``[C, samples]``."""
    return Track(name, SongStatistics.measure([mix]), _whole(mix), truth)


def _from_folder(folder: Path, model: ModelInfo) -> Track:
    def read(name: str) -> Float32:
        return open_audio(folder / f"{name}.wav", model.sample_rate, model.audio_channels).read()

    expected = f"expected {MIXTURE}.wav and true stems ({', '.join(f'{s}.wav' for s in model.sources)})"
    present = [source for source in model.sources if (folder / f"{source}.wav").is_file()]
    if not (folder / f"{MIXTURE}.wav").is_file():
        raise AudioError(f"{folder} holds no {MIXTURE}.wav, {expected}", "Name the audio files themselves.")
    if not present:
        raise AudioError(f"{folder} holds no stem of this model, {expected}", "Name the audio file itself.")
    stems = {name: read(name) for name in (MIXTURE, *present)}
    _require_one_length(folder, stems)
    return with_stems(folder.name, stems.pop(MIXTURE), stems)


def _require_one_length(path: Path, stems: Mapping[str, Float32]) -> None:
    lengths = {name: stem.shape[-1] for name, stem in stems.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise AudioError(
            f"{path} has stems of different lengths in samples ({found})",
            "Cut them to the length of the mix.",
        )


def _whole(samples: Float32) -> Callable[[], Iterable[Float32]]:
    return lambda: [samples]
