"""Small JSON files of the cache, each named after the key of what it describes: side-cars of engines, run plans."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, TypeVar

from msgspec import Meta

from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.typed_json import Sha256, document

MAX_BYTES = 2**20
FIX = "Delete it: mrsep-deploy cache prune"
HEADER = {"format": "mrsep-deploy engine", "format_version": 1}

Kind = TypeVar("Kind", bound="Keyed")
_Line = Annotated[str, Meta(pattern=r"\A[^\0-\x1f]{0,1000}\Z", description="one line of text")]


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from and for; engines of different keys never stand in for each other.

    Attributes:
        graph: sha256 of the ONNX graph.
        engine: ``trt``, ``trt-rtx``.
        library: its exact version.
        target: name and compute capability of the device, or a list of compute capabilities.
        driver: version; empty where the engine does not depend on it.
        precision: ``fp32``, ``fp16``.
        batch: segments in one run.
        options: everything else that was asked of the build, as plain JSON values.
    """

    graph: _Line
    engine: _Line
    library: _Line
    target: _Line
    driver: _Line
    precision: _Line
    batch: Annotated[int, Meta(ge=1, le=2**16)]
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What files of this key are called: half of the sha256 of all of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Keyed:
    """The content of a file that is named after its key."""

    key: EngineKey


@dataclass(frozen=True)
class SideCar(Keyed):
    """Everything that is known of an engine's bytes.

    Attributes:
        created: ISO 8601 in UTC.
        milliseconds: what the build took.
        details: plain facts for people: model, stage, element types.
    """

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=1, le=2**40)]
    created: _Line
    milliseconds: Annotated[int, Meta(ge=0, le=2**40)]
    details: Mapping[str, object]


def read(path: Path, header: Mapping[str, object], kind: type[Kind], what: str, fix: str) -> Kind:
    """The content of a file; arguments are those of ``document``.

    Raises:
        OSError: it cannot be read.
        FormatError: it is damaged, of another version, or its key is not the one it is named after.
    """
    with open(path, "rb") as file:
        found = document(file.read(MAX_BYTES + 1), header, kind, what, fix)
    if found.key.name != path.stem:
        raise FormatError(f"{what} belongs to the key {found.key.name}, not to {path.stem}", fix)
    return found


@dataclass(frozen=True)
class Entry:
    """One line of a listing.

    Attributes:
        name: of its files.
        bytes: what it takes on the disk.
        key, details, created, seconds: what its file says; empty where that is unreadable.
        used: when it was last loaded or written.
        problem: why it would not be loaded; empty if all is well.
    """

    name: str
    bytes: int
    used: datetime
    key: EngineKey | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    problem: str = ""

    @classmethod
    def of(cls, *paths: Path) -> Entry | None:
        """An entry of which no more is known than its files; ``None`` if they have just gone."""
        found = [status for path in paths if (status := stat(path))]
        if not found:
            return None
        used = datetime.fromtimestamp(max(status.st_mtime for status in found), timezone.utc)
        return cls(paths[0].stem, sum(status.st_size for status in found), used)

    def failed(self, error: OSError | FormatError) -> Entry:
        """The same with what went wrong when its files were read."""
        if isinstance(error, FormatError):
            return replace(self, problem=error.message)
        if isinstance(error, FileNotFoundError):
            return replace(self, problem=f"{Path(error.filename).name} is missing")
        return replace(self, problem=error.strerror or str(error))

    def is_doomed(self, older_than: timedelta | None, everything: bool) -> bool:
        """Whether pruning deletes it: it would not be loaded, or was not used for so long, or all have to go."""
        age = datetime.now(timezone.utc) - self.used
        return everything or bool(self.problem) or (older_than is not None and age > older_than)


def stat(path: Path) -> os.stat_result | None:
    """The state of a file, if it is there."""
    try:
        return path.stat()
    except OSError:
        return None
