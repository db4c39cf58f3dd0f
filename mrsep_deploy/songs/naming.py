"""Where outputs go: Demucs' filename template, below one folder and never out of it."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mrsep_deploy.errors import UsageError
from mrsep_deploy.songs.stems import Output
from mrsep_deploy.songs.tracks import Track, same_place

DEFAULT_TEMPLATE = "{track}/{stem}.{ext}"
VARIABLES = ("track", "trackext", "stem", "ext", "model")
_HELP = (
    f"Variables are {', '.join('{' + name + '}' for name in VARIABLES)}; the default is {DEFAULT_TEMPLATE}."
)


@dataclass(frozen=True)
class Naming:
    """Names the files of a run.

    Files go to ``root/MODEL/TEMPLATE``, where Demucs puts them, or to ``root/TEMPLATE`` if the template says
    itself where the model's name stands.

    Raises:
        UsageError: the template names another variable, or leads out of the folder.
    """

    root: Path
    model: str
    extension: str
    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        unknown = [name for name in _variables(self.template) if name not in VARIABLES]
        if unknown:
            raise UsageError(f"the file name template has {{{unknown[0]}}}", _HELP)
        plain = PurePosixPath(self.template.replace("\\", "/"))
        if plain.is_absolute() or ".." in plain.parts or not self.template or self.template.endswith("/"):
            raise UsageError(
                f"the file name template {self.template!r} is no place below the output folder", _HELP
            )

    @property
    def folder(self) -> Path:
        """What all files lie below."""
        return self.root if "model" in _variables(self.template) else self.root / self.model

    def paths(self, track: Track, outputs: Sequence[Output]) -> list[Path]:
        """The files of a track, in the order of its outputs."""
        known = {"track": track.name, "trackext": track.extension, "ext": self.extension, "model": self.model}
        return [self.folder / self.template.format(stem=output.name, **known) for output in outputs]


def _variables(template: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"the file name template {template!r} has a brace too many: {error}", _HELP
        ) from error
    for _, name, form, conversion in parts:
        # {track.parent}, {track!r}, {track:>9}: nothing but the names themselves
        if name is not None and (not name.isidentifier() or form or conversion):
            raise UsageError(f"the file name template has {{{name}}} in a form of its own", _HELP)
    return [name for _, name, _, _ in parts if name is not None]


def require_distinct(naming: Naming, tracks: Sequence[Track], outputs: Sequence[Output]) -> None:
    """Refuse outputs that would overwrite each other or a track, before the first one is written.

    Raises:
        UsageError: two files have one name.
    """
    taken = {
        place: track
        for track in tracks
        if not track.is_stdin
        for place in (_place(track.path), same_place(os.path.realpath(track.path)))
    }
    originals = set(taken)
    for track in (each for each in tracks if each.problem is None):
        for path in naming.paths(track, outputs):
            key = _place(path)
            # A link to a song would be replaced and the song left alone; it is refused because it is a mistake.
            if key in originals or same_place(os.path.realpath(path)) in originals:
                raise UsageError(
                    f"{path} is one of the songs to separate", "Choose another place with -o DIR."
                )
            if (other := taken.get(key)) is not None:
                what = "several stems of" if other == track else f"{other.path} and"
                raise UsageError(
                    f"{what} {track.path} would be written to {path}",
                    f"Put {{track}} and {{stem}} in it. {_HELP}",
                )
            taken[key] = track


def _place(path: Path) -> str:
    """Where a file is written: a link with its own name is replaced, not followed."""
    return same_place(os.path.join(os.path.realpath(path.parent), path.name))
