"""The file that names of bundles are kept in: ``registry.json``, strictly read, and replaced whole."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Literal

from mrsep_deploy.bundle import shipped
from mrsep_deploy.errors import FormatError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import write_file
from mrsep_deploy.files.strict_json import MAX_BYTES, Record, parse, shown

FORMAT = "mrsep-deploy registry"
FORMAT_VERSION = 1

Reason = Literal["chosen", "last", "shipped"]

_WHY: dict[Reason, str] = {
    "chosen": "the default, chosen with models use",
    "last": "exported last",
    "shipped": "comes with mrsep-deploy",
}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[0-9T:.+Z-]{10,40}")
_PATH = re.compile(r"[^\0]{1,4096}")


@dataclass(frozen=True)
class Entry:
    """Where a name's bundle is, its digest, and when it got the name (ISO 8601, UTC)."""

    path: str
    digest: str
    registered: str


@dataclass(frozen=True)
class Default:
    """The model that is taken where none is named, and why it is this one."""

    name: str
    reason: Reason

    @property
    def why(self) -> str:
        """The reason, for people."""
        return _WHY[self.reason]


@dataclass
class Registry:
    """Entries by name, the name exported last, and the default that was chosen, if one was."""

    models: dict[str, Entry] = field(default_factory=dict)
    last: str | None = None
    chosen: str | None = None

    @property
    def default(self) -> Default:
        if self.chosen is not None:
            return Default(self.chosen, "chosen")
        return Default(shipped.NAME, "shipped") if self.last is None else Default(self.last, "last")

    @property
    def names(self) -> list[str]:
        """Every name that stands for a model, the shipped one's included."""
        return sorted({*self.models, shipped.NAME})

    def leaves_to_the_shipped(self, name: str) -> bool:
        """Whether the name stands for the model that comes with the package."""
        return name == shipped.NAME and name not in self.models


def load() -> Registry:
    """The registry; empty if there is no file yet. A damaged one is for the user to look at."""
    path = paths.registry_file()
    fix = f"Repair {path}, or move it away and register the bundles again."
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    except FileNotFoundError:
        return Registry()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"the registry {path} cannot be read: {error}", fix) from error
    what = f"registry {path}"
    top = Record(
        parse(text, what, fix), what, fix, ("format", "format_version", "last", "models"), ("chosen",)
    )
    top.choice("format", (FORMAT,))
    top.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    models = {name: _read_entry(name, value, fix) for name, value in top.mapping("models").items()}
    last = None if top.is_null("last") else top.name("last")
    if last is not None and last not in models:
        top.wrong("last", "null or one of the models")
    chosen = top.name("chosen") if "chosen" in top else None
    if chosen is not None and chosen not in models and chosen != shipped.NAME:
        top.wrong("chosen", "one of the models")
    return Registry(models, last, chosen)


def _read_entry(name: str, value: object, fix: str) -> Entry:
    where = f"registry.models[{shown(name)}]"
    if NAME.fullmatch(name) is None:
        raise FormatError(f"{where} has a name that is none, expected {NAME_RULE}", fix)
    record = Record(value, where, fix, ("path", "digest", "registered"))
    return Entry(
        path=record.text("path", _PATH, "a path"),
        digest=record.text("digest", _SHA256, "64 hexadecimal digits"),
        registered=record.text("registered", _TIME, "a time"),
    )


def save(registry: Registry) -> None:
    """Replace the file.

    Raises:
        OutputError: it cannot be written; the old one is still there.
    """
    tree: dict[str, object] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "last": registry.last,
        "models": {name: asdict(entry) for name, entry in registry.models.items()},
    }
    if registry.chosen is not None:
        tree["chosen"] = registry.chosen
    write_file(paths.registry_file(), (json.dumps(tree, indent=2) + "\n").encode())
