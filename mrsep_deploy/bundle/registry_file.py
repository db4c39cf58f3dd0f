"""The file that names of bundles are kept in: ``registry.json``, strictly read, and replaced whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from mrsep_deploy.bundle import shipped
from mrsep_deploy.errors import FormatError
from mrsep_deploy.files import paths
from mrsep_deploy.files.parts import write_file
from mrsep_deploy.files.reading import read_start
from mrsep_deploy.files.strict_json import MAX_BYTES, shown, written
from mrsep_deploy.files.typed_json import Sha256, document

_HEADER = {"format": "mrsep-deploy registry", "format_version": 1}

Reason = Literal["chosen", "last", "shipped"]

_WHY: dict[Reason, str] = {
    "chosen": "the default, chosen with models use",
    "last": "exported last",
    "shipped": "comes with mrsep-deploy",
}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a name's bundle is, its digest, and when it got the name (ISO 8601, UTC)."""

    path: Annotated[str, msgspec.Meta(pattern=r"\A[^\0]{1,4096}\Z")]
    digest: Sha256
    registered: Annotated[str, msgspec.Meta(pattern=r"\A[0-9T:.+Z-]{10,40}\Z")]


@dataclass(frozen=True)
class Default:
    """The model that is taken where none is named, and why it is this one."""

    name: str
    reason: Reason

    @property
    def why(self) -> str:
        """The reason, for people."""
        return _WHY[self.reason]


class Registry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The file: entries by name, the name exported last, and the default that was chosen, if one was."""

    last: str | None
    models: dict[str, Entry]
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
    """Reads the registry, an empty one if there is no file yet. A damaged one is for the user to look at.

    Raises:
        FormatError: the file cannot be read, or is no registry of this version.
    """
    path = paths.registry_file()
    fix = f"Repair {path}, or move it away and register the bundles again."
    what = f"registry {path}"
    try:
        data = read_start(path, MAX_BYTES)
    except FileNotFoundError:
        return Registry(None, {})
    except OSError as error:
        raise FormatError(f"the {what} cannot be read: {error}", fix) from error
    found = document(data, _HEADER, Registry, what, fix, optional=("chosen",))
    for name in found.models:
        if NAME.fullmatch(name) is None:
            raise FormatError(
                f"{what}.models[{shown(name)}] has a name that is none, expected {NAME_RULE}", fix
            )
    for field, chosen in (("last", found.last), ("chosen", found.chosen)):
        if chosen is not None and chosen not in found.models and (field, chosen) != ("chosen", shipped.NAME):
            raise FormatError(f"{what}.{field} is {shown(chosen)}, expected one of the models", fix)
    return found


def save(registry: Registry) -> None:
    """Replaces the file.

    Raises:
        OutputError: it cannot be written; the old one is still there.
    """
    write_file(paths.registry_file(), written(_HEADER, registry))
