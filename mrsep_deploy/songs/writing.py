"""One song out: its outputs resampled, written side by side, and finished one by one."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mrsep_deploy.audio.info import Samples
from mrsep_deploy.audio.resample import Resampler, resampled_length
from mrsep_deploy.audio.tags import SOFTWARE
from mrsep_deploy.audio.write import CLAMP, AnyEncoding, Clip, StemWriter, WrittenStem, bytes_needed
from mrsep_deploy.errors import OutputError
from mrsep_deploy.files.open_folder import OpenFolder
from mrsep_deploy.files.parts import sync_folder
from mrsep_deploy.songs.loading import LoadedSong
from mrsep_deploy.songs.naming import Naming
from mrsep_deploy.songs.stems import Output

RateChoice = Literal["input", "model"] | int


@dataclass(frozen=True)
class WriteOptions:
    """What outputs a song has, and how they are written.

    Attributes:
        sample_rate: of the files: the song's own, the model's, or a number of Hz.
        tags: carry over what the song says of itself, and say what made the file.
        made_by: the program, the model and the licence of its weights, for that tag; empty for none.
    """

    naming: Naming
    outputs: tuple[Output, ...]
    encoding: AnyEncoding
    clip: Clip = "rescale"
    sample_rate: RateChoice = "input"
    tags: bool = True
    made_by: str = ""


class SongWriter:
    """Writes the outputs of one song.

    Raises:
        OutputError: a file cannot be written there, or the disk has no room for all of them.
    """

    def __init__(self, song: LoadedSong, options: WriteOptions, cancel: threading.Event) -> None:
        self.paths = options.naming.paths(song.track, options.outputs)
        self._options = options
        own, model, channels = song.source.info.sample_rate, song.source.sample_rate, song.source.channels
        asked = options.sample_rate
        rate = own if asked == "input" else model if asked == "model" else asked
        # A song that comes back to its own rate is as long as it was, to the sample.
        resampled = resampled_length(song.statistics.frames, model, rate)
        self._frames = song.frames if rate == own else resampled
        _require_space(self.paths, self._frames, channels, options)
        # Folders that have to be made for the files, the innermost first
        folders = {folder for path in self.paths for folder in path.absolute().parents}
        self._new_folders = sorted((f for f in folders if not f.exists()), key=lambda f: -len(f.parts))
        self._outputs = [(output, Resampler(model, rate, channels)) for output in options.outputs]
        self.writers: list[StemWriter] = []
        made_by = {SOFTWARE: options.made_by} if options.made_by else {}
        tags = {**song.tags, **made_by} if options.tags else None
        encoding, clip, root = options.encoding, options.clip, options.naming.root
        try:
            for path in self.paths:
                self.writers.append(StemWriter(path, rate, channels, encoding, clip, tags, cancel, root))
        except BaseException:
            self.abort()
            raise

    def write(self, stems: Samples, mix: Samples | None) -> None:
        """Append stems ``[S, C, n]`` and, for outputs that need it, the mix ``[C, n]``."""
        for (output, resampler), writer in zip(self._outputs, self.writers, strict=True):
            writer.write(resampler.push(output.make(stems, mix)))

    def flush(self) -> None:
        """Write what the resamplers have kept; closing the writers is what is left then."""
        for (_, resampler), writer in zip(self._outputs, self.writers, strict=True):
            writer.write(resampler.finish(self._frames))

    def finish(self, index: int) -> None:
        """Encode one output and put it under its name, after ``flush``: only then the song's peak is known."""
        self.writers[index].close(max(writer.peak for writer in self.writers))

    @property
    def finished(self) -> dict[str, WrittenStem]:
        """The finished outputs by their names."""
        pairs = zip(self._outputs, self.writers, strict=True)
        return {output.name: writer.written for (output, _), writer in pairs if writer.written is not None}

    @property
    def remark(self) -> str:
        """What was cut off of the finished outputs, said of the song; empty if nothing was."""
        cut = {name: stem.clipped for name, stem in self.finished.items() if stem.clipped}
        counts = ", ".join(f"{name} {count} sample{'s' * (count > 1)}" for name, count in cut.items())
        limit = f"±{CLAMP}" if self._options.clip == "clamp" else "full scale"
        return f"has stems with peaks beyond {limit}, cut off: {counts}" if cut else ""

    def sync(self) -> None:
        """Force the names of the finished files to the disk, and those of the folders made for them."""
        for folder in {path.parent for path in (*self.paths, *self._new_folders)}:
            with contextlib.suppress(OSError):
                sync_folder(folder)

    def abort(self) -> None:
        """Remove what is not finished, and the folders that were made for it."""
        for writer in self.writers:
            writer.abort()
        root = self._options.naming.root.absolute()
        for folder in self._new_folders:
            with contextlib.suppress(OSError, OutputError):
                if root in folder.parents:  # never behind a link
                    with OpenFolder(folder.parent, root, make=False) as parent:
                        parent.rmdir(folder.name)
                else:
                    os.rmdir(folder)


def _require_space(paths: Sequence[Path], frames: int, channels: int, options: WriteOptions) -> None:
    """Refuse at once what would fill the disk hours from now."""
    needed = len(paths) * bytes_needed(frames, channels, options.encoding, options.clip)
    folder = paths[0].parent
    free = _free_bytes(folder)
    if free is not None and free < needed:
        raise OutputError(
            f"the stems need {needed / 1e6:,.0f} MB while they are written, {folder} has {free / 1e6:,.0f} MB free",
            "Free some space, or choose another place with -o DIR.",
        )


def _free_bytes(folder: Path) -> int | None:
    place = folder.absolute()
    for existing in (p for p in (place, *place.parents) if p.exists()):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(existing).free
    return None
