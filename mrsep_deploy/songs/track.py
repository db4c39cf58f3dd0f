"""One song that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mrsep_deploy.errors import MrsepError

STDIN = Path("-")


@dataclass(frozen=True)
class Track:
    """One song to separate.

    Attributes:
        path: the file, or ``-`` for what comes through stdin.
        name: what its outputs are called by: the file's name without suffix, below the folder that was asked for
            (``live/song``); parts are separated by ``/``.
        problem: why there is no song: ``path`` is a folder that cannot be read, or one or a pattern without audio.
    """

    path: Path
    name: str
    problem: MrsepError | None = field(default=None, compare=False)

    @property
    def is_stdin(self) -> bool:
        return self.path == STDIN

    @property
    def extension(self) -> str:
        """Of the file, without the dot."""
        return "wav" if self.is_stdin else self.path.suffix.lstrip(".")
