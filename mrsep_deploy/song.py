"""One audio file to one file a stem."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mrsep_deploy.audio import WAV_16, Clip, Encoding, StemWriter, WrittenStem, bytes_needed, open_audio
from mrsep_deploy.errors import OutputError
from mrsep_deploy.segments import SongStatistics
from mrsep_deploy.separator import Separator

DEFAULT_OUT = Path("separated")


@dataclass(frozen=True)
class OutputOptions:
    """Where stems go and how they are written.

    Attributes:
        root: stems land in ``root/MODEL/TRACK/STEM.wav``, where Demucs puts them.
        encoding: of the samples.
        clip: what to do with a stem beyond full scale.
    """

    root: Path = DEFAULT_OUT
    encoding: Encoding = WAV_16
    clip: Clip = "rescale"


@dataclass(frozen=True)
class SeparatedSong:
    """What became of one song. ``seconds`` is its length, ``elapsed`` how long it took."""

    track: Path
    folder: Path
    stems: tuple[WrittenStem, ...]
    seconds: float
    elapsed: float = field(default=0.0)

    @property
    def speed(self) -> float:
        """Times real time."""
        return self.seconds / self.elapsed if self.elapsed else float("inf")


def separate_file(
    separator: Separator,
    track: Path,
    options: OutputOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SeparatedSong:
    """Separate one file; memory does not grow with its length.

    Args:
        separator: ready to run.
        track: wav, flac, ogg, opus, mp3, or with the extra ``[av]`` whatever FFmpeg reads.
        options: where the stems go.
        progress: called with the samples finished and the samples in all.

    Raises:
        AudioError: the file cannot be read.
        OutputError: a stem cannot be written. Each stem's file appears whole or not at all.
    """
    options = options or OutputOptions()
    began = time.perf_counter()
    rate, channels = separator.sample_rate, separator.audio_channels
    source = open_audio(track, rate, channels)
    song = SongStatistics.measure(source.blocks())
    folder = stem_folder(separator, track, options)
    _require_space(folder, song.frames, separator, options)
    with _no_empty_folder(folder), contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                StemWriter(folder / f"{name}.wav", rate, channels, options.encoding, options.clip)
            )
            for name in separator.sources
        ]

        def report(done: int) -> None:
            if progress is not None:
                progress(done, song.frames)

        for block in separator.separate_measured(source.blocks(), song, report):
            for writer, stem in zip(writers, block, strict=True):
                writer.write(stem)
        stems = tuple(writer.close() for writer in writers)
    return SeparatedSong(track, folder, stems, song.frames / rate, time.perf_counter() - began)


def stem_folder(separator: Separator, track: Path, options: OutputOptions) -> Path:
    """Where a track's stems go, ``root/MODEL/TRACK``.

    A file called ``...wav`` has the stem ``..``, which must not lead out of the model's folder.
    """
    name = track.stem if track.stem.strip(".") else track.name.replace(".", "_")
    return options.root / separator.manifest.name / name


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Where nothing could be written, no folder stays behind either."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def _require_space(folder: Path, frames: int, separator: Separator, options: OutputOptions) -> None:
    """Refuse at once what would fill the disk hours from now."""
    needed = len(separator.sources) * bytes_needed(
        frames, separator.audio_channels, options.encoding, options.clip
    )
    free = _free_bytes(folder)
    if free is not None and free < needed:
        raise OutputError(
            f"the stems need {needed / 1e6:,.0f} MB while they are written, {folder} has {free / 1e6:,.0f} MB free",
            "Free some space, or choose another place with -o DIR.",
        )


def _free_bytes(folder: Path) -> int | None:
    for place in _existing(folder):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _existing(folder: Path) -> Iterator[Path]:
    """The folder, or the nearest above it that exists already."""
    place = folder.absolute()
    yield from (p for p in (place, *place.parents) if p.exists())
