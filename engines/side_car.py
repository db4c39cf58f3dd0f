"""What is written beside a built engine: all it was built from and for, and how to know its bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from mrsep_deploy.errors import FormatError
from mrsep_deploy.files.strict_json import Record, parse

FORMAT = "mrsep-deploy engine"
FORMAT_VERSION = 1
MAX_SIDE_CAR_BYTES = 2**20
FIX = "Delete it: mrsep-deploy cache prune"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(r"[^\0-\x1f]{0,1000}")
_TEXTS = ("graph", "engine", "library", "target", "driver", "precision")


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

    graph: str
    engine: str
    library: str
    target: str
    driver: str
    precision: str
    batch: int
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
    sha256: str
    bytes: int
    created: str
    milliseconds: int
    details: Mapping[str, object]


def to_json(side_car: SideCar) -> bytes:
    """The file's content."""
    tree = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(side_car)}
    return (json.dumps(tree, indent=2) + "\n").encode()


def from_json(data: bytes, name: str) -> SideCar:
    """Read a side-car back.

    Raises:
        FormatError: it is damaged, of another version, or its key does not belong to this name.
    """
    tree = parse(data, "side-car", FIX)
    fields = ("format", "format_version", "key", "sha256", "bytes", "created", "milliseconds", "details")
    top = Record(tree, "side-car", FIX, fields)
    top.choice("format", (FORMAT,))
    top.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    found = SideCar(
        key=key_from_json(top.mapping("key"), "side-car.key", FIX),
        sha256=top.text("sha256", _SHA256, "a sha256"),
        bytes=top.integer("bytes", 1, 2**40),
        created=top.text("created", _LINE, "a time"),
        milliseconds=top.integer("milliseconds", 0, 2**40),
        details=top.mapping("details"),
    )
    if found.key.name != name:
        raise FormatError(f"side-car belongs to the engine {found.key.name}, not to {name}", FIX)
    return found


def key_from_json(tree: object, where: str, fix: str) -> EngineKey:
    """Read a key back; raises ``FormatError`` for one with other fields or types."""
    key = Record(tree, where, fix, (*_TEXTS, "batch", "options"))
    texts = {name: key.text(name, _LINE, "one line of text") for name in _TEXTS}
    return EngineKey(**texts, batch=key.integer("batch", 1, 2**16), options=key.mapping("options"))
