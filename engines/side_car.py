"""What is written beside a built engine: all it was built from and for, and how to know its bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

from msgspec import Meta

from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.strict_json import written
from mrsep_deploy.files.typed_json import Sha256, document

MAX_SIDE_CAR_BYTES = 2**20
FIX = "Delete it: mrsep-deploy cache prune"

_HEADER = {"format": "mrsep-deploy engine", "format_version": 1}
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
class SideCar:
    """Everything that is known of an engine's bytes.

    Attributes:
        created: ISO 8601 in UTC.
        milliseconds: what the build took.
        details: plain facts for people: model, stage, element types.
    """

    key: EngineKey
    sha256: Sha256
    bytes: Annotated[int, Meta(ge=1, le=2**40)]
    created: _Line
    milliseconds: Annotated[int, Meta(ge=0, le=2**40)]
    details: Mapping[str, object]


def to_json(side_car: SideCar) -> bytes:
    """The file's content."""
    return written(_HEADER, side_car)


def from_json(data: bytes, name: str) -> SideCar:
    """Read a side-car back.

    Raises:
        FormatError: it is damaged, of another version, or its key does not belong to this name.
    """
    found = document(data, _HEADER, SideCar, "side-car", FIX)
    if found.key.name != name:
        raise FormatError(f"side-car belongs to the engine {found.key.name}, not to {name}", FIX)
    return found
